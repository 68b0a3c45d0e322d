"""ucf101_zsar: UCF101 with the intra-dataset and cross-dataset protocols; see README.md."""

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
from tfds_builders.common import archives, user_lists
from tfds_builders.common import builder as common

# The checksums of both files in checksums.tsv are those of the dataset ucf101 in TFDS 4.9.10.
VIDEOS = "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip"
LISTS = "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"
TRIALS = 50  # number of random class splits; 51 classes are seen


class Builder(common.VideoBuilder):
    """101 classes, 13,320 videos. The TFDS splits are official split 1: 9,537 train, 3,783 test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Intra-dataset and cross-dataset class splits."}  # noqa: RUF012
    BUILDER_CONFIGS = common.configs(
        intra=f"Trains on a random half of the classes and tests on the other half; {TRIALS} trials.",
        cross="Test only: the three official test splits with all classes, and random halves.",
    )
    DEFAULT_BUILDER_CONFIG_NAME = "intra"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Nothing is required; UCF101.rar or the folder UCF-101/ is used instead of a download."
    )
    list_files = ("trainlist0[123].txt", "testlist0[123].txt", "classInd.txt")
    extra_features = {  # noqa: RUF012
        # Whether the video is in the test list of official split 1, 2 and 3.
        "official_test": tfds.features.Tensor(shape=(3,), dtype=np.bool_),
    }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = _placed(dl_manager)
        lists = read_lists(_lists(self, dl_manager, folder))
        labels = class_names(lists["trainlist01"] | lists["testlist01"])
        classes = [readable(name) for name in labels]
        protocol = self.builder_config.protocol
        self.declare(classes, common.protocol_splits("ucf101", protocol, classes, TRIALS))
        if folder is not None and (placed := common.sources_in(folder)):
            sources = placed
        else:
            sources = [common.annotations(self, dl_manager, None, {"videos": VIDEOS})["videos"]]
        return {
            split: self.examples(
                split, sources, _Describe(lists, f"{split}list01"), len(lists[f"{split}list01"])
            )
            for split in ("train", "test")
        }

    def _generate_examples(self):
        raise NotImplementedError("_split_generators calls examples() instead")


class _Describe:
    """Looks up a file in one official list by its name, ignoring case and folders.

    Copies of UCF101 differ in folders and in case.
    """

    def __init__(self, lists: dict[str, dict[str, str]], which: str):
        self.wanted = {name.lower(): (name, label) for name, label in lists[which].items()}
        self.tests = [
            {name.lower() for name in lists.get(f"testlist{n:02d}", ())} for n in (1, 2, 3)
        ]

    def __call__(self, member: str) -> common.Entry | None:
        name = member.rpartition("/")[2].lower()
        if name not in self.wanted:
            return None
        stem, label = self.wanted[name]
        video_id = stem.removesuffix(".avi")
        tested = [name in test for test in self.tests]
        return common.Entry(video_id, video_id, readable(label), {"official_test": tested})


def readable(name: str) -> str:
    """Converts a class name: "ApplyEyeMakeup" becomes "apply eye makeup"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()


def read_lists(files: dict[str, str]) -> dict[str, dict[str, str]]:
    """Parses the official lists.

    Args:
      files: text of each list, by its name without extension.

    Returns:
      The class of each video, by list: `{"testlist01": {"v_Archery_g01_c01.avi": "Archery", ...}, ...}`.

    Raises:
      UserError: a line is not `Class/v_Class_gNN_cNN.avi [number]`, or the lists of split 1 are missing.
    """
    lists: dict[str, dict[str, str]] = {}
    for name, text in files.items():
        rows = lists.setdefault(name, {})
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            label, slash, file = line.split()[0].partition("/")
            if not slash or not file.endswith(".avi"):
                raise UserError(
                    f"{name}.txt:{number}: {line[:60]!r} is not Class/v_Class_gNN_cNN.avi; download "
                    f"the lists again from {LISTS}"
                )
            rows[file] = label
    if not lists.keys() >= {"trainlist01", "testlist01"}:
        raise UserError(
            f"trainlist01.txt or testlist01.txt is missing; download {LISTS} into --manual_dir"
        )
    return lists


def class_names(rows: dict[str, str]) -> list[str]:
    """The class names of a list in the order of UCF101's class numbers: alphabetical, ignoring case."""
    return sorted(set(rows.values()), key=str.lower)


def _placed(dl_manager) -> pathlib.Path | None:
    try:
        return pathlib.Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS found no --manual_dir: everything is downloaded
        return None


def _lists(builder, dl_manager, folder: pathlib.Path | None) -> dict[str, str]:
    for place in () if folder is None else (folder, *sorted(folder.glob("*/"))):
        if (place / "trainlist01.txt").is_file():
            lists = sorted(place.glob("t*list0[123].txt"))
            return {path.stem: user_lists.read_list(path) for path in lists}
    archive = common.annotations(builder, dl_manager, folder, {"lists": LISTS})["lists"]
    return {
        pathlib.PurePath(member.name).stem: common.decoded(
            member.read(), f"{archive}/{member.name}"
        )
        for member in archives.members(archive, suffixes={".txt"})
        if re.search(r"t(rain|est)list0[123]\.txt$", member.name)
    }
