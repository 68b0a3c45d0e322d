"""Reads clips from videos: the same code for training, evaluation and prediction."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from coco_jax.data import video as videos
from coco_jax.data.dataset import Records


@dataclasses.dataclass
class ClipReader:
    """Reads clips of `config.video_tower.frames` square frames.

    With `config.data.cache`, each process keeps decoded videos in memory.
    """

    config: ConfigDict
    training: bool
    records: Records | None = None
    decoded: dict[int, tuple[np.ndarray, videos.VideoInfo]] = dataclasses.field(
        default_factory=dict
    )

    def __call__(self, index: int, rng: np.random.Generator, view: int = 0) -> dict[str, Any]:
        """Record `index` as `{"video": uint8 T H W 3, "index": int}`.

        Args:
          index: of the record.
          rng: chooses the times and the augmentation in training.
          view: chooses the clip in evaluation.
        """
        assert self.records is not None
        if self.config.data.cache:
            if index not in self.decoded:
                self.decoded[index] = self._decode_all(self.records[index])
            frames, info = self.decoded[index]
            frames_THWC = frames[videos.shown_at(info, self._times(info.duration, rng, view))]
        else:
            record = self.records[index]
            frames_THWC = self._decode(stored(record), record["video_id"], rng, view)
        return {"video": self._augment(frames_THWC, rng), "index": index}

    def read(self, video: videos.Video, view: int = 0) -> UInt8[np.ndarray, "T H W 3"]:
        """A clip of a video file or of its bytes, as in evaluation.

        Raises:
          VideoError: it cannot be decoded.
        """
        rng = np.random.default_rng(0)  # evaluation does not use it
        return self._augment(self._decode(video, None, rng, view), rng)

    def read_views(self, video: videos.Video) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
        """The clips of a video that `read` gives, decoded in one pass; equal ones are the same array.

        Raises:
          VideoError: it cannot be decoded.
        """
        rng, duration = np.random.default_rng(0), videos.probe(video).duration
        views = range(self.config.data.views)
        return self._read(video, np.stack([self._times(duration, rng, view) for view in views]))

    def read_windows(
        self, video: videos.Video, starts_N: Float[np.ndarray, " N"], length: float
    ) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
        """A clip of each window of a video, as if the window were a video; decodes in one pass.

        Args:
          video: a video file, or its bytes.
          starts_N: of the windows in seconds, ascending.
          length: of each window in seconds.

        Yields:
          The clips. If the frames of a window are those of the window before, it is the same array.

        Raises:
          VideoError: it cannot be decoded.
        """
        times_T = self._times(length, np.random.default_rng(0), 0)
        return self._read(video, starts_N[:, None] + times_T)

    def _read(
        self, video: videos.Video, times_NT: Float[np.ndarray, "N T"]
    ) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
        before, clip = None, None
        for frames in videos.decode_windows(video, times_NT, short_side=self._short_side):
            if clip is None or frames is not before:
                clip = self._augment(frames, np.random.default_rng(0))
            before = frames
            yield clip

    def _times(self, duration: float, rng: np.random.Generator, view: int) -> np.ndarray:
        data, frames = self.config.data, self.config.video_tower.frames
        if self.training and data.sampling == "random":
            return videos.sample_times(frames, duration, "random", rng=rng)
        if data.sampling == "dense":
            return videos.sample_times(
                frames,
                duration,
                "dense",
                stride_seconds=data.stride,
                rng=rng if self.training else None,
                clip=view,
                num_clips=data.views,
            )
        return videos.sample_times(frames, duration, "uniform")

    @property
    def _short_side(self) -> int:
        return round(self.config.video_tower.size / self.config.data.crop)

    def _decode_all(self, record: dict[str, Any]) -> tuple[np.ndarray, videos.VideoInfo]:
        name = record["video_id"]
        info = videos.probe(stored(record), name)
        return videos.decode(stored(record), None, short_side=self._short_side, name=name), info

    def _decode(
        self, video: videos.Video, name: str | None, rng: np.random.Generator, view: int
    ) -> UInt8[np.ndarray, "T H W 3"]:
        return videos.decode(
            video,
            lambda info: self._times(info.duration, rng, view),
            short_side=self._short_side,
            name=name,
        )

    def _augment(
        self, frames_THWC: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """A random crop, mirror image and colours in training; otherwise the centre crop."""
        size, data = self.config.video_tower.size, self.config.data
        margin = np.array(frames_THWC.shape[1:3]) - size
        top, left = (rng.integers(margin + 1) if self.training else margin // 2).tolist()
        clip = frames_THWC[:, top : top + size, left : left + size]
        if not self.training:
            return clip
        if data.flip and rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if not data.color:
            return np.ascontiguousarray(clip)
        # The same change for the whole clip: swapped channels, contrast, brightness.
        order = rng.permutation(3) if rng.random() < data.color else range(3)
        gain = 1 + data.color * rng.uniform(-0.5, 0.5, 3)
        shift = data.color * rng.uniform(-40, 40, 3)
        values = (np.arange(256.0)[:, None] - 128) * gain + 128 + shift
        table = np.clip(values, 0, 255).astype(np.uint8)
        changed = np.empty(clip.shape, np.uint8)
        for new, old in enumerate(order):  # bytes.translate is much faster than indexing the table
            channel = clip[..., old].tobytes().translate(table[:, new].tobytes())
            changed[..., new] = np.frombuffer(channel, np.uint8).reshape(clip.shape[:-1])
        return changed


def stored(record: dict[str, Any]) -> bytes | videos.Frames:
    """The video of a record: encoded bytes, or JPEG frames."""
    if "frames" in record:
        return videos.Frames(tuple(record["frames"]), float(record["fps"]))
    return record["video"]
