"""Records to batches with Grain: sample, decode, augment, batch, share among processes.

The order is a pure function of the seed: global batch n holds the same clips, augmented the same
way, whatever the number of processes and workers, and wherever the run was taken up again. That holds
for what takes the place of a video that cannot be decoded, too.
"""

import dataclasses
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import logging
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from coco_jax.data import video as videos
from coco_jax.data.dataset import Records
from coco_jax.errors import UserError

TRIES = 10  # videos of a class that are tried in the place of one that cannot be decoded


@dataclasses.dataclass
class TrainClip:
    """A clip for training; where the video cannot be decoded, one of another video of its class."""

    clip: "ClipReader"
    peers: Mapping[int, Int[np.ndarray, " n"]]  # of each label, the records that may be shown
    failed: set[int] = dataclasses.field(default_factory=set)

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Record `index`, or its replacement, as `ClipReader` gives it, and `broken`: `index`, or -1.

        Raises:
          UserError: no video of the class can be decoded, of `TRIES` that were tried.
        """
        # What a failing video drew from `rng` depends on what is known of it here already.
        untouched = rng.bit_generator.state
        if (found := self._attempt(index, rng)) is not None:
            return found | {"broken": -1}
        rng.bit_generator.state = untouched
        peers = self.peers[int(self.clip.records.labels[index])]
        order = rng.permutation(peers[peers != index])[:TRIES].tolist()
        untouched = rng.bit_generator.state
        for other in order:
            if (found := self._attempt(other, rng)) is not None:
                return found | {"broken": index}
            rng.bit_generator.state = untouched
        ids = ", ".join(self.clip.records.video_ids[i] for i in (index, *order))
        raise UserError(f"no video of one class can be decoded ({ids}); build the dataset again")

    def _attempt(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        if index in self.failed:
            return None
        try:
            return self.clip(index, rng)
        except videos.VideoError:
            self.failed.add(index)
            return None


@dataclasses.dataclass
class ClipReader:
    """Decodes one record into a clip of `config.video_tower.frames` square frames."""

    records: Records
    config: ConfigDict
    training: bool
    decoded: dict[int, tuple[np.ndarray, videos.VideoInfo]] = dataclasses.field(
        default_factory=dict
    )

    def __call__(self, index: int, rng: np.random.Generator, view: int = 0) -> dict[str, Any]:
        """Record `index` as `{"video": uint8 T H W 3, "index": int}`; `view` matters in evaluation."""
        video, data = self.config.video_tower, self.config.data
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
        side = round(self.config.video_tower.size / self.config.data.crop)
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
        size, data = self.config.video_tower.size, self.config.data
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


def _ignore_signals(worker: int, workers: int) -> None:
    """The process that workers belong to decides when they end: it may have a step to save."""
    del worker, workers
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class TrainLoader:
    """An endless stream of this process's share of the global batches, starting at any of them.

    `broken` are the records that could not be decoded so far, each logged once.
    """

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
        self.next_batch, self.broken = start, set[int]()
        self._clip = ClipReader(records, config, training=True)
        labels_N = records.labels[indices]
        peers = {int(label): indices[labels_N == label] for label in np.unique(labels_N)}
        share = config.data.batch // processes
        clips = (
            grain.MapDataset.source(indices.tolist())
            .seed(config.seed)
            .shuffle()
            .repeat()
            .random_map(TrainClip(self._clip, peers))
            .batch(share)
        )
        # Sub-batch i belongs to process i mod P: together they are one global batch, in order.
        mine = clips[process::processes][start:]
        threads = 0 if config.data.workers else config.data.threads
        stream = mine.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        )
        if config.data.workers:
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(config.data.workers), worker_init_fn=_ignore_signals
            )
        self._batches = iter(stream)

    def __next__(self) -> dict[str, np.ndarray]:
        """`{"video": uint8 b T H W 3, "index", "broken": int b}`, b the batch over the processes.

        `index` is the record shown, `broken` the one whose place it takes, or -1.
        """
        self.next_batch += 1
        batch = next(self._batches)
        for index in set(batch["broken"].tolist()) - self.broken - {-1}:
            self.broken.add(index)
            logging.warning(
                "%s; another video of its class takes its place (%d such so far)",
                self._reason(index), len(self.broken),
            )  # fmt: skip
        return batch

    def _reason(self, index: int) -> str:
        """Why a video cannot be decoded; who found out may have been another process."""
        try:
            self._clip(index, np.random.default_rng(0))
        except videos.VideoError as error:
            return str(error)
        return f"{self._clip.records.video_ids[index]}: could not be decoded"


def evaluation_batches(
    records: Records,
    indices: Int[np.ndarray, " N"],
    config: ConfigDict,
    view: int,
    *,
    process: int = 0,
    processes: int = 1,
    clip: ClipReader | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the batches that cover `indices` once, in order, without augmentation.

    The last batch is filled up with the last record; the caller drops what is past `len(indices)`.
    """
    share = config.data.batch // processes
    filled = np.concatenate([indices, np.repeat(indices[-1:], -len(indices) % config.data.batch)])
    clip = clip or ClipReader(records, config, training=False)
    clips = (
        grain.MapDataset.source(filled.tolist()).seed(0).random_map(_View(clip, view)).batch(share)
    )[process::processes]
    threads = config.data.threads
    yield from clips.to_iter_dataset(grain.ReadOptions(threads, 2 * threads))


@dataclasses.dataclass
class _View:
    clip: ClipReader
    view: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return self.clip(index, rng, self.view)
