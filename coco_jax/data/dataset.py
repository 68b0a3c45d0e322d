"""A zero-shot dataset as TFDS stored it: videos, labels, and the class splits of its protocol.

Every builder in tfds_builders/ keeps the same contract: features `video` (the encoded file's
bytes), `video_id`, `label`; TFDS splits `train` and `test`; and, in the dataset's metadata,
`class_splits = {name: {"seen": [class, ...], "unseen": [class, ...]}}`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int

from coco_jax.errors import UserError

TFDS_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of some TFDS splits, end to end: random access without TensorFlow."""

    sources: tuple[Any, ...]  # one TFDS data source a split
    labels: Int[np.ndarray, " N"]
    video_ids: tuple[str, ...]
    splits: tuple[str, ...]  # the TFDS split of each record

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """One record, `{"video": bytes, "video_id": str, "label": int}`."""
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
    class_splits: dict[str, dict[str, list[str]]]
    records: Records


def open_builder(name: str, data_dir: str):
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
        raise UserError(
            f"dataset {name!r} is not in {data_dir}: build it with `python -m tfds_builders.build "
            f"{name} --data_dir={data_dir}` (`make data` builds the demo's), or set config.data.dir"
        ) from error


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
    sources, labels, ids, splits = [], [], [], []
    for split in (s for s in TFDS_SPLITS if s in builder.info.splits):
        source = builder.as_data_source(split)
        sources.append(source)
        for record in source:
            labels.append(int(record["label"]))
            ids.append(record["video_id"].decode())
            splits.append(split)
    records = Records(tuple(sources), np.array(labels), tuple(ids), tuple(splits))
    return Dataset(name, classes, class_splits, records)


def select(classes: Sequence[str], wanted: Sequence[str]) -> Int[np.ndarray, " K"]:
    """The indices of the wanted classes, in their own order."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in wanted])
