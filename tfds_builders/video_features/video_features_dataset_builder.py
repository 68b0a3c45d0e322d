"""video_features: features that you extracted from videos; see README.md."""

import fnmatch
import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax import arrays
from coco_jax.errors import UserError
from coco_jax.files import LIST_LIMIT, read_text
from tfds_builders.common import archives, user_lists
from tfds_builders.common import builder as common
from tfds_builders.video_features import hdf5
from tfds_builders.video_features.vectors import vector

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")


class Builder(common.VideoBuilder):
    """Builds a dataset of one float32 vector per video.

    CoCo trains on it with `config.video_tower.kind = "features"`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Reads npy, npz and HDF5 files."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the features there (*.npz with arrays features and ids, NAME.npy with NAME.ids.txt, one "
        "ID.npy per video, or *.h5), and videos.csv with the columns video_id,label."
    )
    list_files = (*user_lists.LISTS, "*.ids.txt")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "features": tfds.features.Tensor(shape=(None,), dtype=np.float32),
                    "video_id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(),
                }
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = common.manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        listed = user_lists.given(folder, "videos.csv")
        if listed is None:
            raise UserError(f"{folder}/videos.csv is missing; {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        rows = {row.key: row for row in user_lists.read_videos(listed, "video_id")}
        classes = sorted({row.label for row in rows.values()})
        self.info.features["label"].names = classes
        splits = user_lists.class_splits(folder, classes, "video_features")
        self.info.metadata["class_splits"] = splits
        examples = {}
        for split in ("train", "test"):
            of_split = {k: v for k, v in rows.items() if (v.split or user_lists.drawn(k)) == split}
            if of_split:
                examples[split] = self._generate_examples(folder, split, of_split)
        return examples

    def _generate_examples(self, folder: pathlib.Path, split: str, rows: dict[str, user_lists.Row]):
        stored: set[str] = set()
        broken: dict[str, str] = {}
        width = None
        for video_id, found in read(folder, rows):
            if video_id in stored:
                continue
            problem = _problem(found, width)
            if problem:
                broken[video_id] = f"{video_id}: {problem}"
                continue
            width = len(found)
            stored.add(video_id)
            yield (
                video_id,
                {"features": found, "video_id": video_id, "label": rows[video_id].label},
            )
        skipped = [
            path.relative_to(folder).as_posix()
            for path in archives.files(folder)
            if path.suffix.lower() not in SUFFIXES
            and not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in self.list_files)
        ]
        counts = {
            "stored": len(stored),
            "expected": len(rows),
            "missing": len(rows) - len(stored) - len(broken),
            "skipped": common.skipped_files(skipped),
            "broken": [{"video": k, "reason": v} for k, v in sorted(broken.items())],
        }
        (self.data_path / f"report-{split}.json").write_text(json.dumps(counts))
        if not stored:
            self._check_reports()  # its error says more than that of TFDS for an empty split


def _problem(vector: np.ndarray, width: int | None) -> str:
    """Says why a vector cannot be stored; "" if it can. `width` is the length of the first vector."""
    if vector.ndim == 0:
        return "is a single number, not a vector"
    if not len(vector):
        return "has no values"
    if not np.isfinite(vector).all():
        return "has NaN or infinite values"
    if width is not None and len(vector) != width:
        return f"has {len(vector)} values, but other videos have {width}"
    return ""


def read(folder: pathlib.Path, rows: dict[str, user_lists.Row]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `(video_id, features)` of the requested videos, with float32 features of shape [D].

    Features of shape [T, D] are averaged over T. The result is a scalar or empty if the features are.

    Args:
      folder: folder of *.npz, *.npy, *.h5 and *.hdf5 files, at any depth.
      rows: the requested videos, by id; all others are left out.

    Raises:
      UserError: there are no such files; one cannot be read, refers to other files, is a decompression
        bomb, or has anything but real numbers; or its numbers of ids and of features differ.
    """
    files = [path for path in archives.files(folder) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"{folder}: no feature files found; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    for path in files:
        try:
            yield from _READERS[path.suffix.lower()](path, rows)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); write it again in a "
                "form of tfds_builders/video_features/README.md"
            ) from error


def _pairs(ids, features_ND, rows) -> Iterator[tuple[str, np.ndarray]]:
    if features_ND.shape[:1] != (len(ids),):
        raise ValueError(
            f"{len(ids)} ids for features of shape {features_ND.shape}; give one id per row of features"
        )
    for n, video_id in enumerate(ids):
        video_id = video_id.decode() if isinstance(video_id, bytes) else str(video_id)
        if video_id in rows:
            yield video_id, vector(features_ND[n])


def _npz(path: pathlib.Path, rows):
    with arrays.open_npz(path) as file:
        if {"features", "ids"} <= set(file):
            yield from _pairs(file["ids"].reshape(-1).tolist(), file["features"], rows)
            return
        for video_id in sorted(set(file) & set(rows)):
            yield video_id, vector(file[video_id])


def _npy(path: pathlib.Path, rows):
    listed = path.with_suffix(".ids.txt")
    if listed.is_file():
        ids = read_text(listed, limit=LIST_LIMIT).splitlines()
        yield from _pairs(ids, arrays.open_npy(path), rows)
    elif path.stem in rows:
        yield path.stem, vector(arrays.open_npy(path))


_READERS = {".npz": _npz, ".npy": _npy, ".h5": hdf5.read, ".hdf5": hdf5.read}
