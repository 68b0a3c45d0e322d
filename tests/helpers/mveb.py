"""Writes Parquet files in the layout of MTEB's video data sets on Hugging Face."""

import json
import pathlib
from collections.abc import Sequence

import pyarrow as pa
from pyarrow import parquet as pq

from tfds_builders.common import testing

NAMES = ("brush_hair", "cartwheel", "pick", "ride_bike")
Video = tuple[bytes | None, str | None]


def schema(names: Sequence[str] | None = NAMES, **columns: pa.DataType) -> pa.Schema:
    """The schema of such a file; `columns` replace or add types of columns."""
    types = {
        "video": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "label": pa.int64(),
    } | columns
    label = {"_type": "Value", "dtype": "int64"}
    if names is not None:
        label = {"_type": "ClassLabel", "names": list(names)}
    features = {"video": {"_type": "Video"}, "label": label}
    about = json.dumps({"info": {"features": features}}).encode()
    return pa.schema(list(types.items()), metadata={b"huggingface": about})


def write(
    path: pathlib.Path,
    videos: Sequence[Video],
    labels: Sequence[int | None],
    names: Sequence[str] | None = NAMES,
    **options,
) -> pathlib.Path:
    """Writes a file with these rows; `options` are those of `pyarrow.parquet.write_table`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": data, "path": name} for data, name in videos]
    table = pa.Table.from_pydict({"video": structs, "label": list(labels)}, schema(names))
    pq.write_table(table, path, **options)
    return path


def generated(count: int, first: int = 0) -> list[Video]:
    """Small videos, all different, with names."""
    return [(testing.video(n), f"clip_{n}.mp4") for n in range(first, first + count)]
