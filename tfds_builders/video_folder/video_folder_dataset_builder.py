"""video_folder: your own videos, in one folder per action or listed in videos.csv; see README.md."""

import pathlib
import sys

import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.errors import UserError
from tfds_builders.common import archives, user_lists
from tfds_builders.common import builder as common

SHOWN = 5  # names of videos outside of action folders that are printed; report.json has more


class Builder(common.VideoBuilder):
    """Builds a dataset from the videos in `--manual_dir`; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Reads folders, videos.csv and class splits."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        common.Config(name="video", description="Original bytes of the videos."),
        common.Config(name="jpeg", description="JPEG frames.", storage="jpeg"),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "video"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put one folder of videos per action there (ACTION/video.mp4), or videos.csv with the columns "
        "path,label; list the unseen actions in unseen.txt, one per line."
    )
    list_files = user_lists.LISTS

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = common.manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        rows, outside = find(folder)
        if outside:
            shown = ", ".join(map(repr, outside[:SHOWN])) + ", ..." * (len(outside) > SHOWN)
            print(
                f"{self.info.full_name}: left out {len(outside)} videos that are not in an action's "
                f"folder: {shown}",
                file=sys.stderr,
            )
        notes = {"outside_of_actions": common.skipped_files(outside)} if outside else {}
        classes = sorted({row.label for row in rows.values()})
        self.declare(classes, user_lists.class_splits(folder, classes, "video_folder"))
        examples = {}
        for split in ("train", "test"):
            of_split = {name: row for name, row in rows.items() if row.split == split}
            if of_split:
                describe = _Describe(of_split)
                examples[split] = self.examples(split, [folder], describe, len(of_split), notes)
        return examples

    def _generate_examples(self):
        raise NotImplementedError("_split_generators calls examples() instead")


class _Describe:
    """Looks up a file by its path relative to the folder, which is also its video id."""

    def __init__(self, rows: dict[str, user_lists.Row]):
        self.rows = rows

    def __call__(self, member: str) -> common.Entry | None:
        row = self.rows.get(member)
        return row and common.Entry(member, member, row.label)


def find(folder: pathlib.Path) -> tuple[dict[str, user_lists.Row], list[str]]:
    """Finds the videos of a folder: those that videos.csv lists, or else those in action folders.

    Args:
      folder: the folder; action folders are `ACTION/`, `train/ACTION/` and `test/ACTION/`.

    Returns:
      The class and the TFDS split of each video, by its path relative to `folder`; and the paths of
      videos that are in no action folder (if there is no videos.csv).

    Raises:
      UserError: there are no videos, videos.csv has an error, or an action folder has control characters
        in its name.
    """
    rows: dict[str, user_lists.Row] = {}
    outside: list[str] = []
    if listed := user_lists.given(folder, "videos.csv"):
        for row in user_lists.read_videos(listed, "path"):
            key = pathlib.PurePosixPath(row.key)
            if key.is_absolute() or ".." in key.parts:
                raise UserError(
                    f"{listed}: {row.key!r} is outside {folder}; give a path relative to that folder"
                )
            if key.suffix.lower() not in common.VIDEO_SUFFIXES:
                raise UserError(
                    f"{listed}: {row.key!r} does not have the extension of a video; use one of "
                    f"{' '.join(sorted(common.VIDEO_SUFFIXES))}"
                )
            rows[key.as_posix()] = row
    else:
        for path in archives.files(folder):
            if path.suffix.lower() not in common.VIDEO_SUFFIXES:
                continue
            place = path.relative_to(folder)
            name, folders = place.as_posix(), list(place.parts[:-1])
            split = folders.pop(0) if folders[:1] in (["train"], ["test"]) else ""
            label = folders[0].replace("_", " ").strip() if folders else ""
            if not label:
                outside.append(name)
                continue
            user_lists.check_label(label, f"{folder}/{name}")
            rows[name] = user_lists.Row(name, label, split)
    if not rows:
        found = f" in action folders ({len(outside)} elsewhere)" if outside else ""
        raise UserError(f"{folder}: no videos found{found}; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    for name, row in rows.items():
        rows[name] = row._replace(split=row.split or user_lists.drawn(name))
    return rows, outside
