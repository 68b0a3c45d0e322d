"""The command that builds datasets: rebuilding after a change of its lists; one-line errors."""

import json

import pytest

from coco_jax.data import dataset as datasets
from coco_jax.errors import UserError
from tfds_builders.build import build, names
from tfds_builders.common import testing


def test_dataset_is_rebuilt_only_if_one_of_its_lists_has_changed(tmp_path, capsys):
    mine, data = tmp_path / "mine", str(tmp_path / "data")
    testing.write(mine, [f"train/{action}/{n}.mp4" for action in "abcd" for n in range(2)])

    def built():
        """Returns the dataset after a build, and whether it was rebuilt."""
        capsys.readouterr()
        build("video_folder", data, str(mine))
        datasets.load.cache_clear()
        rebuilt = "have changed; rebuilding" in capsys.readouterr().out
        return datasets.load("video_folder/video", data), rebuilt

    (mine / "unseen.txt").write_text("d\n")
    dataset, _ = built()
    assert dataset.class_splits == {"1": {"seen": ["a", "b", "c"], "unseen": ["d"]}}
    (mine / "notes.md").write_text("not a list")
    assert built()[1] is False

    (mine / "unseen.txt").write_text("c\n")
    dataset, rebuilt = built()
    assert rebuilt and dataset.class_splits["1"]["unseen"] == ["c"]

    (mine / "splits.json").write_text(json.dumps({"x": {"seen": ["a"], "unseen": ["b"]}}))
    dataset, rebuilt = built()
    assert rebuilt and dataset.class_splits == {"x": {"seen": ["a"], "unseen": ["b"]}}

    rows = [f"train/{action}/0.mp4,{action},train" for action in "abcd"]
    (mine / "videos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    dataset, rebuilt = built()
    assert rebuilt and len(dataset.records) == 4
    assert built()[1] is False


def test_dataset_stays_if_its_new_lists_have_an_error_or_the_rebuild_fails(tmp_path):
    mine, data = tmp_path / "mine", tmp_path / "data"
    testing.write(mine, [f"train/{action}/{n}.mp4" for action in "abcd" for n in range(2)])
    (mine / "unseen.txt").write_text("d\n")
    folder = build("video_folder", str(data), str(mine))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    (mine / "unseen.txt").write_text("zebra\n")
    with pytest.raises(UserError, match="'zebra' has no video"):
        build("video_folder", str(data), str(mine))
    (mine / "unseen.txt").write_text("c\n")
    for n in range(2):
        for action in "abcd":
            (mine / f"train/{action}/{n}.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="are broken"):
        build("video_folder", str(data), str(mine))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir() if not p.name.startswith(".")] == [folder.name]


def test_videos_outside_of_action_folders_are_reported(tmp_path, capsys):
    mine = tmp_path / "mine"
    testing.write(mine, [f"train/{action}/{n}.mp4" for action in "abcd" for n in range(2)])
    names = ["train/x.mp4", *(f"{n}.mp4" for n in range(6)), "a\n\x1b[31m.mp4"]
    for name in names:
        (mine / name).touch()
    folder = build("video_folder", str(tmp_path / "data"), str(mine))
    report = json.loads((folder / "report.json").read_text())
    assert report["train"]["outside_of_actions"] == {"count": 8, "files": sorted(names)}
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 1 and "8 videos that are not in an action's folder: '0.mp4', " in lines[0]
    assert lines[0].endswith(", ...") and "\x1b" not in lines[0]


def test_error_for_an_unknown_dataset_or_config_lists_the_existing_ones(tmp_path):
    with pytest.raises(UserError, match=r"did you mean ucf101_zsar\?") as caught:
        build("ucf101_zasr", str(tmp_path))
    assert all(name in str(caught.value) for name in names()) and len(names()) >= 7
    with pytest.raises(UserError, match=r"no config 'jpg'; use one of video, jpeg$"):
        build("video_folder/jpg", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_data_dir_below_a_file_is_a_one_line_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"--data_dir=.*/file/data: .*choose another folder"
    ) as caught:
        build("motion_zsar", str(tmp_path / "file/data"))
    assert "\n" not in str(caught.value)
