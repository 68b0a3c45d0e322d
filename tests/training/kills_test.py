"""Runs tests/helpers/kills.py with two kills, and checks that it detects damage."""

import shutil

from tests.helpers import kills, runs


def test_run_killed_at_a_random_moment_ends_like_an_uninterrupted_run(
    data_dir, tmp_path, monkeypatch, compiled
):
    monkeypatch.setattr(kills, "STEPS", 8)
    found = kills.play(1, 1, tmp_path, data_dir, uninterrupted=1)
    assert found["kills"] == 1 and found["runs"] >= 1 and found["wrong"] == []
    whole = tmp_path / "whole" / kills.RUN
    last = runs.checkpoints(whole)[-1]
    assert kills.unreadable(last) is None
    # The checks detect a damaged checkpoint and changed metrics.
    shutil.copytree(last, tmp_path / "cut" / last.name)
    files = (tmp_path / "cut" / last.name / "state").rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    assert kills.unreadable(tmp_path / "cut" / last.name) is not None
    before = kills.outcome(whole)
    (whole / "result.json").write_text('{"top1": 1.0}')
    assert kills.outcome(whole) != before
