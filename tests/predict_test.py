"""The command coco_jax.predict: its output, its picture and its exit codes."""

import json

import pytest
from PIL import Image

from coco_jax import predict
from coco_jax.errors import UserError
from tests.helpers import runs


def test_flag_json_prints_the_scores_as_json_and_flag_plot_draws_them(
    trained_run, video_path, tmp_path
):
    picture = tmp_path / "new" / "a.png"
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={trained_run}",
        f"--video={video_path}", "--actions=juggling, rope skipping", "--json",
        f"--plot={picture}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["video"] == str(video_path)
    assert {entry["action"] for entry in row["actions"]} == {"juggling", "rope skipping"}
    assert row["actions"][0]["score"] >= row["actions"][1]["score"]
    assert str(picture) in done.stderr
    assert Image.open(picture).size[0] > 1000


def test_invalid_video_has_an_error_in_its_row_and_the_others_are_ranked(
    trained_run, video_path, tmp_path
):
    (tmp_path / "x.mp4").write_bytes(b"not a video at all")
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={trained_run}",
        f"--video={tmp_path / 'x.mp4'}", f"--video={video_path}", "--actions=run,swim", "--json",
        "--top=1",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    bad, good = json.loads(done.stdout)
    assert "x.mp4: not a video" in bad["error"] and len(good["actions"]) == 1
    assert "1 of 2 videos could not be read" in done.stderr
    assert "its answers on real videos mean nothing" in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "--video is missing"),
        (("--video=a.mp4", "--plot=a.jpg"), "ends in .png"),
        (("--video=a.mp4", "--plot=/dev/null/a.png"), "choose another folder"),
    ],
    ids=["no video", "not a png", "no folder"],
)
def test_flags_that_cannot_work_are_an_error_before_any_video_is_read(parse, arguments, said):
    parse(predict, "--actions=run,swim", *arguments)
    with pytest.raises(UserError, match=said):
        predict.command([])
