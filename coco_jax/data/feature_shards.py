"""Files of text features, called shards: written once, checked whenever they are opened, never changed.

A shard is `NUMBER-HASH.npy`. Each row has the hash of a text and its feature. HASH is that of the file's
own bytes, so its name tells whether it is damaged. There is no index: a folder contains what its shards
contain together. Independent writers only add files, so they cannot undo each other's work, and the only
operation that has to be atomic is the renaming of a single file.

If a text is in two shards, the one with the lower number counts: a run that is resumed finds the same
features as before, whatever other runs have added.

Temporary files exist only while their writer holds the lock of the folder, so whoever holds the lock may
remove all of them. Where locks do not work, a writer may lose its temporary file, and writes it again.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import re
import secrets
from collections.abc import Collection, Iterator
from typing import NamedTuple

import filelock
import ml_dtypes
import numpy as np
from jaxtyping import UInt64

from coco_jax import files
from coco_jax.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NAME = re.compile(r"\d{6,}-[0-9a-f]{32}\.npy")
LOCK, PARTIAL = "lock", ".partial"
# Files of development versions of 0.2, which had no checksums.
OLD_FORMAT = ("features.npy", "digests.npy")
LOCK_SECONDS = 60  # writing a shard takes a few seconds
WRITES = 10  # of one file, if its temporary files are removed


class Shard(NamedTuple):
    """An open shard."""

    name: str
    digests_N: UInt64[np.ndarray, " N"]  # of the texts
    features_NW: np.ndarray  # bfloat16, stored as uint16; memory-mapped


def row_type(width: int) -> np.dtype:
    """The dtype of a row: the hash of a text, and its feature (bfloat16, stored as uint16)."""
    return np.dtype([("digest", "<u8"), ("feature", "<u2", (width,))])


def pack(digests_N: UInt64[np.ndarray, " N"], features_NW: np.ndarray) -> bytes:
    """The bytes of a shard with these bfloat16 features."""
    rows_N = np.empty(len(digests_N), row_type(features_NW.shape[1]))
    rows_N["digest"], rows_N["feature"] = digests_N, features_NW.view(np.uint16)
    file = io.BytesIO()
    np.save(file, rows_N)
    return file.getvalue()


def place(name: str) -> tuple[int, str]:
    """The number and the hash of a shard: of two shards, the one with the lower place counts."""
    number, digest = name.removesuffix(".npy").split("-")
    return int(number), digest


def hash_of(name: str) -> str:
    """The hash in the name of a shard."""
    return place(name)[1]


def names(folder: pathlib.Path) -> list[str]:
    """The names of all shards in a folder, in their order; [] if the folder does not exist."""
    return sorted(filter(NAME.fullmatch, _list(folder)), key=place)


def has_litter(folder: pathlib.Path) -> bool:
    """Whether a folder has temporary files; those of killed writers stay behind."""
    return any(name.endswith(PARTIAL) for name in _list(folder))


def is_old_format(folder: pathlib.Path) -> bool:
    """Whether a folder has the files of a development version of 0.2."""
    return any((folder / name).exists() for name in OLD_FORMAT)


def read(path: pathlib.Path) -> Shard | None:
    """Opens a shard; None if the file is damaged or absent.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with files.open_regular(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest()[:32] != hash_of(path.name):
                return None
        rows_N = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); remove it") from error
    return Shard(path.name, rows_N["digest"].copy(), rows_N["feature"])


def prepare(folder: pathlib.Path, note: str) -> None:
    """Makes a folder for shards, removes what killed writers left, and stores a note in about.json.

    Raises:
      OSError: the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as locked:
        if locked:
            _remove_litter(folder)
        _write(folder / "about.json", note.encode())


def remove_litter(folder: pathlib.Path) -> None:
    """Removes the temporary files of killed writers, as far as that is possible."""
    with contextlib.suppress(OSError), _locked(folder) as locked:  # the disk may be read-only
        if locked:
            _remove_litter(folder)


def publish(folder: pathlib.Path, data: bytes, damaged: Collection[str]) -> str:
    """Adds a shard to a folder, unless the folder has it, and removes damaged ones.

    Args:
      folder: of the shards.
      data: bytes of the shard.
      damaged: names of shards that were found damaged. Another writer may have replaced them since, so
        they are read again.

    Returns:
      The name of the shard.

    Raises:
      OSError: it cannot be written, e.g. because the disk is full. No temporary file is left.
    """
    digest = hashlib.sha256(data).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as locked:
        if locked:
            _remove_litter(folder)
            broken = [name for name in damaged if read(folder / name) is None]
            for name in (*broken, *OLD_FORMAT):
                (folder / name).unlink(missing_ok=True)
        present = names(folder)
        for name in present:
            if hash_of(name) == digest and read(folder / name) is not None:
                return name
        number = 1 + max((place(name)[0] for name in present), default=0)
        name = f"{number:06d}-{digest}.npy"
        _write(folder / name, data)
    return name


def _list(folder: pathlib.Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); check config.data.dir"
        ) from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[bool]:
    """Locks a folder; the value is False if that is not possible.

    Without the lock shards can still be added. Only litter is not removed, and two shards may get the
    same number.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.01)
    except OSError:  # also filelock.Timeout; not every file system has locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _remove_litter(folder: pathlib.Path) -> None:
    for name in _list(folder):
        if name.endswith(PARTIAL):
            (folder / name).unlink(missing_ok=True)


def _write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that appears complete or not at all."""
    for attempt in range(WRITES):
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            break
        except FileNotFoundError:  # removed by a writer that believes that it has the lock
            if attempt == WRITES - 1:
                raise
        finally:
            partial.unlink(missing_ok=True)
    # The data are on the disk. If a power failure loses the new name, the texts are encoded again.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
