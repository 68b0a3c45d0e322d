"""What benchmarks already built in a data_dir say: their classes, and the videos they test on."""

import os
import pathlib
import re
from collections.abc import Iterator

from coco_jax.data import dataset
from coco_jax.errors import UserError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def builds(data_dir: str | os.PathLike[str], name: str = "") -> list[str]:
    """What `coco_jax.data.dataset.open_builder` can open: `name` or `name/config`, sorted.

    Args:
      data_dir: where built datasets lie.
      name: of one dataset; all but actionhub without.
    """
    root = pathlib.Path(data_dir)
    found = set()
    for depth in ("*", "*/*"):
        for path in root.glob(f"{name or '*'}/{depth}/features.json"):  # TFDS writes one a build
            *build, version, _ = path.relative_to(root).parts
            if _VERSION.fullmatch(version) and build[0] != "actionhub":
                found.add("/".join(build))
    return sorted(found)


def classes(data_dir: str | os.PathLike[str], name: str) -> tuple[str, list[str]]:
    """The class names of a benchmark, and which of its configurations they were read from.

    Raises:
      UserError: no configuration of it was built.
    """
    for build in builds(data_dir, name):
        features = _info(data_dir, build).features
        if "label" in features and (found := getattr(features["label"], "names", None)):
            return build, list(found)
    raise UserError(
        f"{name} is not in {data_dir}, and its class names are needed; build it first with "
        f"`python -m tfds_builders.build {name} --data_dir={data_dir}`, or take actionhub/manual"
    )


def tested(data_dir: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """(video id, dataset) of every video that a benchmark tests on.

    Those are the ones of its TFDS split `test`, and those of any class that some class split calls
    unseen or keeps for validation.
    """
    for build in builds(data_dir):
        info = _info(data_dir, build)
        if {"label", "video_id"} - set(info.features) or "class_splits" not in (
            info.metadata or {}
        ):
            continue  # some other dataset, not of these builders
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
