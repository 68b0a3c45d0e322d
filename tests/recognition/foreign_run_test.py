"""Loading the folder of a run that somebody else made, and that may be damaged or made up."""

import json
import os
import shutil

import pytest

from coco_jax.data.tokenizers import train_tokenizer
from coco_jax.errors import UserError
from coco_jax.recognition.recognizer import Recognizer


@pytest.fixture
def foreign(trained_run, tmp_path):
    """A copy of a run."""
    return shutil.copytree(trained_run, tmp_path / "run")


def error_of(folder) -> str:
    """The error of loading a folder; asserts that it is one line."""
    with pytest.raises(UserError) as caught:
        Recognizer.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_field(folder, section, name, value):
    config = json.loads((folder / "config.json").read_text())
    config[section][name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("video_tower", "width", 10**9, "1000000000 must be from 1 to 65,536"),
        ("video_tower", "width", 65_536, "the checkpoint is of another model"),
        ("text_tower", "depth", 10**6, "1000000 must be from 0 to 128"),
        ("text_tower", "depth", 40, "the checkpoint is of another model"),
        ("text", "length", -1, "-1 must be from 1 to 4,096"),
        ("text", "templates", ["{0.__class__}"], "must be text with one {}"),
        ("mesh", "rules", [["(a+)+$", ["fsdp"]]], "could take very long to match"),
        ("optimizer", "learning_rate_multipliers", [["(a|a)*$", 1]], "could take very long"),
    ],
)
def test_config_that_does_not_fit_is_one_line(foreign, section, name, value, message):
    set_field(foreign, section, name, value)
    assert message in error_of(foreign)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900])
def test_config_that_is_not_an_object_of_fields_is_one_line(foreign, content):
    (foreign / "config.json").write_text(content)
    assert str(foreign / "config.json") in error_of(foreign)


def test_tokenizer_that_does_not_fit_is_one_line(foreign):
    path = foreign / "tokenizer.model"
    ids = json.loads((foreign / "config.json").read_text())["text"]["trained_vocabulary"]
    path.write_bytes(b"")
    assert f"{path}: no usable tokenizer (the file is empty)" in error_of(foreign)
    few = train_tokenizer(["ab cd ef gh"] * 9, 15)
    many = train_tokenizer([" ".join(chr(0x4E00 + i) for i in range(400))] * 9, 500)
    for model in (few, many):
        path.write_bytes(model)
        assert f"ids, and the model was trained with {ids};" in error_of(foreign)
    # Runs of version 0.1 did not store the number of ids.
    set_field(foreign, "text", "trained_vocabulary", 0)
    assert "the model was trained with at most 300" in error_of(foreign)


@pytest.mark.parametrize("name", ["tokenizer.model", "checkpoints/6/state/_METADATA"])
def test_fifo_is_one_line_at_once(foreign, name):
    (foreign / name).unlink()
    os.mkfifo(foreign / name)
    assert "not a regular file" in error_of(foreign)


def test_config_that_is_a_fifo_is_not_a_run(foreign):
    (foreign / "config.json").unlink()
    os.mkfifo(foreign / "config.json")
    assert "not a run" in error_of(foreign)


def test_regular_expressions_of_a_run_are_not_used_in_prediction(foreign):
    set_field(foreign, "mesh", "rules", [[".*/kernel", ["fsdp", "tensor"]]])
    assert Recognizer.load(foreign).config.mesh.rules == ()
