"""Makes batches of records: sample, decode, augment, batch, split over processes; Grain for videos.

The order depends only on the seed: global batch n has the same clips with the same augmentation for
any number of processes and workers, and after a resume. Videos that cannot be decoded are always
replaced by the same clips.
"""

import dataclasses
import functools
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import logging
from jaxtyping import Float32, Int
from ml_collections import ConfigDict

from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.dataset import Records
from coco_jax.errors import UserError
from coco_jax.printing import printable

TRIES = 10  # candidates of the same class to try as a replacement of a corrupt video


@dataclasses.dataclass
class TrainClip:
    """Reads training clips; replaces a video that cannot be decoded by another of its class."""

    clip: ClipReader
    records: Records
    peers: Mapping[int, Int[np.ndarray, " n"]]  # the training records of each label
    failed: set[int] = dataclasses.field(default_factory=set)

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads record `index`, or a replacement.

        Returns:
          The clip, as `ClipReader` returns it, and `broken`: `index` if it was replaced, else -1.

        Raises:
          UserError: none of `TRIES` other videos of the class can be decoded either.
        """
        # A video that fails uses `rng`, but not if this process already knows that it fails.
        # Restore the state of `rng`, so that the result is the same in both cases.
        untouched = rng.bit_generator.state
        if (found := self._attempt(index, rng)) is not None:
            return found | {"broken": -1}
        rng.bit_generator.state = untouched
        records = self.records
        peers = self.peers[int(records.labels[index])]
        order = rng.permutation(peers[peers != index])[:TRIES].tolist()
        untouched = rng.bit_generator.state
        for other in order:
            if (found := self._attempt(other, rng)) is not None:
                return found | {"broken": index}
            rng.bit_generator.state = untouched
        ids = ", ".join(records.video_ids[i] for i in (index, *order))
        raise UserError(f"no video of one class can be decoded ({ids}); build the dataset again")

    def _attempt(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        if index in self.failed:
            return None
        try:
            return self.clip(index, rng)
        except videos.VideoError:
            self.failed.add(index)
            return None


def _ignore_signals(worker: int, workers: int) -> None:
    """Makes worker processes ignore signals: the parent saves a checkpoint, then stops them."""
    del worker, workers
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class FeatureLoader:
    """An infinite iterator over this process's share of the global batches of stored features.

    Each epoch has every record once, in a new random order. Stored features are never corrupt, so
    `broken` stays empty.
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
        self._records, self._indices, self._config = records, indices, config
        self._process, self._processes = process, processes
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([config.seed, epoch]).permutation(indices)
        )

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, `{"video": float32 b F, "index": int b}`; see `TrainLoader`."""
        batch = self._config.data.batch
        place_B = np.arange(self.next_batch * batch, (self.next_batch + 1) * batch)
        self.next_batch += 1
        epoch_B, place_B = np.divmod(place_B, len(self._indices))
        index_B = np.concatenate(
            [self._order(epoch)[place_B[epoch_B == epoch]] for epoch in np.unique(epoch_B).tolist()]
        )
        index_b = np.split(index_B, self._processes)[self._process]
        return {"video": stored_features(self._records, index_b, self._config), "index": index_b}


def stored_features(
    records: Records, indices_N: Int[np.ndarray, " N"], config: ConfigDict
) -> Float32[np.ndarray, "N F"]:
    """Stored features of records, kept in memory with `config.data.cache`."""
    return records.features(indices_N, config.video_tower.feature_dim, config.data.cache)


class TrainLoader:
    """An infinite iterator over this process's share of the global batches, from batch `start` on.

    `broken` has the records that could not be decoded so far; each is logged once.
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
        self._records = records
        self._clip = ClipReader(config, training=True, records=records)
        labels_N = records.labels[indices]
        peers = {int(label): indices[labels_N == label] for label in np.unique(labels_N)}
        share = config.data.batch // processes
        clips = (
            grain.MapDataset.source(indices.tolist())
            .seed(config.seed)
            .shuffle()
            .repeat()
            .random_map(TrainClip(self._clip, records, peers))
            .batch(share)
        )
        # Process p reads sub-batches p, p + P, ...; P consecutive sub-batches are one global batch.
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
        """The next batch, `{"video": uint8 b T H W 3, "index": int b, "broken": int b}`.

        b is the batch size divided by the number of processes. `index` is the record that was read;
        `broken` is the corrupt record that it replaces, or -1.
        """
        self.next_batch += 1
        batch = next(self._batches)
        for index in set(batch["broken"].tolist()) - self.broken - {-1}:
            self.broken.add(index)
            logging.warning(
                "%s; it is replaced by another video of its class (%d replaced so far)",
                printable(self._reason(index)),
                len(self.broken),
            )
        return batch

    def _reason(self, index: int) -> str:
        """The reason why a video cannot be decoded. Decodes it again: a worker may have failed."""
        try:
            self._clip(index, np.random.default_rng(0))
        except videos.VideoError as error:
            return str(error)
        return f"{self._records.video_ids[index]}: could not be decoded"


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
    """This process's share of batches with each of `indices` once, in order, without augmentation.

    The last batch is padded with the last record; the caller must drop the padding.
    """
    share = config.data.batch // processes
    filled = np.concatenate([indices, np.repeat(indices[-1:], -len(indices) % config.data.batch)])
    if config.video_tower.kind == "features":
        for index_b in filled.reshape(-1, share)[process::processes]:
            yield {"video": stored_features(records, index_b, config), "index": index_b}
        return
    clip = clip or ClipReader(config, training=False, records=records)
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
