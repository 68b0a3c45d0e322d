"""Tests of video_features: every file format, invalid features, and training on a built dataset."""

import json
import pathlib
import tempfile

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

from coco_jax.data import dataset as datasets
from coco_jax.errors import UserError
from tfds_builders.build import build
from tfds_builders.video_features import video_features_dataset_builder as video_features

WIDTH = 12


def table(folder: pathlib.Path, classes: int = 6, each: int = 6) -> list[str]:
    """Writes videos.csv, in which the last two videos of each class are test; returns the ids."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, ids = ["video_id,label,split"], []
    for c in range(classes):
        for n in range(each):
            ids.append(f"v{c}_{n}")
            lines.append(f"{ids[-1]},action {c},{'test' if n >= each - 2 else 'train'}")
    (folder / "videos.csv").write_text("\n".join(lines) + "\n")
    return ids


def vectors(ids: list[str]) -> np.ndarray:
    return np.stack([np.random.default_rng(list(i.encode())).normal(size=WIDTH) for i in ids])


class VideoFeaturesTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = video_features.Builder
    SPLITS = {"train": 24, "test": 12}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        ids = table(pathlib.Path(cls.EXAMPLE_DIR))
        np.savez(pathlib.Path(cls.EXAMPLE_DIR) / "x.npz", features=vectors(ids), ids=np.array(ids))
        super().setUpClass()


@pytest.mark.parametrize("form", ["npz", "npz by id", "npy", "npy each", "h5", "h5 by id"])
def test_every_file_format_gives_the_same_vectors(tmp_path, form):
    place = tmp_path / "placed"
    ids = table(place)
    wanted = dict(zip(ids, vectors(ids).astype(np.float32), strict=True))
    match form:
        case "npz":
            np.savez(place / "f.npz", features=vectors(ids), ids=np.array(ids))
        case "npz by id":
            np.savez(place / "f.npz", **dict(wanted))
        case "npy":
            np.save(place / "f.npy", vectors(ids))
            (place / "f.ids.txt").write_text("\n".join(ids))
        case "npy each":  # one row per frame; the builder takes the mean
            (place / "features").mkdir()
            for name, vector in wanted.items():
                np.save(place / "features" / f"{name}.npy", np.stack([vector - 1, vector + 1]))
        case "h5":
            with h5py.File(place / "f.h5", "w") as file:
                file["features"], file["ids"] = vectors(ids), np.array(ids, "S")
        case "h5 by id":
            with h5py.File(place / "f.hdf5", "w") as file:
                for name, vector in wanted.items():
                    file[name] = vector
    build("video_features", str(tmp_path / "data"), str(place))
    records = datasets.load("video_features", str(tmp_path / "data")).records
    assert len(records) == 36
    for record in records:
        np.testing.assert_allclose(record["features"], wanted[record["video_id"]], atol=1e-6)


def test_invalid_features_are_reported_and_pickles_raise(tmp_path, capsys):
    place = tmp_path / "placed"
    ids = table(place)
    x = vectors(ids)
    x[3, 2] = np.nan
    np.savez(place / "f.npz", features=x[:-1], ids=np.array(ids[:-1]))
    (place / "notes.md").write_text("not features")
    folder = build("video_features", str(tmp_path / "data"), str(place), max_broken=0.1)
    report = json.loads((folder / "report.json").read_text())
    assert [b["video"] for b in report["train"]["broken"]] == [ids[3]]
    assert report["test"]["missing"] == 1
    assert report["train"]["skipped"] == {"count": 1, "files": ["notes.md"]}
    printed = capsys.readouterr().err
    assert "notes.md" in printed and f"{ids[3]}: has NaN or infinite values" in printed
    (place / "f.npz").unlink()
    np.save(place / "f.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (place / "f.ids.txt").write_text(ids[0])
    with pytest.raises(UserError, match=r"f.npy: cannot be read \(.*pickle"):
        build("video_features", str(tmp_path / "other"), str(place))
    np.save(place / "f.npy", vectors(ids))
    with pytest.raises(UserError, match=r"1 ids for features of shape \(36, 12\)"):
        build("video_features", str(tmp_path / "other"), str(place))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((36, 4), np.complex64), "complex64; only real numbers"),
        (np.full((36, 4), "1.5"), "only real numbers"),
        (np.float32(1), r"36 ids for features of shape \(\)"),
        (np.ones(36), "is a single number, not a vector"),
        (np.ones((36, 0)), "has no values"),
        (np.ones((36, 0, 4)), "has no values"),
        (np.full((36, 4), 1e300), "has NaN or infinite values"),
    ],
    ids=["complex", "strings", "scalar", "numbers", "width 0", "no frames", "beyond float32"],
)
@pytest.mark.parametrize("form", ["npz", "npy", "h5"])
def test_features_that_are_not_vectors_of_finite_numbers_are_an_error(tmp_path, x, message, form):
    ids = table(tmp_path)
    rows = dict.fromkeys(ids)
    match form:
        case "npz":
            np.savez(tmp_path / "f.npz", features=x, ids=np.array(ids))
        case "npy":
            np.save(tmp_path / "f.npy", x)
            (tmp_path / "f.ids.txt").write_text("\n".join(ids))
        case "h5":
            if x.dtype.kind == "U":
                x = x.astype("S")
            with h5py.File(tmp_path / "f.h5", "w") as file:
                file["features"], file["ids"] = x, np.array(ids, "S")
            message = message.replace("; only real numbers", "; store real").replace(
                "only", "store"
            )
    if message.startswith(("is ", "has ")) and not (form == "npy" and x.size == 0):
        assert {
            video_features._problem(v, None) for _, v in video_features.read(tmp_path, rows)
        } == {message}
    else:
        with pytest.raises(UserError, match=message if x.size else "has no values"):
            list(video_features.read(tmp_path, rows))


def test_split_without_usable_features_is_an_error_in_one_line(tmp_path):
    ids = table(tmp_path / "placed")
    np.savez(tmp_path / "placed/f.npz", features=np.ones((36, 0)), ids=np.array(ids))
    with pytest.raises(UserError, match="24 of 24 videos of split 'train' are broken") as error:
        build("video_features", str(tmp_path / "data"), str(tmp_path / "placed"))
    assert "has no values" in str(error.value) and "\n" not in str(error.value)


def test_coco_trains_on_features(tmp_path, one_device):
    from coco_jax.evaluation.experiment import run
    from conftest import tiny_config

    place = tmp_path / "placed"
    ids = table(place)
    np.savez(place / "f.npz", features=vectors(ids), ids=np.array(ids))
    (place / "unseen.txt").write_text("action 4\naction 5\n")
    build("video_features", str(tmp_path / "data"), str(place))
    config = tiny_config(
        str(tmp_path / "data"), data__name="video_features", ablation="label", text__corpus=None,
        text__vocabulary=60, data__batch=8, video_tower__kind="features", video_tower__feature_dim=WIDTH,
        optimizer__steps=3,
    )  # fmt: skip
    figures = run(config, tmp_path / "run", "both", False)
    assert figures["unseen_videos"] == 12 and figures["generalised"]
