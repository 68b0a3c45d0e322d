"""A zero-shot dataset as TFDS stored it: videos, labels, and the class splits of its protocol.

Every builder in tfds_builders/ keeps the same contract:

- features `video_id`, `label`, and one of `video` (the encoded file's bytes), `frames` with `fps`
  (JPEG frames and their rate) or `features` (a float32 vector); where a benchmark has official
  test lists, `official_test`, which of the three name the video;
- TFDS splits `train`, `test`, and `rest` for what is neither;
- in the dataset's metadata, `class_splits = {name: {"seen": [class, ...], "unseen": [class, ...]}}`,
  with `"validation": [class, ...]` where the protocol has such classes, and `"official": n` where
  only the videos of the n-th official test list are tested.
"""

import contextlib
import dataclasses
import difflib
import functools
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from coco_jax.data.requirements import REQUIREMENTS, requirement
from coco_jax.errors import UserError

TFDS_SPLITS = ("train", "test", "rest")
_FILE_SUFFIX = re.compile(r"\.(mp4|mkv|webm|avi|mov|mpe?g|flv|gif|jpe?g)$", re.IGNORECASE)
_CLIP_TIMES = re.compile(r"_\d{6}_\d{6}$")  # seconds
_PREFIX = re.compile(r"^(v_)+")  # several: some ids on YouTube begin with v_ themselves
INDEX = "index.npz"  # beside the data: what `Records` knows without reading it


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of some TFDS splits, end to end: random access without TensorFlow."""

    sources: tuple[Any, ...]  # one TFDS data source a split
    labels: Int[np.ndarray, " N"]
    video_ids: tuple[str, ...]
    splits: tuple[str, ...]  # the TFDS split of each record
    official: Bool[np.ndarray, "N 3"] | None = None  # which official test lists name it

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """One record, `{"video": bytes, "video_id": str, "label": int}` (see the contract above)."""
        index = int(index)
        for source in self.sources:
            if index < len(source):
                record = source[index]
                return record | {"video_id": record["video_id"].decode()}
            index -= len(source)
        raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Videos of `classes`, and which of those are seen in each named split."""

    name: str
    classes: tuple[str, ...]
    class_splits: Mapping[str, Mapping[str, Any]]
    records: Records
    # What a class is called in texts, where its name here had to be made unique.
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def display_names(self, names: Sequence[str]) -> list[str]:
        """The classes' names as texts use them."""
        return [self.words.get(name, name) for name in names]


def open_builder(name: str, data_dir: str) -> Any:
    """The TFDS builder of a dataset that was built before, `name` or `name/config`.

    Raises:
      UserError: nothing of that name is in `data_dir`.
    """
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    try:
        return tfds.core.read_only_builder.builder_from_files(
            dataset, data_dir=data_dir, config=config or None
        )
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise UserError(_missing(name, data_dir)) from error


def _missing(name: str, data_dir: str) -> str:
    """What to do about a dataset that is not there: one line, or five if files must be fetched."""
    built = sorted(path.name for path in pathlib.Path(data_dir).glob("[!.]*") if path.is_dir())
    if name.partition("/")[0] not in REQUIREMENTS:
        near = difflib.get_close_matches(name, [*REQUIREMENTS, *built], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return (
            f"dataset {name!r} does not exist; {hint}{data_dir} has {', '.join(built) or 'none'}, and "
            f"`coco-jax data build` builds {', '.join(REQUIREMENTS)}"
        )
    command = f"python -m tfds_builders.build {name} --data_dir={data_dir}"
    files = requirement(name)
    if files is None:
        return (
            f"dataset {name!r} is not in {data_dir} (config.data.dir): build it with `{command}`; "
            "`make data` builds the demo's"
        )
    return (
        f"dataset {name!r} is not in {data_dir} (config.data.dir).\n"
        f"  Fetch: {files.fetch}\n"
        f"  Size:  {files.size}\n"
        f"  Put:   {files.put}\n"
        f"  Build: {command} --manual_dir=FOLDER"
    )


@functools.lru_cache(maxsize=2)
def load(name: str, data_dir: str) -> Dataset:
    """Opens a dataset and indexes its records; nothing is decoded.

    Raises:
      UserError: it was never built, or was built by a builder that breaks the contract.
    """
    builder = open_builder(name, data_dir)
    try:
        classes = tuple(builder.info.features["label"].names)
        class_splits = {k: dict(v) for k, v in builder.info.metadata["class_splits"].items()}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"dataset {name!r} in {data_dir} has no {error}: build it again with a builder of "
            "this version"
        ) from error
    tfds_splits = [split for split in TFDS_SPLITS if split in builder.info.splits]
    sources = tuple(builder.as_data_source(split) for split in tfds_splits)
    index = _read_index(builder, sources) or write_index(builder)
    splits = tuple(
        split
        for split, source in zip(tfds_splits, sources, strict=True)
        for _ in range(len(source))
    )
    records = Records(
        sources,
        index["labels"].astype(np.int64),
        tuple(index["video_ids"].tolist()),
        splits,
        index.get("official"),
    )
    return Dataset(name, classes, class_splits, records)


def write_index(builder: Any) -> dict[str, np.ndarray]:
    """Reads every record once and keeps labels and ids beside the data, where that can be written.

    `tfds_builders.build` does this; datasets built otherwise are indexed when first opened.
    """
    splits = [split for split in TFDS_SPLITS if split in builder.info.splits]
    labels, ids, official = [], [], []
    total = sum(builder.info.splits[split].num_examples for split in splits)
    if total > 20_000:
        print(f"{builder.info.full_name}: indexing {total:,} records, once", file=sys.stderr)
    for split in splits:
        for record in builder.as_data_source(split):
            labels.append(int(record["label"]))
            ids.append(record["video_id"].decode())
            if "official_test" in record:
                official.append(record["official_test"])
    index = {"labels": np.array(labels, np.int32), "video_ids": np.array(ids, np.str_)}
    if official:
        index["official"] = np.array(official, bool)
    path = pathlib.Path(builder.data_dir) / INDEX
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with contextlib.suppress(OSError):  # a shared folder may be read-only
        with partial.open("wb") as stream:
            np.savez(stream, **index)  # type: ignore[arg-type]
        partial.replace(path)
    return index


def _read_index(builder: Any, sources: Sequence[Sequence[Any]]) -> dict[str, np.ndarray] | None:
    """The stored index; None where there is none that fits the data."""
    try:
        path = pathlib.Path(builder.data_dir) / INDEX
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            index = dict(arrays)
        fits = len(index["labels"]) == len(index["video_ids"]) == sum(map(len, sources))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if fits else None


def join(trained: Dataset, tested: Dataset, overlap: str) -> Dataset:
    """One dataset to train on `trained` and test on `tested`, for the cross-dataset protocols.

    Its splits are those of `tested`, in all of which every class that `trained` ever calls seen is
    seen. With `overlap="drop"` those whose name is also a tested one's are left out; with "keep",
    the literature's custom, they stay, and the tested ones are told apart by a prefix.
    """
    shared = set(tested.classes) & set(trained.classes)
    of_any = {name for split in trained.class_splits.values() for name in split["seen"]}
    if overlap == "drop":
        of_any -= shared
    prefix = tested.name.partition("/")[0] + ": "
    key = {name: prefix + name if name in shared else name for name in tested.classes}
    seen = [name for name in trained.classes if name in of_any]
    splits = {
        name: {**split, "seen": seen, "unseen": [key[c] for c in split["unseen"]]}
        for name, split in tested.class_splits.items()
    }
    a, b = trained.records, tested.records
    records = Records(
        a.sources + b.sources,
        np.concatenate([a.labels, b.labels + len(trained.classes)]),
        a.video_ids + b.video_ids,
        a.splits + b.splits,
        None if b.official is None else np.concatenate([np.zeros((len(a), 3), bool), b.official]),
    )
    return Dataset(
        f"{trained.name} -> {tested.name}",
        trained.classes + tuple(key.values()),
        splits,
        records,
        {**trained.words, **{key[name]: name for name in shared}},
    )


def open_dataset(config: ConfigDict) -> Dataset:
    """The dataset of a run; under the protocol `cross`, the trained and the tested one as one.

    Raises:
      UserError: one was never built, or the config names none.
    """
    dataset = load(config.data.name, config.data.dir)
    if config.protocol != "cross":
        return dataset
    return join(dataset, load(config.data.test_name, config.data.dir), config.data.shared_classes)


def normal_id(video_id: str) -> str:
    """A video id without what datasets add to it, so that equal videos have equal ids.

    Removes the path, the file suffix, the prefix `v_` of ActivityNet and UCF101, and the clip
    times of Kinetics and VATEX: `v_ID`, `ID_000010_000020` and `ID.mp4` all give `ID`.
    """
    name = _FILE_SUFFIX.sub("", video_id.replace("\\", "/").rpartition("/")[2])
    return _CLIP_TIMES.sub("", _PREFIX.sub("", name))


def select(classes: Sequence[str], wanted: Sequence[str]) -> Int[np.ndarray, " K"]:
    """The indices of the wanted classes, in their own order."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in wanted])
