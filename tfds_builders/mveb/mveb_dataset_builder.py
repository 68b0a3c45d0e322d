"""mveb: the test sets of MTEB's zero-shot video classification (MVEB), from Parquet; see README.md."""

import collections
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.data import video as videos
from coco_jax.errors import UserError
from coco_jax.printing import printable
from tfds_builders.common import archives, user_lists
from tfds_builders.common import builder as common
from tfds_builders.mveb import parquet

PROMPT = "a video of {}"  # of every one of these tasks


class Set(NamedTuple):
    """A data set of MTEB (mteb/tasks/zeroshot_classification/eng, version 2.26.24).

    Attributes:
      repository: of the data set on Hugging Face.
      revision: the commit that the task uses.
      task: name of the task.
      videos: number of videos in its split `test` (mteb/descriptive_stats).
      about: what it is.
    """

    repository: str
    revision: str
    task: str
    videos: int
    about: str

    @property
    def folder(self) -> str:
        """The name of the repository without its owner."""
        return self.repository.partition("/")[2]


SETS = {
    "hmdb51": Set(
        "mteb/HMDB51",
        "7f9af5438a855e9348fb23ecb5ec740a9c21daf3",
        "HMDB51ZeroShot",
        1530,
        "HMDB51, test videos of official split 1.",
    ),
    "ucf101": Set(
        "mteb/UCF101-51VA",
        "866b006d84629d66d9927646db89bd43381925e7",
        "UCF101VideoZeroShotClassification",
        1944,
        "The 51 classes of UCF101 whose videos have sound, test videos of official split 1.",
    ),
    "kinetics400": Set(
        "mteb/kinetics-400",
        "e5b93b6eae80b8c9e9c88a381baae84d29b34fd2",
        "Kinetics400ZeroShot",
        3995,
        "Kinetics-400, up to 10 test videos of each class.",
    ),
    "kinetics600": Set(
        "mteb/kinetics-600",
        "a7be893c873e39341a96753e99bfd7b7025aaaf9",
        "Kinetics600VZeroShot",
        9576,
        "Kinetics-600, about 16 test videos of each class.",
    ),
    "kinetics700": Set(
        "mteb/kinetics-700-2020",
        "e9f50aa09759e014b8afc16cc27ec536d4c0747f",
        "Kinetics700VZeroShot",
        11190,
        "Kinetics-700-2020, about 16 test videos of each class.",
    ),
}
_SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-\w+)?\.parquet")


class Builder(common.VideoBuilder):
    """The test split only. All classes are candidates, as in MTEB."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "HMDB51, UCF101, Kinetics-400, 600 and 700."}  # noqa: RUF012
    BUILDER_CONFIGS = common.configs(**{name: found.about for name, found in SETS.items()})
    DEFAULT_BUILDER_CONFIG_NAME = "hmdb51"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the Parquet files of the split test there (test-00000-of-NNNNN.parquet and so on), or "
        "leave out --manual_dir to have them downloaded from Hugging Face."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        which = SETS[self.builder_config.protocol]
        files = shards(_placed(dl_manager, which) or _downloaded(which))
        names, counts = read_labels(files)
        classes = [readable(name, which) for name in names]
        for name in classes:
            user_lists.check_label(name, f"{files[0]}: the classes in its metadata")
        empty = [name for label, name in enumerate(classes) if not counts[label]]
        split = {"seen": [], "unseen": classes, "empty": empty}
        about = {"task": which.task, "dataset": which.repository, "revision": which.revision}
        self.declare(classes, {"1": split}, mteb=about | {"prompt": PROMPT})
        total = counts.total()
        if total != which.videos:
            print(
                f"{self.info.full_name}: the files have {total:,} videos, and MTEB's {which.task} has "
                f"{which.videos:,}: the accuracy cannot be compared with MTEB's",
                file=sys.stderr,
            )
        examples = self.examples(
            "test",
            files,
            None,
            total,
            {"in_mteb": which.videos},
            read=_Read(classes, self.storage),
        )
        return {"test": examples}

    def _generate_examples(self):
        raise NotImplementedError("_split_generators calls examples() instead")


class _Read:
    """Yields a triple for each row of a file, as `VideoBuilder.examples` needs them."""

    def __init__(self, classes: Sequence[str], storage: common.Storage):
        self._classes, self._storage = classes, storage

    def __call__(self, path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
        try:
            for number, row in enumerate(parquet.rows(path)):
                key = f"{path.stem}-{number}"
                where = f"{path.name}, row {number}" + f" ({row.path})" * bool(row.path)
                if row.data is None:
                    yield key, None, f"{where}: {row.problem}"
                    continue
                try:
                    stored = self._storage.store(row.data, where)
                except videos.VideoError as error:
                    yield key, None, str(error)
                    continue
                name = pathlib.PurePosixPath(row.path.replace("\\", "/")).stem
                label = self._classes[row.label]
                yield key, {**stored, "video_id": printable(name) or key, "label": label}, ""
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"{path}: {reason}; download the file again")


def readable(name: str, which: Set) -> str:
    """The name of a class in MTEB's prompts: in HMDB51's, underscores are spaces."""
    return name.replace("_", " ") if which.task.startswith("HMDB51") else name


def read_labels(files: Sequence[pathlib.Path]) -> tuple[list[str], collections.Counter[int]]:
    """The class names, which must be the same in all files, and the number of videos of each label.

    Raises:
      UserError: a file cannot be read, or has other classes.
    """
    names: list[str] = []
    counts: collections.Counter[int] = collections.Counter()
    for path in files:
        try:
            found = parquet.labels(path)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if names and found.names != names:
            raise UserError(
                f"{path}: its classes differ from those of {files[0].name}; give the files of one "
                "data set"
            )
        names = found.names
        counts.update(found.labels)
    return names, counts


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The Parquet files of the split `test` in a folder, at any depth, in order.

    These are named `test-00000-of-00002.parquet` and so on, or `test.parquet`, or are in a folder
    `test`.

    Raises:
      UserError: there are none, or some of the numbers are missing.
    """
    found = [path for path in archives.files(folder) if path.suffix == ".parquet"]
    numbered = {path: match for path in found if (match := _SHARD.fullmatch(path.name))}
    chosen = [
        path
        for path in found
        if (numbered[path]["split"] if path in numbered else path.stem) == "test"
        or path.parent.name == "test"
    ]
    if not chosen:
        raise UserError(
            f"{folder}: no Parquet files of the split test; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    if matches := [numbered[path] for path in chosen if path in numbered]:
        count = int(matches[0]["count"])
        numbers = sorted(int(match["number"]) for match in matches)
        if len(matches) < len(chosen) or numbers != list(range(count)):
            raise UserError(
                f"{folder}: has the files {_shown(numbers)} of {count}, counted from 0; give every file "
                "of the split test once"
            )
    return chosen


def _shown(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + ", ..." * (len(numbers) > 10)


def _placed(dl_manager: tfds.download.DownloadManager, which: Set) -> pathlib.Path | None:
    """The folder with the user's files; None if there is no --manual_dir."""
    try:
        folder = pathlib.Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS raises it if there is no such folder
        return None
    inner = folder / which.folder
    return inner if inner.is_dir() else folder


def _downloaded(which: Set) -> pathlib.Path:
    """The folder of the files in the cache of Hugging Face, where they are downloaded if necessary.

    Raises:
      UserError: the download fails.
    """
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                which.repository,
                repo_type="dataset",
                revision=which.revision,
                allow_patterns=["test-*.parquet", "*/test-*.parquet"],
                etag_timeout=10,
            )
        )
    except Exception as error:  # network errors have many types
        raise UserError(
            f"https://huggingface.co/datasets/{which.repository}: cannot be downloaded "
            f"({type(error).__name__}); copy the files test-*.parquet of its revision {which.revision} "
            "to a folder, and give it with --manual_dir"
        ) from error
