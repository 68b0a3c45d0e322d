"""kinetics_zsar: trains on Kinetics-400, tests on the new classes of Kinetics-600; see README.md."""

import csv
import io
import pathlib
import re
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.data import action_names
from coco_jax.errors import UserError
from coco_jax.files import parse_json
from tfds_builders.common import archives, user_lists
from tfds_builders.common import builder as common

# Elaborative Rehearsal (Chen and Huang, ICCV 2021, arXiv 2108.02833) defined the protocol.
ER = (
    "https://raw.githubusercontent.com/DeLightCMU/ElaborativeRehearsal/e3130fd/"
    "datasets/Kinetics/zsl220/"
)
LISTS = {
    "classes": ER + "classes620_label_defn.json",
    "test": ER + "tst_class_idxs.json",
    "validation": ER + "val_class_idxs.json",
}
SEEN = 400  # number of seen classes
# Kinetics-600 renamed or split 12 classes of Kinetics-400, which are therefore not new. The other names
# that only Kinetics-600 has are the 220 new classes (label maps: mmaction2 at 4d6c9347, tools/data).
RENAMED = {new: old for old, new in action_names.RENAMED.items()}
FILE = re.compile(r"(?P<id>[\w-]{11})(_\d+_\d+)?$")
PARTS = {"train": ("k400/train",), "test": ("k600/val", "k600/test")}


class Builder(common.VideoBuilder):
    """620 classes.

    The TFDS split `train` has the training videos of Kinetics-400, `test` the validation and test
    videos of Kinetics-600.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The three class splits of Elaborative Rehearsal."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        common.Config(name="video", description="Original bytes of the videos."),
        common.Config(name="jpeg", description="JPEG frames.", storage="jpeg"),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "video"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the training videos of Kinetics-400 into k400/train and the validation and test videos "
        "of Kinetics-600 into k600/val and k600/test (.tar.gz shards, class folders, or "
        "ID_START_END.mp4 files), and the annotations k400/train.csv, k600/val.csv, k600/test.csv."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = common.manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        classes, splits = read_splits(**common.annotations(self, dl_manager, folder, LISTS))
        self.declare(classes, splits)
        labels = {part: read_csv(folder, part) for part in ("k400/train", "k600/val", "k600/test")}
        test = _Describe(classes, {**labels["k600/val"], **labels["k600/test"]})
        tested = set(test.labels) | {
            id_of(path.name)
            for part in PARTS["test"]
            if (folder / part).is_dir()
            for path in archives.files(folder / part)
        }
        kept = {k: v for k, v in labels["k400/train"].items() if k not in tested}
        train = _Describe(classes[:SEEN], kept, tested - {""})
        left_out = {"left_out_because_tested": len(labels["k400/train"]) - len(kept)}
        return {
            "train": self._part(folder, "train", train, left_out),
            "test": self._part(folder, "test", test, {}),
        }

    def _part(self, folder: pathlib.Path, split: str, describe: "_Describe", notes: dict):
        places = [folder / part for part in PARTS[split]]
        sources = [source for place in places for source in common.sources_in(place)]
        expected = len(describe.labels) or None
        return self.examples(split, sources, describe, expected, notes)

    def _generate_examples(self):
        raise NotImplementedError("_split_generators calls examples() instead")


class _Describe:
    """Identifies a file by its YouTube id.

    Its class is the one in the annotations. If there are none, it is the name of its folder.
    """

    def __init__(
        self, classes: Sequence[str], labels: dict[str, str], tested: frozenset | set = frozenset()
    ):
        self.labels, self.tested = labels, tested
        self.by_folder = {_folder(name): name for name in classes}
        self.by_folder |= {_folder(new): old for new, old in RENAMED.items() if old in set(classes)}

    def __call__(self, member: str) -> common.Entry | None:
        video_id = id_of(member.rpartition("/")[2])
        if not video_id or video_id in self.tested:
            return None
        label = self.labels.get(video_id)
        if label is None and not self.labels:
            label = self.by_folder.get(_folder(member.rpartition("/")[0].rpartition("/")[2]))
        if label is None or label not in self.by_folder.values():
            return None
        return common.Entry(video_id, video_id, label)


def id_of(file: str) -> str:
    """The YouTube id in a file name, `ID_000010_000020.mp4` or `ID.mp4`; "" for other names."""
    found = FILE.match(pathlib.PurePosixPath(file).stem)
    return found["id"] if found else ""


def _folder(name: str) -> str:
    """Normalizes a class name: the names of folders differ from it in case and punctuation."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def read_splits(
    classes: pathlib.Path, test: pathlib.Path, validation: pathlib.Path
) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    """Reads the class lists of the protocol.

    Args:
      classes: JSON list of the classes, `[{"word": name, ...}, ...]`; the seen classes come first.
      test: JSON list of the unseen classes of each split, as indices into `classes`.
      validation: the same for the validation classes.

    Returns:
      The 620 class names, and the class splits `{"1": {"seen": [...], "validation": [...],
      "unseen": [...]}, ...}`.

    Raises:
      UserError: the files do not have this form, or a renamed class of Kinetics-400 is unseen.
    """
    try:
        names, tests, validations = (
            parse_json(user_lists.read_list(path)) for path in (classes, test, validation)
        )
        names = [entry["word"] for entry in names]
        splits = {
            str(i): {
                "seen": names[:SEEN],
                "validation": [names[n] for n in v],
                "unseen": [names[n] for n in t],
            }
            for i, (t, v) in enumerate(zip(tests, validations, strict=True), 1)
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{classes.parent}: not the class lists of the protocol ({error!r}); download them from {ER}"
        ) from error
    renamed = sorted(set(RENAMED) & set(names[SEEN:]))
    if renamed:
        raise UserError(
            f"{classes}: unseen classes {', '.join(renamed)} are renamed classes of Kinetics-400, which "
            f"are seen; download the lists again from {ER}"
        )
    return names, splits


def read_csv(folder: pathlib.Path, part: str) -> dict[str, str]:
    """Reads an annotation CSV.

    Args:
      folder: folder of the data.
      part: "k400/train", "k600/val" or "k600/test". For "k600/val", the file is k600/val.csv,
        k600/annotations/val.csv, k600_val.csv or annotations/k600_val.csv.

    Returns:
      The class of each video, by YouTube id; {} if there is no such file. Classes that Kinetics-600
      renamed have their Kinetics-400 name.

    Raises:
      UserError: the file is not a CSV file, or has no column label or youtube_id.
    """
    which, _, name = part.partition("/")
    places = (
        folder / f"{part}.csv",
        folder / which / "annotations" / f"{name}.csv",
        folder / f"{which}_{name}.csv",
        folder / "annotations" / f"{which}_{name}.csv",
    )
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    rows = csv.DictReader(io.StringIO(user_lists.read_list(path, user_lists.MAX_BYTES), newline=""))
    try:
        if not {"label", "youtube_id"} <= set(rows.fieldnames or ()):
            raise UserError(
                f"{path}:1: no column label or no column youtube_id; use the annotation CSV of Kinetics"
            )
        return {row["youtube_id"]: RENAMED.get(row["label"], row["label"]) for row in rows}
    except csv.Error as error:
        raise UserError(f"{path}: {error}; use the annotation CSV of Kinetics") from error
