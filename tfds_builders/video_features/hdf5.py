"""Reads features from HDF5 files that others made, in a process of its own.

An HDF5 file may refer to other files: through links, through values that are stored outside, and through
virtual arrays. Only arrays of numbers inside the file are read, and their sizes are checked before that.
On some damaged files the HDF5 library crashes or never returns; then only the child process ends.
"""

import contextlib
import math
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from typing import IO, Any

import numpy as np

from coco_jax.arrays import MAX_BYTES, NUMBERS
from coco_jax.files import open_regular
from tfds_builders.common import child
from tfds_builders.video_features.vectors import vector

MAX_BLOCK = (
    64 << 20
)  # bytes of a chunk, which HDF5 decompresses at once, and of what is read at once
MAX_RATIO = 50  # an array of more than `MAX_BYTES` has at most so many times the bytes of its file
MAX_ID = 1000  # bytes of an id
CHILD_MEMORY = 2 << 30  # bytes of the address space of the child
# A message of the child: its kind, then the number of bytes of the ids, and the rows and columns of a
# float32 matrix. These follow.
_MESSAGE = struct.Struct("<cQQQ")
_VECTORS, _SCALAR, _ERROR, _END = b"V", b"S", b"E", b"."


def read(path: pathlib.Path, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `(id, features)` of the wanted videos in an HDF5 file; features as from `vector`.

    Args:
      path: a file with arrays `features` [N, ...] and `ids` [N], or one array per video.
      wanted: ids of videos.

    Raises:
      OSError: the file cannot be read, or is not a regular file.
      ValueError: it is damaged, refers to other files, is a decompression bomb, or has anything but real
        numbers.
    """
    open_regular(path).close()
    process = child.start(
        "tfds_builders.video_features.hdf5",
        os.fspath(path),
        str(child.CPU_SECONDS),
        stdin=subprocess.PIPE,
    )
    assert process.stdin
    try:
        # If the child has ended, `_receive` says so.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write("\0".join(wanted).encode())
        while (message := _receive(process)) is not None:
            ids, features = message
            yield from zip(ids, features, strict=True)
    finally:
        child.stop(process)


def _receive(process: subprocess.Popen) -> tuple[list[str], np.ndarray] | None:
    """The next ids and features; None at the end."""
    assert process.stdout
    head = process.stdout.read(_MESSAGE.size)
    if len(head) < _MESSAGE.size:
        child.raise_reason(process, "HDF5", "a part of it")
    kind, size, rows, columns = _MESSAGE.unpack(head)
    text = process.stdout.read(size).decode()
    if kind == _ERROR:
        raise ValueError(text)
    if kind == _END:
        return None
    shape = (rows,) if kind == _SCALAR else (rows, columns)
    values = np.frombuffer(process.stdout.read(4 * math.prod(shape)), np.float32)
    return text.split("\0") if rows else [], values.reshape(shape)


def _send(stream: IO[bytes], kind: bytes, text: str, values: np.ndarray | None = None) -> None:
    encoded, shape = text.encode(), (0, 0) if values is None else (*values.shape, 0)[:2]
    stream.write(_MESSAGE.pack(kind, len(encoded), *shape) + encoded)
    if values is not None:
        stream.write(values.tobytes())


def main() -> None:
    """The child: reads the ids from stdin, and writes messages to stdout."""
    import h5py

    out, wanted = sys.stdout.buffer, set(sys.stdin.buffer.read().decode().split("\0"))
    child.limit_memory(CHILD_MEMORY)
    child.limit_time(float(sys.argv[2]))
    try:
        path = sys.argv[1]
        with h5py.File(path, "r") as file:
            for ids, features in wanted_features(File(file, os.stat(path).st_size), wanted):
                kind = _SCALAR if features.ndim == 1 else _VECTORS
                _send(out, kind, "\0".join(ids), features)
                child.limit_time(float(sys.argv[2]))
        _send(out, _END, "")
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        _send(out, _ERROR, " ".join(str(error).split())[:500] or "not enough memory")


def wanted_features(file: "File", wanted: set[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields some of the wanted ids and their features, as an array [n] or [n, D]."""
    if not {"features", "ids"} <= file.names:
        for name in sorted(file.names & wanted):
            yield [name], vector(file.numbers(name)[()])[None]
        return
    features, ids = file.numbers("features"), file.ids("ids")
    count = len(file.array("ids"))
    if features.shape[:1] != (count,):
        raise ValueError(
            f"{count} ids for features of shape {features.shape}; give one id per row of features"
        )
    for block in blocks(features):
        names = [
            name for _, name in zip(block, ids, strict=False)
        ]  # the others are in later blocks
        rows = [n for n, name in enumerate(names) if name in wanted]
        found = [vector(block[n]) for n in rows]
        yield [names[n] for n in rows], np.stack(found) if found else np.zeros((0, 0), np.float32)


class File:
    """An open HDF5 file of `size` bytes; only the arrays at its top level are read."""

    def __init__(self, file: Any, size: int):
        self._file, self._size = file, size
        self.names = set(file)

    def array(self, name: str) -> Any:
        """An array of the file, as an `h5py.Dataset`; its values are not read.

        Raises:
          ValueError: it is a link or a group, its values are in other files, it is compressed by an
            unknown method, or is much larger than the file.
        """
        import h5py

        if self._file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{name!r} is a link; store the array itself")
        found = self._file[name]
        if not isinstance(found, h5py.Dataset):
            raise ValueError(f"{name!r} is not an array")
        stored = found.id.get_create_plist()
        # Before anything else: to find the shape of a virtual array, HDF5 opens the other files.
        if stored.get_layout() == h5py.h5d.VIRTUAL or stored.get_external_count():
            raise ValueError(f"the values of {name!r} are in other files; store them in this one")
        if found.shape is None:
            raise ValueError(f"{name!r} is not an array")
        known = {
            h5py.h5z.FILTER_DEFLATE,
            h5py.h5z.FILTER_SHUFFLE,
            h5py.h5z.FILTER_FLETCHER32,
            h5py.h5z.FILTER_LZF,
            h5py.h5z.FILTER_SCALEOFFSET,
        }
        filters = {stored.get_filter(n)[0] for n in range(stored.get_nfilters())}
        if filters - known:
            raise ValueError(f"{name!r} is compressed by other methods than gzip and lzf")
        width = found.dtype.itemsize
        if width * math.prod(found.chunks or (1,)) > MAX_BLOCK:
            raise ValueError(
                f"{name!r} has chunks of more than {MAX_BLOCK:,} bytes; use smaller ones"
            )
        total = width * math.prod(found.shape)
        if total > MAX_BYTES and total > MAX_RATIO * self._size:
            raise ValueError(
                f"{name!r} has {total:,} bytes, more than {MAX_BYTES:,} and more than {MAX_RATIO} times "
                "the size of the file"
            )
        return found

    def numbers(self, name: str) -> Any:
        """An array of real numbers, as an `h5py.Dataset`.

        Raises:
          ValueError: as `array`; or it has anything but numbers.
        """
        found = self.array(name)
        if found.dtype.kind not in NUMBERS or found.dtype.hasobject:
            raise ValueError(f"{name!r} has values of type {found.dtype}; store real numbers")
        return found

    def ids(self, name: str) -> Iterator[str]:
        """The strings, or integers as strings, of an array [N].

        Raises:
          ValueError: as `array`; or it has other values, or is not of this shape.
        """
        import h5py

        found = self.array(name)
        text = h5py.check_string_dtype(found.dtype)
        if not (text or found.dtype.kind in "iu") or found.ndim != 1:
            raise ValueError(f"{name!r} is not a list of strings")
        # A string of variable length may have any length, and many may share the same bytes.
        longest = self._size if text and text.length is None else found.dtype.itemsize
        step = max(MAX_BLOCK // max(longest, 8), 1)
        for start in range(0, len(found), step):
            for value in found[start : start + step]:
                if isinstance(value, bytes):
                    if len(value) > MAX_ID:
                        raise ValueError(f"{name!r} has an id of {len(value):,} bytes")
                    yield value.decode()
                else:
                    yield str(value)


def blocks(features: Any) -> Iterator[np.ndarray]:
    """Yields the rows of an array [N, ...], many at a time: to read them singly is slow.

    Raises:
      ValueError: one row is too large.
    """
    row = features.dtype.itemsize * math.prod(features.shape[1:])
    if row > MAX_BLOCK:
        raise ValueError(f"the features of one video have {row:,} bytes, more than {MAX_BLOCK:,}")
    step = max(MAX_BLOCK // max(row, 1), 1)
    for start in range(0, len(features), step):
        yield features[start : start + step]


if __name__ == "__main__":
    main()
