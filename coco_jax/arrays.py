"""Reads .npy and .npz files that others made; their sizes are checked before their values are read."""

import contextlib
import lzma
import math
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np

from coco_jax.files import check_zip_directory, open_regular

# An .npz is a bomb if its arrays have more bytes than both: so many, and this multiple of its size.
MAX_BYTES, MAX_RATIO = 256 << 20, 20
NUMBERS = "fiub"  # kinds of dtypes: float, int, unsigned int, bool
RAW_BFLOAT16 = np.dtype("V2")  # what numpy reads where bfloat16 was stored
# The errors of zipfile, pickle and numpy for damaged or unsupported content.
_DAMAGED = (
    zipfile.BadZipFile, pickle.UnpicklingError, zlib.error, lzma.LZMAError, struct.error, EOFError,
    LookupError, ValueError, TypeError, AttributeError, SyntaxError, tokenize.TokenError, RuntimeError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip


class Npz(Mapping[str, np.ndarray]):
    """The arrays of an open .npz file; each is read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._names = {name.removesuffix(".npy"): name for name in archive.namelist()}

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._names[name]
        with damage_is_value_error():
            with self._archive.open(member) as stream:
                check_header(stream, self._archive.getinfo(member).file_size)
            with self._archive.open(member) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def open_zip(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Opens a .zip of arrays.

    Raises:
      OSError: it cannot be read, or is not a regular file.
      ValueError: it is damaged or a decompression bomb.
    """
    with open_regular(path) as stream:
        with damage_is_value_error():
            check_zip_directory(stream)
            archive = zipfile.ZipFile(stream)
        total = sum(info.file_size for info in archive.infolist())
        if total > MAX_BYTES and total > MAX_RATIO * os.fstat(stream.fileno()).st_size:
            raise ValueError(
                f"its arrays have {total:,} bytes, more than {MAX_BYTES:,} and more than {MAX_RATIO} "
                "times the size of the file"
            )
        yield archive


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[Npz]:
    """Opens an .npz file; to read one of its arrays may raise the same errors.

    Raises:
      OSError: it cannot be read, or is not a regular file.
      ValueError: it is damaged, a decompression bomb, or has anything but numbers and strings.
    """
    with open_zip(path) as archive:
        yield Npz(archive)


def open_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Maps an .npy file into memory, so that only the values that are used are read.

    Raises:
      OSError: it cannot be read, or is not a regular file.
      ValueError: it is damaged, has no values, or has anything but numbers and strings.
    """
    with open_regular(path) as stream, damage_is_value_error():
        shape, fortran, dtype = check_header(stream, os.fstat(stream.fileno()).st_size)
        if 0 in shape:
            raise ValueError(f"an array of shape {shape} has no values")
        order = "F" if fortran else "C"
        return np.memmap(stream, dtype, "r", stream.tell(), shape, order)  # type: ignore[call-overload]


def check_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an .npy of `size` bytes; the stream is left at the first value.

    Returns:
      The shape, whether the order is that of Fortran, and the dtype.

    Raises:
      ValueError: the shape does not fit the size, or the dtype is not of numbers or strings.
    """
    if (version := np.lib.format.read_magic(stream)) != (1, 0):  # later ones are for large dtypes
        raise ValueError(f"version {version} of the format .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if not (dtype.kind in f"{NUMBERS}cSU" or dtype == RAW_BFLOAT16) or not dtype.itemsize:
        raise ValueError(f"an array of {_kind(dtype)}; only numbers and strings are read")
    needed, left = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or needed > left:
        raise ValueError(
            f"an array of shape {shape} and dtype {dtype} needs {needed:,} bytes, but {left:,} are "
            "stored"
        )
    return shape, fortran, dtype


def to_float32(x: np.ndarray) -> np.ndarray:
    """Converts real numbers to float32; values beyond its range become infinite.

    Big_vision stores bfloat16 as two raw bytes, which numpy reads with dtype V2.

    Raises:
      ValueError: they are complex numbers, strings or anything else.
    """
    import ml_dtypes

    if x.dtype == RAW_BFLOAT16:
        x = x.view(ml_dtypes.bfloat16)
    elif x.dtype.kind not in NUMBERS and not hasattr(ml_dtypes, x.dtype.name):
        raise ValueError(f"an array of {_kind(x.dtype)}; only real numbers can be used")
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32)


def _kind(dtype: np.dtype) -> str:
    return "Python objects (a pickle)" if dtype.hasobject else f"dtype {dtype}"


@contextlib.contextmanager
def damage_is_value_error() -> Iterator[None]:
    """Turns the errors that damaged content causes in a with block into a `ValueError`."""
    try:
        yield
    except _DAMAGED as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
