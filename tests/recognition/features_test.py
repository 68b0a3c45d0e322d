"""Features of videos: the dataset video_features is built from what the command writes."""

import grain.python  # noqa: F401  (it defines flags, which `parse` would remove otherwise)
import numpy as np
import pytest

import coco_jax.features
from coco_jax.data import dataset as datasets
from coco_jax.errors import UserError
from coco_jax.recognition import model_flags
from tests.helpers.rankers import COLOURS, ColourRanker, coloured
from tfds_builders.build import build

ACTIONS = {f"turning_{name}_{n}": name for name in COLOURS for n in range(2)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of each of six actions."""
    folder = tmp_path_factory.mktemp("videos")
    for action, colour in ACTIONS.items():
        (folder / action).mkdir()
        for n in range(2):
            (folder / action / f"{n}.mp4").write_bytes(coloured((colour, 1.0)))
    return folder


@pytest.fixture
def run(parse, monkeypatch):
    monkeypatch.setattr(model_flags, "loader", lambda values: ColourRanker)

    def run_command(folder, *arguments: str) -> None:
        parse(coco_jax.features, *arguments)
        coco_jax.features.command(["features", str(folder)])

    return run_command


@pytest.mark.parametrize("name", ["f.npz", "f.h5"])
def test_the_dataset_is_built_from_the_features_of_a_folder(run, videos, tmp_path, name):
    run(videos, f"--output={tmp_path / 'placed' / name}", "--labels")
    build("video_features", str(tmp_path / "data"), str(tmp_path / "placed"))
    built = datasets.load("video_features", str(tmp_path / "data"))
    assert len(built.records) == 12
    classes = built.classes
    for record in built.records:
        action, _, file = record["video_id"].partition("/")
        assert classes[int(record["label"])] == action.replace("_", " ")
        wanted = ColourRanker().embed_video(videos / action / file)
        np.testing.assert_allclose(record["features"], wanted, atol=1e-6)


def test_videos_that_cannot_be_read_are_left_out(run, videos, tmp_path, capsys):
    for name in ("good/deep", "bad"):
        (tmp_path / "in" / name).mkdir(parents=True)
    good = next(videos.rglob("*.mp4")).read_bytes()
    (tmp_path / "in/good/deep/a.mp4").write_bytes(good)
    (tmp_path / "in/bad/b.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "in", f"--output={tmp_path / 'f.npz'}", "--labels")
    assert caught.value.code == 3 and "bad/b.mp4: not a video" in capsys.readouterr().err
    assert np.load(tmp_path / "f.npz")["ids"].tolist() == ["good/deep/a.mp4"]
    assert (tmp_path / "videos.csv").read_text() == "video_id,label\ngood/deep/a.mp4,good\n"


def test_wrong_names_and_places_are_one_line(run, videos, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.npz or \.h5"):
        run(videos, f"--output={tmp_path / 'f.csv'}")
    (tmp_path / "f.npz").touch()
    with pytest.raises(UserError, match="the file exists"):
        run(videos, f"--output={tmp_path / 'f.npz'}")
    with pytest.raises(UserError, match="not in the folder of an action"):
        run(videos / next(iter(ACTIONS)), f"--output={tmp_path / 'g.npz'}", "--labels")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="none of the videos could be read"):
        run(tmp_path / "in", f"--output={tmp_path / 'g.npz'}")
