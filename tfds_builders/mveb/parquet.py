"""Reads videos and labels from Parquet files that others made, in a process of its own.

The files have the layout of Hugging Face datasets: a column `video`, a struct of `bytes` and `path`, and
a column `label` of integers; the names of the classes are in the metadata of the schema. The Parquet
library is native code that reads sizes from the file. If it crashes or needs too much memory, only the
child process ends.
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from coco_jax.files import open_regular
from tfds_builders.common import child

VIDEO, LABEL = "video", "label"
MAX_VIDEO = 256 << 20  # bytes of one video
# A file is a bomb if its videos have more bytes than this, and than so many times the file.
MAX_TOTAL, MAX_RATIO = 8 << 30, 20
MAX_ROWS = 2_000_000
MAX_CLASSES = 100_000
MAX_PATH = 1000  # characters
CHILD_MEMORY = 6 << 30  # bytes of the address space of the child
_METADATA = 64 << 20  # bytes of the footer
# A message of the child: its kind, a label, and the sizes of a text and of a video, which follow.
_MESSAGE = struct.Struct("<cqQQ")
_NAMES, _LABELS, _ROW, _NO_VIDEO, _ERROR, _END = b"N", b"L", b"R", b"B", b"E", b"."


class Labels(NamedTuple):
    """The classes of a file, and the label of each of its rows."""

    names: list[str]
    labels: list[int]


class Row(NamedTuple):
    """A row of a file.

    Attributes:
      label: index of its class.
      path: path of the video that the file states; "" if it states none.
      data: the bytes of the video; None if they cannot be used.
      problem: why they cannot be used; "" if they can.
    """

    label: int
    path: str
    data: bytes | None
    problem: str


def labels(path: pathlib.Path) -> Labels:
    """The class names and the labels of a file.

    Raises:
      OSError: it cannot be read, or is not a regular file.
      ValueError: it is damaged or does not have the layout, or a label is not that of a class.
    """
    names: list[str] = []
    found: list[int] = []
    for kind, _, text, data in _messages(path, "labels"):
        if kind == _NAMES:
            names = json.loads(text)
        else:
            found += struct.unpack(f"<{len(data) // 8}q", data)
    for row, label in enumerate(found):
        if not 0 <= label < len(names):
            raise ValueError(f"row {row} has the label {label}, and there are {len(names)} classes")
    return Labels(names, found)


def rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a file, one at a time.

    Raises:
      OSError: it cannot be read, or is not a regular file.
      ValueError: it is damaged, does not have the layout, or is a decompression bomb.
    """
    for kind, label, text, data in _messages(path, "rows"):
        if kind == _ROW:
            yield Row(label, text, data, "")
        elif kind == _NO_VIDEO:
            name, _, problem = text.partition("\0")
            yield Row(label, name, None, problem)


def _messages(path: pathlib.Path, mode: str) -> Iterator[tuple[bytes, int, str, bytes]]:
    """The messages of a child process that reads the file."""
    open_regular(path).close()
    process = child.start(
        "tfds_builders.mveb.parquet",
        os.fspath(path),
        mode,
        str(child.CPU_SECONDS),
        str(MAX_TOTAL),
    )
    assert process.stdout
    try:
        while (message := _receive(process, process.stdout)) is not None:
            yield message
    finally:
        child.stop(process)


def _receive(process: subprocess.Popen, stream: IO[bytes]) -> tuple[bytes, int, str, bytes] | None:
    """The next message; None at the end."""
    head = stream.read(_MESSAGE.size)
    if len(head) < _MESSAGE.size:
        child.raise_reason(process, "Parquet", "a row")
    kind, label, size, length = _MESSAGE.unpack(head)
    text = stream.read(size).decode()
    if kind == _ERROR:
        raise ValueError(text)
    return None if kind == _END else (kind, label, text, stream.read(length))


def _send(kind: bytes, label: int = 0, text: str = "", data: bytes = b"") -> None:
    encoded, out = text.encode(errors="replace"), sys.stdout.buffer
    out.write(_MESSAGE.pack(kind, label, len(encoded), len(data)) + encoded)
    out.write(data)
    child.limit_time(float(sys.argv[3]))


def main() -> None:
    """The child: writes messages to stdout."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    path, mode = sys.argv[1:3]
    child.limit_memory(CHILD_MEMORY)
    child.limit_time(float(sys.argv[3]))
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    try:
        with open_regular(path) as stream:
            file = pq.ParquetFile(
                stream,
                buffer_size=1 << 20,  # otherwise all videos of a row group are in memory
                thrift_string_size_limit=_METADATA,
                thrift_container_size_limit=MAX_ROWS,
            )
            names = class_names(file.schema_arrow)
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} rows; split it into several files")
            if mode == "labels":
                _send(_NAMES, text=json.dumps(names))
                _send_labels(file)
            else:
                _send_rows(file, os.stat(path).st_size)
        _send(_END)
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, MemoryError) as error:
        _send(_ERROR, text=" ".join(str(error).split())[:500] or "not enough memory")


def class_names(schema: Any) -> list[str]:
    """The names of the classes in an Arrow schema, whose columns are checked as well.

    Raises:
      ValueError: it does not have the columns `video` and `label`, or no class names.
    """
    import pyarrow as pa

    shown = ", ".join(schema.names[:8])[:200] or "none"
    for name in (VIDEO, LABEL):
        if name not in schema.names:
            raise ValueError(
                f"no column {name!r}, but {shown}; give a file of one of these data sets"
            )
    kind = schema.field(VIDEO).type
    stored = (
        kind.field("bytes").type if pa.types.is_struct(kind) and "bytes" in _fields(kind) else None
    )
    if stored is None or not (pa.types.is_binary(stored) or pa.types.is_large_binary(stored)):
        raise ValueError(f"column {VIDEO!r} is {str(kind)[:100]}, not a struct of bytes and path")
    if not pa.types.is_integer(schema.field(LABEL).type):
        raise ValueError(f"column {LABEL!r} is {schema.field(LABEL).type}, not a whole number")
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[LABEL]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(
            f"no names of classes in its metadata (Hugging Face's ClassLabel of column {LABEL!r})"
        ) from None
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and name.strip() for name in names)
        or not 1 < len(set(names)) == len(names) <= MAX_CLASSES
    ):
        raise ValueError(
            "the names of the classes in its metadata are not a list of different texts"
        )
    return names


def _fields(kind: Any) -> set[str]:
    return {kind.field(i).name for i in range(kind.num_fields)}


def _send_labels(file: Any) -> None:
    for batch in file.iter_batches(batch_size=4096, columns=[LABEL], use_threads=False):
        found = batch.column(0).to_pylist()
        if None in found:
            raise ValueError(f"column {LABEL!r} has a row without a value")
        _send(_LABELS, data=struct.pack(f"<{len(found)}q", *found))


def _send_rows(file: Any, size: int) -> None:
    total, limit = 0, int(sys.argv[4])
    for batch in file.iter_batches(batch_size=1, columns=[VIDEO, LABEL], use_threads=False):
        # A file may have another order of columns than asked for.
        label = batch.column(batch.schema.names.index(LABEL))[0].as_py()
        video = batch.column(batch.schema.names.index(VIDEO))[0]
        stored = video["bytes"] if video.is_valid else None
        given = video.get("path") if video.is_valid and "path" in _fields(video.type) else None
        name = given.as_py() if given is not None else None
        name = name[:MAX_PATH].replace("\0", "") if isinstance(name, str) else ""
        if stored is None or not stored.is_valid:
            _send(_NO_VIDEO, label, f"{name}\0has no video in the file; download the file again")
            continue
        length = stored.as_buffer().size
        total += length
        if total > limit and total > MAX_RATIO * size:
            raise ValueError(
                f"its videos have more than {limit:,} bytes and more than {MAX_RATIO} times its own"
            )
        if length > MAX_VIDEO:
            _send(_NO_VIDEO, label, f"{name}\0has {length:,} bytes, more than {MAX_VIDEO:,}")
            continue
        _send(_ROW, label, name, stored.as_py())


if __name__ == "__main__":
    main()
