"""Runs tests/helpers/kills.py with one kill, and checks that it detects damage."""

import shutil

import pytest

from tests.helpers import kills, runs


def test_run_killed_while_it_trains_ends_like_an_uninterrupted_run(
    data_dir, tmp_path, monkeypatch, compiled
):
    monkeypatch.setattr(kills, "STEPS", 8)
    found = kills.play(1, 1, tmp_path, data_dir, uninterrupted=1, after=1)
    assert found["kills"] == 1 and found["runs"] >= 1 and found["wrong"] == []
    assert "starting" not in found
    whole = tmp_path / "whole" / kills.RUN
    last = runs.checkpoints(whole)[-1]
    assert kills.unreadable(last) is None
    # The checks detect a damaged checkpoint, changed metrics, and temporary files.
    shutil.copytree(last, tmp_path / "cut" / last.name)
    files = (tmp_path / "cut" / last.name / "state").rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    assert kills.unreadable(tmp_path / "cut" / last.name) is not None
    before = kills.outcome(whole)
    (whole / "result.json").write_text('{"top1": 1.0}')
    assert kills.outcome(whole) != before
    left = [
        whole / "run.lock",
        whole / "config.json.partial",
        tmp_path / "data/tokenizers/x.partial",
    ]
    for path in left:
        path.touch()
    assert len(kills.litter(tmp_path / "whole", tmp_path / "data")) == len(left)


@pytest.mark.faults
@pytest.mark.parametrize(("processes", "count"), [(1, 25), (2, 25)])
def test_run_killed_at_many_random_moments_ends_like_an_uninterrupted_run(
    data_dir, tmp_path, compiled, processes, count
):
    found = kills.play(count, 2, tmp_path, data_dir, processes=processes)
    print(found)
    assert found["kills"] == count and found["wrong"] == []
