"""A run of version 0.1: its config, checkpoint and results are still read after fields were renamed.

run_0_1.zip is a run that version 0.1 trained (commit 7c97cf5; the tiny config of conftest.py with
width 8, two frames and two steps), without its TensorBoard events.
"""

import json
import pathlib
import zipfile

import pytest

from coco_jax.config import default, flatten, load_stored, migrate
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run
from coco_jax.recognition.recognizer import Recognizer

RUN = "full/split1/seed0"
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def old_run(tmp_path) -> pathlib.Path:
    """The workdir of the run."""
    with zipfile.ZipFile(pathlib.Path(__file__).with_name("run_0_1.zip")) as file:
        file.extractall(tmp_path)
    return tmp_path


def config_of(workdir: pathlib.Path, data_dir: str):
    config = load_stored(json.loads((workdir / RUN / "config.json").read_text()), "config.json")
    config.data.dir = data_dir
    return config


def test_every_old_field_is_converted_with_its_value(old_run):
    stored = json.loads((old_run / RUN / "config.json").read_text())
    assert "version" not in stored
    new = migrate(stored)
    assert new.keys() == flatten(default().to_dict()).keys()
    assert new["version"] == 2
    assert new["optimizer.learning_rate"] == stored["optimizer"]["rate"] == 0.002
    assert new["video_tower.frames"] == stored["video"]["frames"] == 2
    assert new["text_tower.trainable"] == stored["tower_text"]["trains"] == "all"
    assert new["cycle.stop_gradient"] == stored["cycle"]["frozen"] == ["target"]


def test_old_checkpoint_gives_the_scores_that_its_version_reported(old_run, full_data_dir):
    result = old_run / RUN / "result.json"
    want = json.loads(result.read_text())
    result.unlink()
    got = run(config_of(old_run, full_data_dir), old_run, "evaluate")
    assert got["top1"] == want["top1"] and got["confusion"] == want["confusion"]
    for new, old in zip(got["examples"], want["examples"], strict=True):
        assert new["video_id"] == old["video_id"]
        scores = {row["action"]: row["score"] for row in new["top"]}
        assert scores == pytest.approx(
            {row["action"]: row["score"] for row in old["top"]}, abs=1e-5
        )


def test_old_run_can_be_resumed(old_run, data_dir):
    (old_run / RUN / "result.json").unlink()
    config = config_of(old_run, data_dir)
    with pytest.raises(UserError, match=r"optimizer.steps: 2 -> 3"):
        config.optimizer.steps = 3
        run(config, old_run, "train")
    run(config, old_run, "train", allow_config_change=True)
    assert (old_run / RUN / "checkpoints" / "3").is_dir()


def test_old_run_can_predict(old_run, tmp_path):
    import numpy as np

    from coco_jax.data.video import encode

    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode(np.zeros((8, 32, 32, 3), np.uint8), 8))
    ((first, *_),) = Recognizer.load(old_run / RUN).rank([clip], ["juggling", "skipping"])
    assert first[0] in ("juggling", "skipping")


def test_config_of_a_later_version_is_refused():
    with pytest.raises(UserError, match=r"has version 3.* update coco_jax"):
        migrate({"version": 3})
