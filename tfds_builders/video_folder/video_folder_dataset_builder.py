"""video_folder: your own videos, ACTION/video.* or a CSV; see README.md."""

import pathlib
import sys

import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only `tfds_builders/` on the path.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.errors import UserError
from tfds_builders.common import archives, user_lists
from tfds_builders.common import builder as common


class Builder(common.VideoBuilder):
    """A folder a class, or videos.csv; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Folders, CSV, class splits."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        common.Config(name="video", description="The videos' own bytes."),
        common.Config(name="jpeg", description="JPEG frames.", storage="jpeg"),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "video"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Place a folder of videos for each action there, ACTION/video.mp4, or videos.csv with the "
        "columns path,label; name unseen actions, one a line, in unseen.txt."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = common.manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        rows = find(folder)
        classes = sorted({row.label for row in rows.values()})
        self.declare(classes, user_lists.class_splits(folder, classes, "video_folder"))
        found = {}
        for split in ("train", "test"):
            named = {name: row for name, row in rows.items() if row.split == split}
            if named:
                found[split] = self.examples(split, [folder], _Describe(named), len(named))
        return found

    def _generate_examples(self):
        raise NotImplementedError("examples are made in _split_generators")


class _Describe:
    """Members by their path under the folder, which is also their id."""

    def __init__(self, rows: dict[str, user_lists.Row]):
        self.rows = rows

    def __call__(self, member: str) -> common.Entry | None:
        row = self.rows.get(member)
        return row and common.Entry(member, member, row.label)


def find(folder: pathlib.Path) -> dict[str, user_lists.Row]:
    """Every video by its path under `folder`, with its class and TFDS split.

    Raises:
      UserError: there are none.
    """
    listed = folder / "videos.csv"
    if listed.is_file():
        rows = {}
        for row in user_lists.read_videos(listed, "path"):
            key = pathlib.PurePosixPath(row.key)
            if key.is_absolute() or ".." in key.parts:
                raise UserError(
                    f"{listed}: {row.key!r} lies outside {folder}; give a path under it"
                )
            if key.suffix.lower() not in common.VIDEO_SUFFIXES:
                raise UserError(
                    f"{listed}: {row.key!r} is no video by its name; known are "
                    f"{' '.join(sorted(common.VIDEO_SUFFIXES))}"
                )
            rows[key.as_posix()] = row
    else:
        rows = {}
        for path in archives.files(folder):
            name = path.relative_to(folder)
            if path.suffix.lower() not in common.VIDEO_SUFFIXES or len(name.parts) < 2:
                continue  # not a video, or in no action's folder
            split = name.parts[0] if name.parts[0] in ("train", "test") else ""
            if split and len(name.parts) < 3:
                continue
            label = name.parts[1 if split else 0].replace("_", " ").strip()
            rows[name.as_posix()] = user_lists.Row(name.as_posix(), label, split)
    if not rows:
        raise UserError(f"{folder}: no videos; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    return {
        name: row._replace(split=row.split or user_lists.drawn(name)) for name, row in rows.items()
    }
