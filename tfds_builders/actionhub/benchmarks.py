"""Reads the classes and the test videos of the benchmarks that are built in a data_dir."""

import os
import pathlib
import re
from collections.abc import Iterator

from coco_jax.data import dataset
from coco_jax.errors import UserError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def builds(data_dir: str | os.PathLike[str], name: str = "") -> list[str]:
    """Lists the built datasets, except actionhub.

    Args:
      data_dir: folder of built datasets.
      name: list only the configurations of this dataset; "" for all datasets.

    Returns:
      Sorted names, `DATASET` or `DATASET/CONFIG`, that `coco_jax.data.dataset.open_builder` opens.
    """
    root = pathlib.Path(data_dir)
    found = set()
    for depth in ("*", "*/*"):
        for path in root.glob(f"{name or '*'}/{depth}/features.json"):  # one per built version
            *build, version, _ = path.relative_to(root).parts
            if _VERSION.fullmatch(version) and build[0] != "actionhub":
                found.add("/".join(build))
    return sorted(found)


def classes(data_dir: str | os.PathLike[str], name: str) -> tuple[str, list[str]]:
    """Reads the class names of a benchmark.

    Args:
      data_dir: folder of built datasets.
      name: name of the benchmark, without a configuration.

    Returns:
      The configuration that was read, `DATASET/CONFIG`, and its class names.

    Raises:
      UserError: no configuration of the benchmark has been built.
    """
    for build in builds(data_dir, name):
        features = _info(data_dir, build).features
        if "label" in features and (found := getattr(features["label"], "names", None)):
            return build, list(found)
    raise UserError(
        f"{data_dir}: {name} is not built, but its class names are needed; build it first with "
        f"`python -m tfds_builders.build {name} --data_dir={data_dir}`, or build actionhub/manual"
    )


def tested(data_dir: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yields `(video id, dataset)` for every video that a built benchmark evaluates on.

    These are the videos of its TFDS split `test`, and the videos of every class that is unseen or a
    validation class in one of its class splits.

    Args:
      data_dir: folder of built datasets.
    """
    for build in builds(data_dir):
        info = _info(data_dir, build)
        if {"label", "video_id"} - set(info.features) or "class_splits" not in (
            info.metadata or {}
        ):
            continue  # not a dataset of these builders
        loaded = dataset.load(build, os.fspath(data_dir))
        unseen = {
            name
            for split in loaded.class_splits.values()
            for part in ("unseen", "validation")
            for name in split.get(part, ())
        }
        held_out = [name in unseen for name in loaded.classes]
        records = loaded.records
        for video, split, label in zip(
            records.video_ids, records.splits, records.labels, strict=True
        ):
            if split == "test" or held_out[label]:
                yield video, build


def _info(data_dir: str | os.PathLike[str], build: str):
    return dataset.open_builder(build, os.fspath(data_dir)).info
