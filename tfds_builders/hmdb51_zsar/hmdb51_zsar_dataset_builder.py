"""hmdb51_zsar: HMDB51 under the intra-dataset and cross-dataset protocols; see README.md."""

import pathlib
import re
import sys

import numpy as np
import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only `tfds_builders/` on the path.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.errors import UserError
from tfds_builders.common import archives
from tfds_builders.common import builder as common

TRIALS = 50  # random halves of the classes, 26 seen
LIST = re.compile(r"(?P<label>[a-z_]+)_test_split(?P<split>[123])\.txt$")


class Builder(common.VideoBuilder):
    """51 classes, 6,766 videos; TFDS splits: official split 1's train and test, and what it leaves."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Intra- and cross-dataset splits."}  # noqa: RUF012
    BUILDER_CONFIGS = common.configs(
        intra=f"Train on a random half of the classes, test on the other; {TRIALS} trials.",
        cross="Test alone: the three official test splits on all classes, and random halves.",
    )
    DEFAULT_BUILDER_CONFIG_NAME = "intra"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Place hmdb51_org.rar (2 GB; or the .rar files in it, or the extracted folder) and "
        "test_train_splits.rar (or its folder) there; both are at "
        "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
    )
    extra_features = {  # noqa: RUF012
        # Whether each of the three official splits tests the video.
        "official_test": tfds.features.Tensor(shape=(3,), dtype=np.bool_),
    }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = common.manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        rows = read_lists(folder)
        classes = sorted({readable(label) for label, _ in rows.values()})
        protocol = self.builder_config.protocol
        self.declare(classes, common.protocol_splits("hmdb51", protocol, classes, TRIALS))
        sources = [p for p in common.sources_in(folder) if "test_train_splits" not in p.name]
        found = {}
        for use, split in enumerate(("rest", "train", "test")):
            named = {name: row for name, row in rows.items() if row[1][0] == use}
            if not named:
                continue
            found[split] = self.examples(split, sources, _Describe(named), len(named))
        return found

    def _generate_examples(self):
        raise NotImplementedError("examples are made in _split_generators")


class _Describe:
    """Members by file name; names of HMDB51's videos are unique."""

    def __init__(self, rows: dict[str, tuple[str, tuple[int, int, int]]]):
        self.rows = rows

    def __call__(self, member: str) -> common.Entry | None:
        name = member.rpartition("/")[2]
        if name not in self.rows:
            return None
        label, use = self.rows[name]
        video_id = name.removesuffix(".avi")
        tested = [number == 2 for number in use]
        return common.Entry(video_id, video_id, readable(label), {"official_test": tested})


def readable(name: str) -> str:
    """`brush_hair` as `brush hair`."""
    return name.replace("_", " ")


def read_lists(folder: pathlib.Path) -> dict[str, tuple[str, tuple[int, int, int]]]:
    """`{"a.avi": ("brush_hair", (1, 2, 0)), ...}`: in each official split 1 trains, 2 tests, 0 neither.

    Raises:
      UserError: there are none, or a line is not `FILE.avi 0|1|2`.
    """
    archive = folder / "test_train_splits.rar"
    files = (
        ((m.name, m.read()) for m in archives.members(archive, suffixes={".txt"}))
        if archive.is_file()
        else ((path.name, path.read_bytes()) for path in sorted(folder.rglob("*_test_split?.txt")))
    )
    rows: dict[str, tuple[str, list[int]]] = {}
    for name, text in files:
        found = LIST.search(name.rpartition("/")[2])
        if not found:
            continue
        for number, line in enumerate(text.decode().splitlines(), 1):
            if not line.strip():
                continue
            file, _, use = line.strip().rpartition(" ")
            if use not in ("0", "1", "2"):
                raise UserError(
                    f"{name}:{number}: {line[:60]!r} is not FILE.avi 0|1|2; fetch "
                    "test_train_splits.rar again"
                )
            _, uses = rows.setdefault(file.strip(), (found["label"], [0, 0, 0]))
            uses[int(found["split"]) - 1] = int(use)
    if not rows:
        raise UserError(f"{folder}: no official lists; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    return {file: (label, (a, b, c)) for file, (label, (a, b, c)) in rows.items()}
