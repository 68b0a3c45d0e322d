"""A zero-shot dataset that was built with TFDS: videos, labels, and class splits.

All builders in tfds_builders/ write the same format:

- Features: `video_id`, `label`, and one of `video` (bytes of the encoded file), `frames` with `fps`
  (JPEG frames and their rate) or `features` (a float32 vector). If the benchmark has official test
  lists, also `official_test`: three booleans, whether each list names the video.
- TFDS splits: `train`, `test`, and `rest` for videos that are in neither.
- Metadata: `class_splits = {name: {"seen": [class, ...], "unseen": [class, ...]}}`. A class split has
  `"validation": [class, ...]` if the protocol has validation classes (in the protocol "validation" they
  are not trained on), and `"official": n` if only the videos of the n-th official test list are tested.
  Its `"empty": [class, ...]` are unseen classes without videos, which are candidates all the same.
  With `random_splits = {"seen": n, "validation": m}`, each number is a class split too (`random_split`).
"""

import dataclasses
import difflib
import functools
import io
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float32, Int
from ml_collections import ConfigDict

from coco_jax.data import action_names
from coco_jax.data.requirements import REQUIREMENTS, requirement
from coco_jax.errors import UserError
from coco_jax.files import store

TFDS_SPLITS = ("train", "test", "rest")
_FILE_SUFFIX = re.compile(r"\.(mp4|mkv|webm|avi|mov|mpe?g|flv|gif|jpe?g)$", re.IGNORECASE)
_CLIP_TIMES = re.compile(r"_\d{6}_\d{6}$")  # seconds
_PREFIX = re.compile(r"^(v_)+")  # repeated: some YouTube ids begin with v_ themselves
INDEX = "index.npz"  # labels and ids of all records, next to the data


@dataclasses.dataclass(frozen=True)
class Records:
    """The concatenated records of some TFDS splits: random access without TensorFlow."""

    sources: tuple[Any, ...]  # one TFDS data source for each split
    labels: Int[np.ndarray, " N"]
    video_ids: tuple[str, ...]
    splits: tuple[str, ...]  # the TFDS split of each record
    official: Bool[np.ndarray, "N 3"] | None = None  # whether each official test list names it
    kept: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)  # features, by record

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """One record, `{"video": bytes, "video_id": str, "label": int}` (see the top of this file)."""
        index = int(index)
        for source in self.sources:
            if index < len(source):
                record = source[index]
                return record | {"video_id": record["video_id"].decode()}
            index -= len(source)
        raise IndexError(index)

    def features(
        self, indices_N: Int[np.ndarray, " N"], width: int, keep: bool
    ) -> Float32[np.ndarray, "N F"]:
        """The stored features of records.

        Args:
          indices_N: of the records.
          width: F.
          keep: keep them in memory for the next call.

        Raises:
          UserError: a feature has another width.
        """
        found_NF = np.zeros((len(indices_N), width), np.float32)
        for row_F, index in zip(found_NF, indices_N.tolist(), strict=True):
            feature_F = self.kept.get(index)
            if feature_F is None:
                feature_F = self[index]["features"]
                if keep:
                    self.kept[index] = feature_F
            if len(feature_F) != width:
                raise UserError(
                    f"config.video_tower.feature_dim: {width}, but the stored features have "
                    f"{len(feature_F)} values"
                )
            row_F[:] = feature_F
        return found_NF


class Source(NamedTuple):
    """A dataset that was built with TFDS: its name, version and folder."""

    name: str  # as in `load`
    data_dir: str
    version: str
    folder: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Videos of `classes`, and the seen and unseen classes of each class split."""

    name: str
    classes: tuple[str, ...]
    class_splits: Mapping[str, Mapping[str, Any]]
    records: Records
    # The name to use in texts, for classes whose name here was changed to be unique.
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    random_splits: Mapping[str, int] | None = (
        None  # the arguments of `random_split`, if it has them
    )
    sources: tuple[Source, ...] = ()  # what was built; two for a cross-dataset run

    def display_names(self, names: Sequence[str]) -> list[str]:
        """The names of classes to use in texts."""
        return [self.words.get(name, name) for name in names]


def open_builder(name: str, data_dir: str) -> Any:
    """Opens a dataset that was built before, `name` or `name/config`, with TFDS.

    Raises:
      UserError: there is no such dataset in `data_dir`.
    """
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    try:
        return tfds.core.read_only_builder.builder_from_files(
            dataset, data_dir=data_dir, config=config or None
        )
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise UserError(*_missing(name, data_dir)) from error


def _missing(name: str, data_dir: str) -> tuple[str, ...]:
    """The error for a missing dataset: one line, or five if files must be downloaded."""
    built = sorted(path.name for path in pathlib.Path(data_dir).glob("[!.]*") if path.is_dir())
    if name.partition("/")[0] not in REQUIREMENTS:
        near = difflib.get_close_matches(name, [*REQUIREMENTS, *built], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return (
            f"dataset {name!r} does not exist; {hint}{data_dir} has {', '.join(built) or 'none'}, and "
            f"`coco-jax data build` builds {', '.join(REQUIREMENTS)}",
        )
    command = f"python -m tfds_builders.build {name} --data_dir={data_dir}"
    files = requirement(name)
    if files is None:
        return (
            f"dataset {name!r} is not in {data_dir} (config.data.dir): build it with `{command}`; "
            "`make data` builds motion_zsar",
        )
    return (
        f"dataset {name!r} is not in {data_dir} (config.data.dir).",
        f"  Fetch: {files.fetch}",
        f"  Size:  {files.size}",
        f"  Put:   {files.put}",
        f"  Build: {command} --manual_dir=FOLDER",
    )


@functools.lru_cache(maxsize=2)
def load(name: str, data_dir: str) -> Dataset:
    """Opens a dataset and indexes its records; no video is decoded.

    Raises:
      UserError: it was not built, or not in the format above.
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
    random_splits = builder.info.metadata.get("random_splits")
    source = Source(name, data_dir, str(builder.info.version), str(builder.data_dir))
    return Dataset(
        name, classes, class_splits, records, random_splits=random_splits, sources=(source,)
    )


def random_split(
    classes: Sequence[str], number: int, *, seen: int, validation: int
) -> dict[str, list[str]]:
    """The class split of a number: `numpy.random.RandomState(number).permutation(len(classes))`.

    Its first `seen` classes are seen, the last `validation` of these are the validation classes, and the
    other classes are unseen.
    """
    names = [classes[i] for i in np.random.RandomState(number).permutation(len(classes))]
    return {
        "seen": names[:seen],
        "unseen": names[seen:],
        "validation": names[seen - validation : seen],
    }


def write_index(builder: Any) -> dict[str, np.ndarray]:
    """Reads every record once and stores labels and ids next to the data, if the folder is writable.

    `tfds_builders.build` calls it; other datasets are indexed when they are first opened.
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
    content = io.BytesIO()
    np.savez(content, **index)  # type: ignore[arg-type]
    store(pathlib.Path(builder.data_dir) / INDEX, content.getvalue())
    return index


def _read_index(builder: Any, sources: Sequence[Sequence[Any]]) -> dict[str, np.ndarray] | None:
    """The stored index; None if there is none, or if it does not match the data."""
    try:
        path = pathlib.Path(builder.data_dir) / INDEX
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            index = dict(arrays)
        fits = len(index["labels"]) == len(index["video_ids"]) == sum(map(len, sources))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if fits else None


def join(trained: Dataset, tested: Dataset, overlap: str) -> Dataset:
    """Joins two datasets, to train on `trained` and test on `tested` (protocol `cross`).

    The class splits are those of `tested`. In each of them, the seen classes are all classes that are
    seen in some class split of `trained`. With `overlap="drop"`, classes of both datasets, in any
    spelling (`action_names.normal`), are not trained on. With "keep", as in papers, they are, and the
    tested classes get a prefix to make their names unique.
    """
    keys = {action_names.normal(name) for name in trained.classes}
    shared = {name for name in tested.classes if action_names.normal(name) in keys}
    of_any = {name for split in trained.class_splits.values() for name in split["seen"]}
    if overlap == "drop":
        dropped = {action_names.normal(name) for name in shared}
        of_any = {name for name in of_any if action_names.normal(name) not in dropped}
    prefix = tested.name.partition("/")[0] + ": "
    key = {name: prefix + name if name in shared else name for name in tested.classes}
    seen = [name for name in trained.classes if name in of_any]
    splits = {
        name: {
            **split,
            "seen": seen,
            **{
                part: [key[c] for c in split[part]] for part in ("unseen", "empty") if part in split
            },
        }
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
        sources=trained.sources + tested.sources,
    )


def open_dataset(config: ConfigDict) -> Dataset:
    """Opens the dataset of a run; for the protocol `cross`, the two datasets joined.

    Raises:
      UserError: a dataset was not built, or the config names none.
    """
    dataset = load(config.data.name, config.data.dir)
    if config.protocol != "cross":
        return dataset
    return join(dataset, load(config.data.test_name, config.data.dir), config.data.shared_classes)


def normal_id(video_id: str) -> str:
    """The normal form of a video id: the same video has the same normal id in every dataset.

    Removes the path, the file suffix, the prefix `v_` of ActivityNet and UCF101, also repeated, and
    the clip times of Kinetics and VATEX: `v_ID`, `ID_000010_000020` and `ID.mp4` all give `ID`.
    """
    name = _FILE_SUFFIX.sub("", video_id.replace("\\", "/").rpartition("/")[2])
    return _CLIP_TIMES.sub("", _PREFIX.sub("", name))


def select(classes: Sequence[str], wanted: Sequence[str]) -> Int[np.ndarray, " K"]:
    """The index in `classes` of each class in `wanted`, in the order of `wanted`."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in wanted], np.int64)
