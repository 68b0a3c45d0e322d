"""Features of videos, in the form that the dataset video_features reads."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from coco_jax.data.video import VideoError
from coco_jax.errors import UserError
from coco_jax.files import write_bytes
from coco_jax.recognition.index import Found
from coco_jax.recognition.ranking import VideoRanker

SUFFIXES = (".npz", ".h5", ".hdf5")
LIST = "videos.csv"


class Extracted(NamedTuple):
    """Features by the name of the video, and the videos that could not be read."""

    features: dict[str, Float[np.ndarray, " D"]]
    unreadable: tuple[tuple[str, str], ...]

    @property
    def width(self) -> int:
        """D; 0 if there are no features."""
        return next((len(x) for x in self.features.values()), 0)


def extract(recognizer: VideoRanker, files: Sequence[Found]) -> Extracted:
    """The mean features of the clips of each video, as `VideoRanker.features` gives them."""
    features, unreadable = {}, []
    for found in files:
        try:
            features[found.name] = recognizer.features(found.path)
        except VideoError as error:
            unreadable.append((found.name, str(error).removeprefix(f"{found.path}: ")))
    return Extracted(features, tuple(unreadable))


def labels(files: Sequence[Found]) -> dict[str, str]:
    """The action of each video by its name: that of the first folder, with spaces for underscores.

    Raises:
      UserError: a video is in no folder.
    """
    found = {}
    for file in files:
        folder, slash, _ = file.name.partition("/")
        if not slash:
            raise UserError(
                f"--labels: {file.name} is not in the folder of an action; give ACTION/video.mp4"
            )
        found[file.name] = folder.replace("_", " ").strip()
    return found


def check_output(output: pathlib.Path) -> None:
    """Checks the name of the file.

    Raises:
      UserError: it has another extension, or exists.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output={output}: give a name that ends in .npz or .h5")
    if output.exists():
        raise UserError(f"--output={output}: the file exists; remove it or choose another name")


def write(
    output: pathlib.Path,
    features: Mapping[str, Float[np.ndarray, " D"]],
    labels: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays `features` (float32 `N D`) and `ids`, and perhaps videos.csv beside them.

    Raises:
      UserError: there are no features, or the file cannot be written.
    """
    if not features:
        raise UserError("none of the videos could be read, so there are no features to write")
    x_ND, ids = np.stack(list(features.values())).astype(np.float32), list(features)
    content = io.BytesIO()
    if output.suffix.lower() == ".npz":
        np.savez(content, features=x_ND, ids=np.array(ids))
    else:
        try:
            import h5py
        except ImportError as error:
            raise UserError(
                '--output=FILE.h5 needs h5py: pip install "coco_jax[datasets]", or choose FILE.npz'
            ) from error
        with h5py.File(content, "w") as file:
            file["features"] = x_ND
            file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    try:
        write_bytes(output, content.getvalue())
        if labels is not None:
            table = io.StringIO(newline="")
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(("video_id", "label"))
            rows.writerows((name, labels[name]) for name in ids)
            write_bytes(output.with_name(LIST), table.getvalue().encode())
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}; choose another place") from error
