"""Tests of reading built benchmarks, and of the configs that need them."""

import json

import pytest
import tensorflow_datasets as tfds

from coco_jax.errors import UserError
from tests.tfds_builders.actionhub import fake_benchmark
from tfds_builders.actionhub import actionhub_dataset_builder as module
from tfds_builders.actionhub import benchmarks

CLASSES = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]


def corpus(folder, rows):
    folder.mkdir()
    text = "".join(json.dumps({"action": a, "text": t}) + "\n" for a, t in rows)
    (folder / "rows.jsonl").write_text(text)
    return folder


def build(data, config, folder, **options):
    builder = module.Builder(data_dir=data, config=config, file_format="array_record")
    for name, value in options.items():
        setattr(builder, name, value)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return builder


@pytest.mark.parametrize("config", [None, "video"])
def test_matching_rows_get_the_class_names_of_the_benchmark(tmp_path, capfd, config):
    data = tmp_path / "data"
    fake_benchmark.store(data, "ucf101_zsar", CLASSES, config=config)
    rows = [
        ("apply eye makeup", "A woman draws a line along her lid."),
        ("apply_eye_makeup", "Someone puts mascara on the lashes."),
        ("apply_eye_makeup", "Someone puts mascara on the lashes!"),
        ("hand stand push-up", "He lowers himself upside down against a wall."),
        ("luge", "Feet first down an ice track."),
        ("luge", "Down an ice track on a small sled."),
        ("!", "An action that has no name at all."),
    ]
    builder = build(data, "ucf101_zsar", corpus(tmp_path / "manual", rows))
    stored = tfds.builder_from_directory(builder.data_path).as_data_source("train")
    assert sorted((r["action"].decode(), r["description"].decode()) for r in stored) == [
        ("ApplyEyeMakeup", rows[0][1]),
        ("ApplyEyeMakeup", rows[1][1]),
        ("HandstandPushups", rows[3][1]),
    ]
    report = json.loads((builder.data_path / "names.json").read_text())
    assert report == {
        "benchmark": f"ucf101_zsar/{config or 'intra'}",
        "matched": {
            "ApplyEyeMakeup": {"apply eye makeup": 1, "apply_eye_makeup": 2},
            "HandstandPushups": {"hand stand push-up": 1},
        },
        "unmatched_actions": {"luge": 2, "!": 1},
        "ambiguous": {},
        "classes_without_description": ["YoYo"],
    }
    steps = json.loads((builder.data_path / "cleaning.json").read_text())["steps"]
    assert steps["unicode"]["in"] == 4  # only rows that matched are cleaned
    assert steps["duplicates"] == {"in": 4, "changed": 0, "dropped": 1}
    assert builder.info.metadata["report"] == {"read": 7, "kept": 3, "skipped": {"duplicates": 1}}
    assert builder.info.metadata["actions"] == {"ApplyEyeMakeup": 2, "HandstandPushups": 1}
    printed = capfd.readouterr().err
    assert "3 of 5 actions match a class of ucf101_zsar" in printed
    assert "(4 of 7 rows), 0 match several; 1 of 3 classes have no description" in printed
    assert len([line for line in printed.splitlines() if line.startswith("duplicates ")]) == 1


def test_ambiguous_action_is_reported_and_left_out(tmp_path):
    data = tmp_path / "data"
    classes = ["pass (in game)", "pass (not in game)", "luge"]
    fake_benchmark.store(data, "kinetics_zsar", classes)
    rows = [("pass", "He throws it to a friend."), ("Luge", "Down an ice track on a sled.")]
    builder = build(data, "kinetics_zsar", corpus(tmp_path / "manual", rows))
    report = json.loads((builder.data_path / "names.json").read_text())
    assert report["ambiguous"] == {"pass": {"rows": 1, "classes": classes[:2]}}
    assert report["classes_without_description"] == classes[:2]
    assert builder.info.splits["train"].num_examples == 1


@pytest.mark.parametrize("name", module.BENCHMARKS)
def test_error_on_a_missing_benchmark_says_how_to_build_it(tmp_path, name):
    folder = corpus(tmp_path / "manual", [("luge", "Down an ice track on a sled.")])
    with pytest.raises(UserError, match=f"build it first with `.*build {name} ") as caught:
        build(tmp_path / "data", name, folder)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("actionhub/*/1.*"))


def test_corpus_without_a_matching_action_raises(tmp_path):
    fake_benchmark.store(tmp_path / "data", "hmdb51_zsar", ["draw_sword"])
    folder = corpus(tmp_path / "manual", [("luge", "Down an ice track on a sled.")])
    with pytest.raises(UserError, match=r"none of the 1 actions \('luge'\) matches") as caught:
        build(tmp_path / "data", "hmdb51_zsar", folder)
    assert "\n" not in str(caught.value)


def test_cleaning_steps_can_be_turned_off(tmp_path):
    rows = [("luge", "sled"), ("luge", "sled"), ("luge", "Ein Mann fährt mit dem Schlitten.")]
    folder = corpus(tmp_path / "manual", rows)
    uncleaned = build(tmp_path / "none", "manual", folder, cleaning="none")
    assert uncleaned.info.splits["train"].num_examples == 3
    assert json.loads((uncleaned.data_path / "cleaning.json").read_text()) == {"steps": {}}
    some = build(tmp_path / "some", "manual", folder, cleaning="-length,-language")
    assert some.info.splits["train"].num_examples == 2
    with pytest.raises(UserError, match=r"cleaning dropped every row .*'length': 2") as caught:
        build(tmp_path / "all", "manual", folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cleaning='speling'"):
        build(tmp_path / "wrong", "manual", folder, cleaning="speling")


def test_evaluation_videos_are_those_of_split_test_and_of_held_out_classes(tmp_path):
    splits = {"1": {"seen": ["a", "b"], "unseen": ["c"], "validation": ["d"]}}
    videos = {
        "train": [("train_a", "a"), ("train_c", "c"), ("train_d", "d")],
        "test": [("test_b", "b")],
    }
    fake_benchmark.store(tmp_path, "kinetics_zsar", ["a", "b", "c", "d"], splits, videos, "video")
    fake_benchmark.store(tmp_path, "video_folder", ["z"], {}, {"test": [("own", "z")]})
    (tmp_path / "downloads" / "1.0.0").mkdir(parents=True)
    assert benchmarks.builds(tmp_path) == ["kinetics_zsar/video", "video_folder/video"]
    assert set(benchmarks.tested(tmp_path)) == {
        ("train_c", "kinetics_zsar/video"),
        ("train_d", "kinetics_zsar/video"),
        ("test_b", "kinetics_zsar/video"),
        ("own", "video_folder/video"),
    }
    assert list(benchmarks.tested(tmp_path / "nowhere")) == []
