"""Tests of video_folder: action folders, videos.csv, class splits, and errors in them."""

import json
import pathlib
import tempfile

import pytest
import tensorflow_datasets as tfds

from coco_jax.errors import UserError
from tfds_builders.common import testing, user_lists
from tfds_builders.video_folder import video_folder_dataset_builder as video_folder


class VideoFolderTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = video_folder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["video", "jpeg"]  # noqa: RUF012
    SPLITS = {"train": 6, "test": 2}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        names = [f"train/{a}/{n}.mp4" for a in ("rope_skipping", "hop") for n in range(3)]
        names += [f"test/{a}/9.avi" for a in ("rope_skipping", "hop")]
        testing.write(pathlib.Path(cls.EXAMPLE_DIR), names)
        (pathlib.Path(cls.EXAMPLE_DIR) / "unseen.txt").write_text("hop\n")
        super().setUpClass()


def test_actions_and_splits_are_read_from_folder_names(tmp_path):
    for name in (
        "a_b/1.mp4",
        "a_b/deep/er/2.MOV",
        "train/c/3.mkv",
        "test/c/4.webm",
        "5.mp4",
        "a_b/x.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows, outside = video_folder.find(tmp_path)
    assert {name: row.label for name, row in rows.items()} == {
        "a_b/1.mp4": "a b",
        "a_b/deep/er/2.MOV": "a b",
        "train/c/3.mkv": "c",
        "test/c/4.webm": "c",
    }
    assert rows["train/c/3.mkv"].split == "train" and rows["test/c/4.webm"].split == "test"
    assert outside == ["5.mp4"]


def test_videos_behind_a_linked_folder_are_found(tmp_path):
    testing.write(tmp_path / "disk", [f"{n}.mp4" for n in range(3)])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "hop").symlink_to(tmp_path / "disk")
    testing.write(tmp_path / "mine", ["run/0.mp4"])
    (tmp_path / "mine" / "unseen.txt").write_text("run\n")
    assert sorted(video_folder.find(tmp_path / "mine")[0]) == [
        "hop/0.mp4",
        "hop/1.mp4",
        "hop/2.mp4",
        "run/0.mp4",
    ]
    from tfds_builders.build import build

    folder = build("video_folder", str(tmp_path / "data"), str(tmp_path / "mine"))
    report = json.loads((folder / "report.json").read_text())
    assert sum(part["stored"] for part in report.values()) == 4


def test_actions_and_splits_are_read_from_videos_csv(tmp_path):
    (tmp_path / "videos.csv").write_text("label,path,split\nhop,x/1.mp4,test\nrun,2.mp4,\n")
    rows, outside = video_folder.find(tmp_path)
    assert not outside
    assert rows["x/1.mp4"] == user_lists.Row("x/1.mp4", "hop", "test")
    assert rows["2.mp4"].label == "run" and rows["2.mp4"].split in ("train", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.mp4\n", "no column label"),
        ("path,label\na.mp4,\n", r"videos.csv:2: path or label is empty"),
        ("path,label,split\na.mp4,x,dev\n", "'dev' is neither train nor test"),
        ("path,label\na.mp4,x\na.mp4,y\n", r"videos.csv:3: 'a.mp4' is listed twice"),
        ("path,label\n", "lists no videos"),
        ("path,label\n../a.mp4,x\n", "is outside"),
        ("path,label\na.txt,x\n", "does not have the extension of a video"),
    ],
)
def test_error_in_videos_csv_is_reported_with_its_place(tmp_path, text, message):
    (tmp_path / "videos.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        video_folder.find(tmp_path)


def test_class_splits_are_random_or_from_unseen_txt_or_splits_json(tmp_path):
    classes = ["a", "b", "c", "d", "e"]
    drawn = user_lists.class_splits(tmp_path, classes, "mine")
    assert list(drawn) == ["1", "2", "3"] and all(len(s["seen"]) == 3 for s in drawn.values())
    (tmp_path / "unseen.txt").write_text("b\n\nd\n")
    assert user_lists.class_splits(tmp_path, classes, "mine") == {
        "1": {"seen": ["a", "c", "e"], "unseen": ["b", "d"]}
    }
    mine = {"x": {"seen": ["a"], "unseen": ["b"], "validation": ["c"]}}
    (tmp_path / "splits.json").write_text(json.dumps(mine))
    assert user_lists.class_splits(tmp_path, classes, "mine") == mine


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"1": {"seen": ["a"]}}, "seen or unseen is missing"),
        ({}, "seen or unseen is missing"),
        ([1], "write "),
        ({"1": {"seen": ["a"], "unseen": ["zebra"]}}, "unseen class 'zebra' has no video"),
        ({"1": {"seen": ["a"], "unseen": ["a"]}}, "'a' is both seen and unseen"),
        ({"1": {"seen": [], "unseen": ["a"]}}, "seen or unseen is empty"),
    ],
)
def test_error_in_splits_json_is_reported(tmp_path, splits, message):
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match=message):
        user_lists.class_splits(tmp_path, ["a", "b"], "mine")


def test_drawn_split_is_reproducible_and_a_fifth_is_test():
    drawn = [user_lists.drawn(f"{n}.mp4") for n in range(2000)]
    assert drawn == [user_lists.drawn(f"{n}.mp4") for n in range(2000)]
    assert 0.17 < drawn.count("test") / 2000 < 0.23
