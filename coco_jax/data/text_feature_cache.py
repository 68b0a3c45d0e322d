"""A cache on disk of the features that a frozen text tower gives for each text.

A cache is a folder of shards (feature_shards.py) named by its key, a hash of the tower's parameters and
architecture, the tokenizer and the length of texts. A text is found by its 64-bit hash. Texts that are
missing are encoded and added. A changed tower, tokenizer or text has another hash, so stale features are
never used. Texts of damaged shards count as missing.

In a run of several processes, all of them use the same shards and encode the same texts: encoding is a
collective, and features must not differ between processes. Each process reads the cache on its own disk;
the disk may be shared or not.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, UInt64

from coco_jax.data import feature_shards
from coco_jax.data.corpus import DescriptionSampler, check_described
from coco_jax.data.feature_shards import BFLOAT16
from coco_jax.errors import UserError

T = TypeVar("T")
SHARD_BYTES = 1 << 26  # held in memory until they are written; a kill loses at most as much


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run."""

    index: int  # of this process
    gather: Callable[[Any], list[Any]]  # the JSON values of all processes, by index; a collective


ALONE = Processes(0, lambda value: [value])


@dataclasses.dataclass(frozen=True)
class TextFeatureCache:
    """Features of texts, looked up by the text."""

    width: int
    shards: Sequence[feature_shards.Shard]
    starts_S: Int[np.ndarray, " S"]  # the number of rows before each shard
    digests_N: UInt64[np.ndarray, " N"]  # sorted
    order_N: Int[np.ndarray, " N"]  # the row of each of these digests

    @classmethod
    def of(cls, shards: Sequence[feature_shards.Shard], width: int) -> "TextFeatureCache":
        """A cache with the rows of shards; of a text in several of them, the first row counts."""
        sizes_S = np.array([len(shard.digests_N) for shard in shards], np.int64)
        digests_N = np.concatenate([np.zeros(0, np.uint64), *(x.digests_N for x in shards)])
        order_N = np.argsort(digests_N, kind="stable")
        return cls(width, shards, np.cumsum(sizes_S) - sizes_S, digests_N[order_N], order_N)

    def __len__(self) -> int:
        return len(self.digests_N)

    def rows(self, digests_X: UInt64[np.ndarray, " X"]) -> Int[np.ndarray, " X"]:
        """The row of each digest; -1 if it is missing."""
        if not len(self):
            return np.full(len(digests_X), -1)
        at_X = np.searchsorted(self.digests_N, digests_X).clip(0, len(self) - 1)
        return np.where(self.digests_N[at_X] == digests_X, self.order_N[at_X], -1)

    def take(self, rows: Int[np.ndarray, "..."]) -> np.ndarray:
        """The features of rows, bfloat16 `... W`."""
        order_X = np.argsort(rows, axis=None)
        row_X = rows.ravel()[order_X]
        found_XW = np.empty((len(row_X), self.width), np.uint16)
        edges = np.searchsorted(row_X, [*self.starts_S, len(self)])
        parts = zip(self.shards, self.starts_S, edges[:-1], edges[1:], strict=True)
        for shard, start, begin, end in parts:
            if begin < end:
                found_XW[order_X[begin:end]] = shard.features_NW[row_X[begin:end] - start]
        return found_XW.view(BFLOAT16).reshape(*rows.shape, self.width)

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """The features of texts, bfloat16 `X W`.

        Raises:
          KeyError: a text is missing.
        """
        return self.take(self._rows_of(texts))

    def sampler(
        self, texts: Mapping[str, Sequence[str]], classes: Sequence[str]
    ) -> "FeatureSampler":
        """A sampler of the descriptions of `classes`.

        Raises:
          UserError: a class has no description.
        """
        check_described(texts, classes)
        rows = [self._rows_of(texts[name]) for name in classes]
        counts_K = np.array([len(x) for x in rows], np.int64)
        return FeatureSampler(self, np.concatenate([np.zeros(0, int), *rows]), counts_K)

    def _rows_of(self, texts: Sequence[str]) -> Int[np.ndarray, " X"]:
        rows_X = self.rows(digests(texts))
        if (rows_X < 0).any():
            raise KeyError(f"{int((rows_X < 0).sum())} texts are not in the cache")
        return rows_X


class FeatureSampler(DescriptionSampler):
    """Draws descriptions as features, directly from the memory-mapped files."""

    def __init__(
        self, cache: TextFeatureCache, row_X: Int[np.ndarray, " X"], counts_K: Int[np.ndarray, " K"]
    ):
        super().__init__(row_X, counts_K)
        self.cache = cache

    def _take(self, places_KM: Int[np.ndarray, "K M"]) -> np.ndarray:
        return self.cache.take(self.rows_N[places_KM])


def digests(texts: Sequence[str]) -> UInt64[np.ndarray, " X"]:
    """A 64-bit hash of each text."""
    hashes = (hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(x, "little") for x in hashes), np.uint64, len(texts))


def key(parts: Sequence[bytes]) -> str:
    """The name of a cache: a hash of all that its features depend on, except the texts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:24]


def fill(
    folder: pathlib.Path,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    width: int,
    *,
    batch: int = 1024,
    about: Mapping[str, str] | None = None,
    processes: Processes = ALONE,
) -> TextFeatureCache:
    """Opens the cache in `folder` after encoding and adding the texts that are missing.

    Several processes call this together, with the same arguments except `folder`. An error in one of
    them is raised in all.

    Args:
      folder: of the cache, named by its key.
      texts: any number, repeats allowed.
      encode: a function from at most `batch` texts to float features `X W`, the same in all processes.
      width: W.
      batch: texts in each call of `encode`.
      about: entries of about.json, which tells people what the cache is.
      processes: of the run.

    Raises:
      UserError: the disk is full or cannot be written or read, features are not finite, or the processes
        have different texts.
    """
    digests_X = digests(texts)
    task = hashlib.sha256(folder.name.encode() + digests_X.tobytes()).hexdigest()
    view = _View(folder, width, processes)
    view.look()
    store = view.agree(task)
    missing_X = np.flatnonzero(store.rows(digests_X) < 0)
    if not len(missing_X):
        return store
    _, first = np.unique(digests_X[missing_X], return_index=True)
    # Texts of similar lengths together, so that `encode` can leave out most of the padding.
    missing_Y = np.array(sorted(missing_X[np.sort(first)], key=lambda i: len(texts[i])))
    view.prepare(len(missing_Y), json.dumps({"width": width, **(about or {})}, indent=1) + "\n")
    began = time.monotonic()
    rows = max(1, SHARD_BYTES // feature_shards.row_type(width).itemsize)
    for start in range(0, len(missing_Y), rows):
        part_Z = missing_Y[start : start + rows]
        features_ZW = np.empty((len(part_Z), width), BFLOAT16)
        for at in range(0, len(part_Z), batch):
            got = np.asarray(encode([texts[i] for i in part_Z[at : at + batch]])).astype(BFLOAT16)
            if not np.isfinite(got).all():
                raise UserError(
                    f"{folder}: the text tower gives features that are not finite; check "
                    "config.text_tower.weights and config.model.dtype"
                )
            features_ZW[at : at + len(got)] = got
            if processes.index == 0:
                _progress(start + at + len(got), len(missing_Y), began)
        view.publish(feature_shards.pack(digests_X[part_Z], features_ZW))
    view.look()  # others may have added shards with lower numbers
    return view.agree(task)


class _View:
    """What this process sees of a cache, and what all processes agree on."""

    def __init__(self, folder: pathlib.Path, width: int, processes: Processes):
        self.folder, self.width, self.processes = folder, width, processes
        self.shards: dict[str, feature_shards.Shard] = {}  # by hash
        self.damaged: list[str] = []
        self.missing = 0

    def look(self) -> None:
        """Opens all shards in the folder, and removes what killed writers left."""
        # On a network disk, the list that another process sees may be a minute old, but it can open the
        # files by name.
        first = self._together(lambda: feature_shards.names(self.folder), only_first=True)[0]

        def look() -> list[str]:
            if feature_shards.has_litter(self.folder):
                feature_shards.remove_litter(self.folder)
            found = feature_shards.names(self.folder)
            self.damaged = [name for name in found if not self._open(name)]
            for name in set(first).difference(found):
                self._open(name)
            return [str(self.folder / name) for name in self.damaged]

        for path in sorted(set().union(*self._together(look))):
            self._say(
                f"{path}: THE FILE IS DAMAGED and is not used; missing texts are encoded again"
            )

    def agree(self, task: str) -> TextFeatureCache:
        """The cache of all shards that every process has open, in the order of process 0.

        Args:
          task: a hash of what a process needs; it has to be the same in all of them.
        """
        order = sorted(self.shards, key=lambda x: feature_shards.place(self.shards[x].name))
        wanted = self.processes.gather({"task": task, "shards": order})
        if any(want["task"] != task for want in wanted):
            raise UserError(
                f"{self.folder}: the processes have different texts or text towers; the files of "
                "config.data.dir and config.text_tower.weights have to be the same on all hosts"
            )
        everywhere = set(order).intersection(*(want["shards"] for want in wanted))
        chosen = [digest for digest in wanted[0]["shards"] if digest in everywhere]
        return TextFeatureCache.of([self.shards[digest] for digest in chosen], self.width)

    def prepare(self, missing: int, note: str) -> None:
        """Makes the folder, and prints how many texts will be encoded."""
        self.missing = missing
        if feature_shards.is_old_format(self.folder):
            self._say(f"{self.folder}: of an older format without checksums; encoding it again")
        self._say(f"text features {self.folder}: encoding {missing:,} texts once")
        self._together(lambda: feature_shards.prepare(self.folder, note), only_first=True)

    def publish(self, data: bytes) -> None:
        """Adds a shard, once on each disk: process 0 writes it, then all that do not see the file."""

        def write() -> str:
            name = feature_shards.publish(self.folder, data, self.damaged)
            if not self._open(name):
                raise UserError(f"{self.folder / name}: damaged as soon as written; check the disk")
            return name

        name = self._together(write, only_first=True)[0]
        self._together(lambda: None if self._open(name) else write())

    def _open(self, name: str) -> bool:
        """Opens a shard, unless it is open; False if it is damaged or absent."""
        digest = feature_shards.hash_of(name)
        if digest not in self.shards:
            shard = feature_shards.read(self.folder / name)
            if shard is None:
                return False
            self.shards[digest] = shard
        return True

    def _together(self, action: Callable[[], T], only_first: bool = False) -> list[T]:
        """Runs an action in all processes, or in process 0; returns the results of all.

        Raises:
          UserError: the action failed in some process.
        """
        result, failure = None, None
        if self.processes.index == 0 or not only_first:
            try:
                result = action()
            except UserError as error:
                failure = error
            except OSError as error:
                size = self.missing * feature_shards.row_type(self.width).itemsize / 1e9
                failure = UserError(
                    f"{self.folder}: the text feature cache cannot be written ({error.strerror}); "
                    f"{self.missing:,} texts take {size:.1f} GB there; free some space, or set "
                    "config.data.dir. Texts that were written are not encoded again"
                )
        answers = self.processes.gather({"result": result, "error": failure and str(failure)})
        if failure is not None:
            raise failure
        for other, answer in enumerate(answers):
            if answer["error"] is not None:
                raise UserError(f"process {other}: {answer['error']}")
        return [answer["result"] for answer in answers]

    def _say(self, line: str) -> None:
        if self.processes.index == 0:
            print(line, file=sys.stderr)


def _progress(done: int, total: int, began: float) -> None:
    if sys.stderr.isatty():
        pace = done / max(time.monotonic() - began, 1e-9)
        end = "\n" if done == total else ""
        line = f"\r\033[K{done:,} of {total:,} texts  {pace:,.0f} per second"
        print(line, end=end, file=sys.stderr, flush=True)
