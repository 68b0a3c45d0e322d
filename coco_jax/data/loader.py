"""Records to batches with Grain: sample, decode, augment, batch, share among processes.

The order is a pure function of the seed: global batch n holds the same clips, augmented the same
way, whatever the number of processes and workers, and wherever the run was taken up again.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from coco_jax.data import videos
from coco_jax.data.dataset import Records


@dataclasses.dataclass
class Clip:
    """Decodes one record into a clip of `config.video.frames` square frames."""

    records: Records
    config: ConfigDict
    training: bool
    decoded: dict[int, tuple[np.ndarray, videos.VideoInfo]] = dataclasses.field(
        default_factory=dict
    )

    def __call__(self, index: int, rng: np.random.Generator, view: int = 0) -> dict[str, Any]:
        """Record `index` as `{"video": uint8 T H W 3, "index": int}`; `view` matters in evaluation."""
        video, data = self.config.video, self.config.data
        if video.kind == "features":
            return {"video": np.float32(self.records[index]["features"]), "index": index}

        def times(duration: float) -> np.ndarray:
            if self.training and data.sampling == "random":
                return videos.sample_times(video.frames, duration, "random", rng=rng)
            if data.sampling == "dense":
                return videos.sample_times(
                    video.frames, duration, "dense", stride_seconds=data.stride,
                    rng=rng if self.training else None, clip=view, num_clips=data.views,
                )  # fmt: skip
            return videos.sample_times(video.frames, duration, "uniform")

        frames_THWC = self._frames(index, times)
        return {"video": self._augment(frames_THWC, rng), "index": index}

    def _frames(self, index: int, times) -> UInt8[np.ndarray, "T H W 3"]:
        side = round(self.config.video.size / self.config.data.crop)
        if self.config.data.cache:
            if index not in self.decoded:
                record = self.records[index]
                name = record["video_id"]
                info = videos.probe(stored(record), name)
                frames = videos.decode(stored(record), None, short_side=side, name=name)
                self.decoded[index] = frames, info
            frames, info = self.decoded[index]
            return frames[videos.shown_at(info, times(info.duration))]
        record = self.records[index]
        return videos.decode(
            stored(record), lambda info: times(info.duration), short_side=side,
            name=record["video_id"],
        )  # fmt: skip

    def _augment(
        self, frames_THWC: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """A random window, mirror image and colours in training; else the centre as it is."""
        size, data = self.config.video.size, self.config.data
        room = np.array(frames_THWC.shape[1:3]) - size
        top, left = (rng.integers(room + 1) if self.training else room // 2).tolist()
        clip = frames_THWC[:, top : top + size, left : left + size]
        if not self.training:
            return clip
        if data.flip and rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if data.color:
            # Channels swapped, stretched and shifted alike over the clip: hue, contrast, light.
            clip = clip[..., rng.permutation(3)] if rng.random() < data.color else clip
            gain, shift = (
                1 + data.color * rng.uniform(-0.5, 0.5, 3),
                data.color * rng.uniform(-40, 40, 3),
            )
            table = np.clip((np.arange(256.0)[:, None] - 128) * gain + 128 + shift, 0, 255)
            clip = table.astype(np.uint8)[clip, np.arange(3)]
        return np.ascontiguousarray(clip)


def stored(record: dict[str, Any]) -> bytes | videos.Frames:
    """The video in a record, whichever way it is kept."""
    if "frames" in record:
        return videos.Frames(tuple(record["frames"]), float(record["fps"]))
    return record["video"]


class TrainLoader:
    """An endless stream of this process's share of the global batches, starting at any of them."""

    def __init__(
        self,
        records: Records,
        indices: Int[np.ndarray, " N"],
        config: ConfigDict,
        *,
        start: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        self.next_batch = start
        share = config.data.batch // processes
        clips = (
            grain.MapDataset.source(indices.tolist())
            .seed(config.seed)
            .shuffle()
            .repeat()
            .random_map(Clip(records, config, training=True))
            .batch(share)
        )
        # Sub-batch i belongs to process i mod P: together they are one global batch, in order.
        mine = clips[process::processes][start:]
        threads = 0 if config.data.workers else config.data.threads
        stream = mine.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        )
        if config.data.workers:
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(config.data.workers))
        self._batches = iter(stream)

    def __next__(self) -> dict[str, np.ndarray]:
        """`{"video": uint8 b T H W 3, "index": int b}`, b the batch over the processes."""
        self.next_batch += 1
        return next(self._batches)


def evaluation_batches(
    records: Records,
    indices: Int[np.ndarray, " N"],
    config: ConfigDict,
    view: int,
    *,
    process: int = 0,
    processes: int = 1,
    clip: Clip | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the batches that cover `indices` once, in order, without augmentation.

    The last batch is filled up with the last record; the caller drops what is past `len(indices)`.
    """
    share = config.data.batch // processes
    filled = np.concatenate([indices, np.repeat(indices[-1:], -len(indices) % config.data.batch)])
    clip = clip or Clip(records, config, training=False)
    clips = (
        grain.MapDataset.source(filled.tolist()).seed(0).random_map(_View(clip, view)).batch(share)
    )[process::processes]
    threads = config.data.threads
    yield from clips.to_iter_dataset(grain.ReadOptions(threads, 2 * threads))


@dataclasses.dataclass
class _View:
    clip: Clip
    view: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return self.clip(index, rng, self.view)
