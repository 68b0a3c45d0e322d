"""A cache on disk of the features that a frozen text tower gives for each text.

A cache is a folder named by its key, a hash of the tower's parameters and architecture, the tokenizer
and the length of texts. It has `features.npy` (bfloat16, stored as uint16, memory-mapped) and
`digests.npy` (a 64-bit hash of the text of each row). Texts that are missing are encoded and added.
A changed tower, tokenizer or text has another hash, so stale features are never used.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
from jaxtyping import Int, UInt64

from coco_jax.data.corpus import DescriptionSampler, check_described
from coco_jax.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FEATURES, DIGESTS, ABOUT = "features.npy", "digests.npy", "about.json"


@dataclasses.dataclass(frozen=True)
class TextFeatureCache:
    """Features of texts, looked up by the text."""

    features_NW: np.ndarray  # bfloat16, memory-mapped
    digests_N: UInt64[np.ndarray, " N"]
    order_N: Int[np.ndarray, " N"]  # sorts the digests

    @classmethod
    def open(cls, folder: pathlib.Path) -> "TextFeatureCache":
        """Opens a folder.

        Raises:
          UserError: the cache is damaged.
        """
        try:
            stored = np.lib.format.open_memmap(folder / FEATURES, "r")
            digests_N = np.lib.format.open_memmap(folder / DIGESTS, "r")
            if stored.dtype != np.uint16 or stored.ndim != 2 or len(stored) != len(digests_N):
                raise ValueError(f"{len(digests_N)} digests for features {stored.shape}")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{folder}: the text feature cache is damaged ({error}); remove the folder and run "
                "again to rebuild it"
            ) from error
        return cls(stored.view(BFLOAT16), digests_N, np.argsort(digests_N, kind="stable"))

    def rows(self, digests_X: UInt64[np.ndarray, " X"]) -> Int[np.ndarray, " X"]:
        """The row of each digest; -1 if it is missing."""
        if not len(self.digests_N):
            return np.full(len(digests_X), -1)
        sorted_N = self.digests_N[self.order_N]
        at_X = np.searchsorted(sorted_N, digests_X).clip(0, len(sorted_N) - 1)
        return np.where(sorted_N[at_X] == digests_X, self.order_N[at_X], -1)

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """The features of texts, bfloat16 `X W`.

        Raises:
          KeyError: a text is missing.
        """
        return self.features_NW[self._rows_of(texts)]

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
        return FeatureSampler(self.features_NW, np.concatenate([np.zeros(0, int), *rows]), counts_K)

    def _rows_of(self, texts: Sequence[str]) -> Int[np.ndarray, " X"]:
        rows_X = self.rows(digests(texts))
        if (rows_X < 0).any():
            raise KeyError(f"{int((rows_X < 0).sum())} texts are not in the cache")
        return rows_X


class FeatureSampler(DescriptionSampler):
    """Draws descriptions as features, directly from the memory-mapped file."""

    def __init__(
        self,
        features_NW: np.ndarray,
        row_X: Int[np.ndarray, " X"],
        counts_K: Int[np.ndarray, " K"],
    ):
        super().__init__(features_NW, counts_K)
        self.row_X = row_X

    def _take(self, places_KM: Int[np.ndarray, "K M"]) -> np.ndarray:
        # View as uint16: NumPy copies rows of its own types faster than those of extension types.
        rows_KM = self.row_X[places_KM]
        return self.rows_N.view(np.uint16)[rows_KM].view(BFLOAT16)


def digests(texts: Sequence[str]) -> UInt64[np.ndarray, " X"]:
    """A 64-bit hash of each text."""
    made = b"".join(hashlib.blake2b(t.encode("utf-8"), digest_size=8).digest() for t in texts)
    return np.frombuffer(made, np.uint64)


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
) -> TextFeatureCache:
    """Opens the cache in `folder` after encoding and adding the texts that are missing.

    Args:
      folder: of the cache, named by its key.
      texts: any number, repeats allowed.
      encode: a function from at most `batch` texts to float features `X W`.
      width: W.
      batch: texts in each call of `encode`.
      about: further entries of about.json.

    Raises:
      UserError: the cache is damaged, or its disk is full.
    """
    store = TextFeatureCache.open(folder) if folder.is_dir() else _empty(width)
    digests_X = digests(texts)
    missing_X = np.flatnonzero(store.rows(digests_X) < 0)
    _, first = np.unique(digests_X[missing_X], return_index=True)
    # Texts of similar lengths together, so that `encode` can leave out most of the padding.
    missing = sorted((texts[i] for i in missing_X[np.sort(first)]), key=len)
    if not missing:
        return store
    had = len(store.digests_N)
    print(f"text features {folder}: encoding {len(missing):,} texts once", file=sys.stderr)
    try:
        with _replacing(folder) as partial:
            out = np.lib.format.open_memmap(
                partial / FEATURES, "w+", np.uint16, (had + len(missing), width)
            )
            for at in range(0, had, 1 << 16):
                old_NW = store.features_NW[at : at + (1 << 16)]
                out[at : at + len(old_NW)] = old_NW.view(np.uint16)
            began = time.monotonic()
            for at in range(0, len(missing), batch):
                got = np.asarray(encode(missing[at : at + batch])).astype(BFLOAT16)
                out[had + at : had + at + len(got)] = got.view(np.uint16)
                _progress(at + len(got), len(missing), began)
            out.flush()
            del out
            np.save(partial / DIGESTS, np.concatenate([store.digests_N, digests(missing)]))
            note = {"texts": had + len(missing), "width": width, **(about or {})}
            (partial / ABOUT).write_text(json.dumps(note, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder}: the text feature cache cannot be written ({error.strerror}); it takes "
            f"{2 * width * (had + len(missing)) / 1e9:.1f} GB there; free some space, or "
            "set config.data.dir"
        ) from error
    return TextFeatureCache.open(folder)


def _empty(width: int) -> TextFeatureCache:
    return TextFeatureCache(
        np.zeros((0, width), BFLOAT16), np.zeros(0, np.uint64), np.zeros(0, np.int64)
    )


@contextlib.contextmanager
def _replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a temporary folder that replaces `folder` at the end of the with block."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
        if folder.is_dir():
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:  # another process has just written the same texts
            if not folder.is_dir():
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _progress(done: int, total: int, began: float) -> None:
    if sys.stderr.isatty():
        pace = done / max(time.monotonic() - began, 1e-9)
        end = "\n" if done == total else ""
        line = f"\r\033[K{done:,} of {total:,} texts  {pace:,.0f} per second"
        print(line, end=end, file=sys.stderr, flush=True)
