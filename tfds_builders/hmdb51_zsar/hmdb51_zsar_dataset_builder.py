"""hmdb51_zsar: HMDB51 with the intra-dataset and cross-dataset protocols; see README.md."""

import pathlib
import re
import sys

import numpy as np
import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.errors import UserError
from tfds_builders.common import archives
from tfds_builders.common import builder as common

TRIALS = 50  # number of random class splits; 26 classes are seen
LIST = re.compile(r"(?P<label>[a-z_]+)_test_split(?P<split>[123])\.txt$")


class Builder(common.VideoBuilder):
    """51 classes, 6,766 videos.

    The TFDS splits are official split 1: `train`, `test`, and `rest`, the videos that are in neither.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Intra-dataset and cross-dataset class splits."}  # noqa: RUF012
    BUILDER_CONFIGS = common.configs(
        intra=f"Trains on a random half of the classes and tests on the other half; {TRIALS} trials.",
        cross="Test only: the three official test splits with all classes, and random halves.",
    )
    DEFAULT_BUILDER_CONFIG_NAME = "intra"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put hmdb51_org.rar (2 GB; or the .rar files in it, or the extracted folder) and "
        "test_train_splits.rar (or the extracted folder) there; download both from "
        "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
    )
    list_files = ("*_test_split[123].txt", "test_train_splits.rar")
    extra_features = {  # noqa: RUF012
        # Whether the video is a test video of official split 1, 2 and 3.
        "official_test": tfds.features.Tensor(shape=(3,), dtype=np.bool_),
    }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = common.manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        rows = read_lists(folder)
        classes = sorted({readable(label) for label, _ in rows.values()})
        protocol = self.builder_config.protocol
        self.declare(classes, common.protocol_splits("hmdb51", protocol, classes, TRIALS))
        sources = [p for p in common.sources_in(folder) if "test_train_splits" not in p.name]
        examples = {}
        for use, split in enumerate(("rest", "train", "test")):
            of_split = {name: row for name, row in rows.items() if row[1][0] == use}
            if of_split:
                examples[split] = self.examples(split, sources, _Describe(of_split), len(of_split))
        return examples

    def _generate_examples(self):
        raise NotImplementedError("_split_generators calls examples() instead")


class _Describe:
    """Looks up a file by its name without folders, which is unique in HMDB51."""

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
    """Converts a class name: "brush_hair" becomes "brush hair"."""
    return name.replace("_", " ")


def read_lists(folder: pathlib.Path) -> dict[str, tuple[str, tuple[int, int, int]]]:
    """Reads the official lists from test_train_splits.rar or from `*_test_split?.txt` files.

    Args:
      folder: folder that has the archive, or the text files at any depth.

    Returns:
      The class of each video and its use in each official split, `{"a.avi": ("brush_hair", (1, 2, 0)),
      ...}`: 1 for training, 2 for testing, 0 for neither.

    Raises:
      UserError: there are no lists, or a line is not `FILE.avi 0|1|2`.
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
        for number, line in enumerate(common.decoded(text, name).splitlines(), 1):
            if not line.strip():
                continue
            file, _, use = line.strip().rpartition(" ")
            if use not in ("0", "1", "2"):
                raise UserError(
                    f"{name}:{number}: {line[:60]!r} is not FILE.avi 0|1|2; download "
                    "test_train_splits.rar again"
                )
            _, uses = rows.setdefault(file.strip(), (found["label"], [0, 0, 0]))
            uses[int(found["split"]) - 1] = int(use)
    if not rows:
        raise UserError(
            f"{folder}: no official lists found; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    return {file: (label, (a, b, c)) for file, (label, (a, b, c)) in rows.items()}
