"""The way of docs/own_data.md, with small videos: features, a trained model, a report, predictions."""

import ast
import csv
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import coco_jax
from coco_jax import report as report_command
from coco_jax.data.clip_reader import ClipReader
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run
from coco_jax.evaluation.results import summarise, write_json
from coco_jax.recognition import features, index
from coco_jax.recognition.feature_recognizer import FeatureRecognizer
from conftest import on_one_device, tiny_config
from tests.helpers import runs
from tests.helpers.rankers import COLOURS, ColourRanker, coloured
from tfds_builders.build import build

CAPTIONS = {
    f"turning {name} {n}": [f"the picture is {name} number {n}", f"{name} {n} everywhere"]
    for name in COLOURS
    for n in range(3)
}
UNSEEN = [name for name in CAPTIONS if name.endswith("2")]


class Source(ColourRanker):
    """In place of I3D."""

    def clip_features(self, clips):
        return jnp.asarray(self.embed_clips(clips))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with videos and the trained run of their features."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for action in CAPTIONS:
        (folder / "videos" / action).mkdir(parents=True)
        for n in range(3):
            colour = action.split()[1]
            video = coloured((colour, 1.0 + n / 10 + rng.random()))
            (folder / "videos" / action / f"{n}.mp4").write_bytes(video)
    files = index.find(str(folder / "videos"))
    found = features.extract(Source(), files)
    assert not found.unreadable
    (folder / "own/texts").mkdir(parents=True)
    features.write(folder / "own/i3d.npz", found.features, features.labels(files))
    (folder / "own/unseen.txt").write_text("\n".join(UNSEEN))
    with (folder / "own/texts/descriptions.csv").open("w", newline="") as stream:
        rows = [(action, text) for action, texts in CAPTIONS.items() for text in texts]
        csv.writer(stream).writerows([("action", "description"), *rows])
    build("video_features", str(folder / "data"), str(folder / "own"))
    build("actionhub/manual", str(folder / "data"), str(folder / "own/texts"))
    config = own_config(folder, "i3d")
    with on_one_device():
        metrics = run(config, folder / "runs")
    write_json(folder / "runs/results.json", summarise([metrics], config.to_dict()))
    return folder


def own_config(folder, extractor):
    config = tiny_config(
        str(folder / "data"), video_tower__kind="features", video_tower__extractor=extractor,
        video_tower__feature_dim=Source().vector_width, text__corpus="actionhub/manual",
        data__name="video_features", ablation="label+desc", optimizer__steps=20,
    )  # fmt: skip
    return config


@pytest.fixture
def recognizer(workplace):
    found = coco_jax.load(workplace / "runs/label+desc/split1/seed0")
    assert isinstance(found, FeatureRecognizer)
    vars(found)["source"] = Source()
    return found


def test_predictions_of_videos_are_those_of_the_evaluation(workplace, recognizer, tmp_path):
    with (workplace / "runs/label+desc/split1/seed0/predictions.csv").open() as stream:
        tested = list(csv.DictReader(stream))
    assert len(tested) >= len(UNSEEN)
    captions = {name: CAPTIONS[name] for name in UNSEEN}
    recognizer.save(tmp_path / "model", captions)
    saved = coco_jax.load(tmp_path / "model")
    vars(saved)["source"] = Source()
    for row in tested:
        path = workplace / "videos" / row["video_id"]
        ranked = recognizer.rank([path], UNSEEN, captions)[0]
        assert ranked[0].action == row["predicted"]
        assert [name for name, _ in ranked].index(row["class"]) + 1 == int(row["rank"])
        assert saved.rank([path], UNSEEN)[0] == ranked
    assert isinstance(recognizer.clip_reader(1), ClipReader)
    assert recognizer.timeline(path, UNSEEN, captions).segments
    clip = recognizer.clip_reader(1).read(path)
    together = np.asarray(recognizer.clip_function()(clip[None]))
    np.testing.assert_allclose(together, recognizer.embed_clips(clip[None]), atol=1e-5)


def execute(name: str, names: dict[str, object]) -> dict[str, object]:
    """Runs the cells of a notebook; `names` replace what its cell of parameters defines."""
    cells = json.loads((runs.ROOT / "examples" / name).read_text())["cells"]
    found: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        if "parameters" in cell["metadata"].get("tags", ()):
            ast.parse("".join(cell["source"]))
            found |= names
        else:
            exec(compile("".join(cell["source"]), name, "exec"), found)
    return found


def test_notebook_read_a_run(workplace, capsys):
    folder = workplace / "runs/label+desc/split1/seed0"
    execute("read_a_run.ipynb", {"json": json, "pathlib": pathlib, "folder": folder})
    printed = capsys.readouterr().out
    assert "top-1" in printed and all(name in printed for name in UNSEEN) and "step   20" in printed


def test_notebook_name_actions(workplace, capsys, monkeypatch):
    """With a recogniser of colours."""
    monkeypatch.setattr(coco_jax, "load", Source)
    videos = sorted((workplace / "videos").rglob("*.mp4"))[:3]
    names = {"coco_jax": coco_jax, "videos": videos, "actions": list(COLOURS)}
    execute("name_actions.ipynb", names)
    printed = capsys.readouterr().out
    assert all(str(video) in printed for video in videos) and "none of these" not in printed
    assert f"{videos[0]} -> {videos[0].parent.name.split()[1]}" in printed


def test_notebook_own_data(workplace, tmp_path, capsys, monkeypatch, one_device):
    """The notebook trains the model of the other tests again."""
    shutil.copytree(workplace / "videos", tmp_path / "videos")
    shutil.copytree(workplace / "own/texts", tmp_path / "own/texts")
    shutil.copy(workplace / "own/unseen.txt", tmp_path / "own/unseen.txt")
    config = own_config(workplace, "i3d")
    monkeypatch.setattr(FeatureRecognizer, "source", Source())
    names = {"coco_jax": coco_jax, "folder": tmp_path, "source": Source(), "config": config}
    found = execute("own_data.ipynb", names)
    before = json.loads((workplace / "runs/label+desc/split1/seed0/result.json").read_text())
    assert found["result"]["top1"] == before["top1"]
    assert isinstance(found["recognizer"], FeatureRecognizer)
    assert any(name in capsys.readouterr().out for name in UNSEEN)


def test_report_is_written(workplace, parse):
    output = workplace / "report.html"
    parse(report_command, f"--output={output}")
    report_command.command(["report", str(workplace / "runs")])
    page = output.read_text()
    assert all(name in page for name in UNSEEN) and "label+desc" in page


def test_model_of_unknown_features_is_an_error(workplace, tmp_path):
    folder = workplace / "runs/label+desc/split1/seed0"
    stored = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"video_tower": stored["video_tower"] | {"extractor": ""}}, "extractor=i3d"),
        ({"alignment": "ridge"}, "alignment='learned'"),
    ):
        copy = tmp_path / message
        (copy / "checkpoints").mkdir(parents=True)
        (copy / "config.json").write_text(json.dumps(stored | change))
        with pytest.raises(UserError, match=message):
            coco_jax.load(copy)
