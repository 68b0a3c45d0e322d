"""Tests of the reader of the corpus that comes with the package."""

import re
import subprocess
import sys
import zlib
from importlib import resources

import pytest

from coco_jax.data import starter


def test_actions_are_sorted_and_a_changed_answer_changes_no_other():
    texts = starter.load()
    assert list(texts) == sorted(texts) and len(texts) == 1211
    texts.clear()
    assert len(starter.load()) == 1211
    luge = starter.load()["luge"]
    assert "sled" in luge.definition and isinstance(luge.captions, tuple)


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("luge", "luge"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("PushUps", "push up"),
        ("pullup", "pull ups"),
        ("RIDING A BIKE", "riding a bike"),
        ("tying necktie", "tying tie"),
        ("curling", "curling (sport)"),
        ("SkyDiving", "skydiving"),
        ("waking up", "waking up"),
        ("passing American football", None),  # in game, or not
        ("teleporting", None),
        ("", None),
    ],
)
def test_an_action_is_found_however_it_is_spelled(name, action):
    assert starter.find(name) == action


def test_files_are_small_and_have_their_license():
    files = [
        f for f in resources.files(starter).iterdir() if re.fullmatch(r"part_\d.jsonl", f.name)
    ]
    assert len(zlib.compress(b"".join(file.read_bytes() for file in files))) < 3 << 20
    assert all(len(file.read_bytes()) < 300_000 for file in files)
    assert "CC BY 4.0" in resources.files(starter).joinpath("LICENSE.md").read_text()


def test_reading_needs_no_tensorflow():
    code = (
        "import sys; from coco_jax.data import starter; starter.find('luge'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "tensorflow_datasets", "jax"} & set(done.stdout.split())
