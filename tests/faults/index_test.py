"""Builds of an index that are killed, at every operation on files and then at random times (minutes)."""

import random
import signal
import subprocess
import sys
import time

import pytest

from coco_jax.recognition import index
from tests.helpers.indexes import content
from tests.helpers.rankers import ColourRanker, coloured
from tests.helpers.runs import ROOT

pytestmark = pytest.mark.faults
KILLS = 20  # at random times


@pytest.fixture
def folder(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for n in range(6):
        (videos / f"{n}.mp4").write_bytes(coloured(("red", 1.0 + n), ("blue", 2.0)))
    return videos


def child(folder, output, step: int) -> subprocess.Popen:
    arguments = map(str, (folder, output, step))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.indexes", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )


def test_a_killed_build_ends_with_the_same_bytes(folder, tmp_path):
    index.build(index.find(str(folder)), tmp_path / "whole", ColourRanker())
    wanted = content(tmp_path / "whole")
    output = tmp_path / "index"
    step, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:  # each time one operation more than the last time
        code = child(folder, output, step).wait(120)
        assert code in (0, -signal.SIGKILL)
        step += 1
    assert step > 5 and content(output) == wanted


def test_a_build_that_is_killed_at_random_times_ends_with_the_same_bytes(folder, tmp_path):
    began = time.monotonic()
    index.build(index.find(str(folder)), tmp_path / "whole", ColourRanker())
    seconds = time.monotonic() - began
    chance, killed = random.Random(0), 0
    for trial in range(KILLS):
        output = tmp_path / f"index{trial}"
        process = child(folder, output, 10**6)
        process.stdout.readline()  # it has started to build
        time.sleep(chance.uniform(0, seconds))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        index.build(index.find(str(folder)), output, ColourRanker())
        assert content(output) == content(tmp_path / "whole")
    assert killed > KILLS / 2
