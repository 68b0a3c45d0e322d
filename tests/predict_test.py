"""The command coco_jax.predict: its output and its exit codes."""

import json

from tests.helpers import runs


def test_flag_json_prints_the_scores_as_json(trained_run, video_path):
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={trained_run}",
        f"--video={video_path}", "--actions=juggling, rope skipping", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["video"] == str(video_path)
    assert {entry["action"] for entry in row["actions"]} == {"juggling", "rope skipping"}
    assert row["actions"][0]["score"] >= row["actions"][1]["score"]


def test_invalid_video_has_an_error_in_its_row_and_the_others_are_ranked(
    trained_run, video_path, tmp_path
):
    (tmp_path / "x.mp4").write_bytes(b"not a video at all")
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={trained_run}",
        f"--video={tmp_path / 'x.mp4'}", f"--video={video_path}", "--actions=run,swim", "--json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    bad, good = json.loads(done.stdout)
    assert "x.mp4: not a video" in bad["error"] and len(good["actions"]) == 2
    assert "1 of 2 videos could not be read" in done.stderr
    assert "its answers on real videos mean nothing" in done.stderr
