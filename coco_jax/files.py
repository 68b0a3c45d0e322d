"""Reads regular files of a bounded size, which others may have made; writes files whole."""

import contextlib
import errno
import glob
import io
import json
import os
import pathlib
import re
import secrets
import stat
import struct
from typing import IO, Any

LIMIT = 1 << 28  # bytes that `read_bytes` and `read_text` accept by default
LIST_LIMIT = 32 << 20  # bytes of a list or JSON file: in memory it takes up to 40 times as much
MAX_ZIP_DIRECTORY = 64 << 20  # bytes; about 600,000 members, which take 500 MB in memory
_ZIP_TAIL = (1 << 16) + 200  # bytes of the end records of a .zip, with the longest comment
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a regular file for reading.

    Opening a FIFO waits for its writer, and reading a device may never end.

    Raises:
      OSError: the file cannot be opened, or is not a regular file.
    """
    # With O_NONBLOCK the opening of a FIFO does not wait. It has no effect on regular files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int = LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
      OSError: it cannot be read, is not a regular file, or is larger.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8", limit: int = LIMIT) -> str:
    """The content of a regular text file of at most `limit` bytes; line ends stay as they are.

    Raises:
      OSError: it cannot be read, is not a regular file, or is larger.
      UnicodeDecodeError: it has another encoding.
    """
    return read_bytes(path, limit).decode(encoding)


def parse_json(data: str | bytes) -> Any:
    """Parses JSON text that others made.

    Raises:
      ValueError: it is not JSON, not UTF-8, nested too deeply, or has half a surrogate pair, which
        cannot be printed or written.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    text = data if isinstance(data, str) else data.decode("latin-1")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair, {error.object[error.start]!a}") from None
    return value


def check_zip_directory(stream: IO[bytes]) -> None:
    """Checks that the list of members at the end of a .zip, which `zipfile` reads whole, is not huge.

    Raises:
      ValueError: it is.
    """
    stream.seek(max(stream.seek(0, os.SEEK_END) - _ZIP_TAIL, 0))
    tail = stream.read(_ZIP_TAIL)
    stream.seek(0)
    for mark, form in ((b"PK\5\6", "<8xL"), (b"PK\6\6", "<36xQ")):  # the second one: zip64
        for found in re.finditer(re.escape(mark), tail):
            record = tail[found.end() :][: struct.calcsize(form)]
            if len(record) < struct.calcsize(form):
                continue
            (size,) = struct.unpack(form, record)
            if size > MAX_ZIP_DIRECTORY and size != 0xFFFFFFFF:  # that value refers to zip64
                raise ValueError(
                    f"a list of members of {size:,} bytes, more than {MAX_ZIP_DIRECTORY:,}"
                )


def check_tree(folder: pathlib.Path) -> int:
    """Checks that a folder has only regular files and folders, for libraries that open them all.

    Returns:
      The number of bytes in all files.

    Raises:
      OSError: it has something else, e.g. a FIFO, or cannot be read.
    """
    size = 0
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process has just removed it
            continue
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise _not_regular(path)
        size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that it has either the old or the new content, also if the machine fails.

    Raises:
      OSError: it cannot be written; the old file stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def store(path: pathlib.Path, content: bytes) -> None:
    """Stores a file that saves later runs work, unless it cannot be written, e.g. in a read-only folder.

    Several processes may do so at the same time, if all have the same content.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    with contextlib.suppress(OSError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:  # also removes those of processes that were killed
            for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
                left.unlink(missing_ok=True)


def cache_folder() -> pathlib.Path:
    """For what can be made again: $COCO_JAX_CACHE, or coco_jax in the user's cache folder."""
    if own := os.environ.get("COCO_JAX_CACHE"):
        return pathlib.Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "coco_jax"


def _not_regular(path: str | os.PathLike[str]) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", os.fspath(path))
