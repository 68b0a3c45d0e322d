"""Tests of the config `captions`: file types, the join with classes, and captions left out."""

import gzip
import json
import pathlib
import shlex

import pytest
import tensorflow_datasets as tfds

from coco_jax.errors import UserError
from tests.tfds_builders.actionhub import fake_benchmark
from tfds_builders.actionhub import actionhub_dataset_builder as module
from tfds_builders.actionhub import captions, readers

DUMMY_CAPTIONS = pathlib.Path(__file__).parent / "dummy_captions"
ROWS_KEPT = 6


class CaptionsTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = module.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["captions"]  # noqa: RUF012
    EXAMPLE_DIR = str(DUMMY_CAPTIONS)
    SPLITS = {"train": ROWS_KEPT}  # noqa: RUF012


def build(tmp_path, folder=DUMMY_CAPTIONS):
    builder = module.Builder(
        data_dir=tmp_path / "data", config="captions", file_format="array_record"
    )
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    rows = tfds.builder_from_directory(builder.data_path).as_data_source("train")
    stored = sorted((r["video_id"].decode(), r["action"].decode()) for r in rows)
    return builder, stored, json.loads((builder.data_path / "captions.json").read_text())


def test_captions_are_joined_to_classes_and_evaluation_videos_left_out(tmp_path, capfd):
    builder, stored, report = build(tmp_path)
    assert stored == [
        ("fake-a_0001", "Hula hoop"),
        ("fake-a_0001", "Hula hoop"),
        ("fake-k_0001", "luge"),
        ("fake-k_0001", "luge"),
        ("fake-k_0002", "skipping rope"),
        ("fake-k_0006", "luge"),
    ]
    assert report == {
        "files": {
            "activity_net.v1-3.min.json.gz": "annotations",
            "dense.json": "captions",
            "excluded_ids.txt": "excluded",
            "own.csv": "captions",
            "train.csv": "annotations",
            "val.csv": "annotations",
            "vatex.json": "captions",
        },
        "captions": 11,
        "used": 6,
        "left_out": {
            "annotated as testing": 1,
            "annotated as validate": 2,
            "excluded_ids.txt": 1,
            captions.NO_CLASS: 1,
        },
        "videos_left_out": {
            "annotated as testing": 1,
            "annotated as validate": 2,
            "excluded_ids.txt": 1,
            captions.NO_CLASS: 1,
        },
    }
    assert (
        "6 of 11 captions used; left out: 2 (2 videos) annotated as validate"
        in capfd.readouterr().err
    )
    assert (builder.data_path / "cleaning.json").is_file()


def test_videos_that_a_built_benchmark_evaluates_on_are_left_out(tmp_path):
    splits = {"1": {"seen": ["luge"], "unseen": ["skipping rope"]}}
    videos = {
        "train": [("fake-k_0001_000010_000020", "luge"), ("fake-k_0002", "skipping rope")],
        "test": [("fake-k_0006", "luge")],
    }
    fake_benchmark.store(
        tmp_path / "data", "kinetics_zsar", ["luge", "skipping rope"], splits, videos, "video"
    )
    _, stored, report = build(tmp_path)
    assert {video for video, _ in stored} == {"fake-k_0001", "fake-a_0001"}
    assert report["left_out"]["tested by kinetics_zsar/video"] == 2
    assert report["captions"] == report["used"] + sum(report["left_out"].values())


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("fake-k_0001_000010_000020", "fake-k_0001"),
        ("v_fake-a_0001", "fake-a_0001"),
        ("_1_22_333_4", "_1_22_333_4"),
        ("_1_22_333_4_5_6", "_1_22_333_4"),
        (" v_v_v_v_v_v", "v_v_v_v_v_v"),
        ("fake-k_0001.mp4", "fake-k_0001"),
        ("v_ApplyEyeMakeup_g01_c01", "v_ApplyEyeMakeup_g01_c01"),
    ],
)
def test_youtube_id_is_extracted_from_names(name, video):
    assert captions.youtube_id(name) == video


def folder_of(tmp_path, **files):
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (tmp_path / f"{stem}.{suffix}").write_text(text)
    return tmp_path


CAPTIONS = "id,caption\nfake-k_0001,A man slides down the ice.\n"
ANNOTATIONS = "label,youtube_id,time_start,time_end,split\nluge,fake-k_0001,1,2,{}\n"


@pytest.mark.parametrize("split", ["train", "Training "])
def test_captions_of_training_splits_are_used(tmp_path, split):
    folder = folder_of(tmp_path, a_csv=CAPTIONS, b_csv=ANNOTATIONS.format(split))
    rows = [row for _, row in captions.Captions(folder).rows(readers.Tally())]
    assert rows == [readers.Row("luge", "A man slides down the ice.", "a.csv", "fake-k_0001")]


@pytest.mark.parametrize(
    "split", ["val", "validate", "validation", "Test", "testing", "holdout", "", "odd"]
)
def test_captions_of_other_splits_only_raise(tmp_path, split):
    folder = folder_of(tmp_path, a_csv=CAPTIONS, b_csv=ANNOTATIONS.format(split))
    with pytest.raises(UserError, match=r"none of the 1 captions .*annotated as") as e:
        list(captions.Captions(folder).rows(readers.Tally()))
    assert "\n" not in str(e.value)


def test_video_of_two_classes_gives_two_rows_ignoring_spelling_variants(tmp_path):
    more = "".join(f"{label},fake-k_0001,1,2,train\n" for label in ("Luges", "sledding"))
    folder = folder_of(tmp_path, a_csv=CAPTIONS, b_csv=ANNOTATIONS.format("train") + more)
    tally = readers.Tally()
    rows = list(captions.Captions(folder).rows(tally))
    assert [row.action for _, row in rows] == ["luge", "sledding"]
    assert len({key for key, _ in rows}) == 2


def test_gzipped_captions_are_read_and_empty_ones_skipped(tmp_path):
    folder = folder_of(tmp_path, b_csv=ANNOTATIONS.format("train"))
    text = json.dumps([{"videoID": "fake-k_0001_1_2", "enCap": ["", "A man slides."]}])
    (folder / "vatex.json.gz").write_bytes(gzip.compress(text.encode()))
    tally = readers.Tally()
    assert [row.description for _, row in captions.Captions(folder).rows(tally)] == [
        "A man slides."
    ]
    assert tally.skipped == {"no description": 1}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x_json", "[1]", "x.json:1: neither captions .* nor annotations"),
        ("x_json", "{}", "neither captions"),
        ("x_json", '{"version": 1}', "neither captions"),
        ("x_json", '[{"videoID": "fake-k_0001_1_2"}]', "neither captions"),
        ("x_json", '["fake-k_0001"]', "neither captions"),
        ("x_json", "[{", "x.json:1: not JSON"),
        ("x_json", '{"v_a": {"sentences": "no list"}}', "no list of strings called sentences"),
        ("x_json", '[{"videoID": "a", "enCap": ["b"]},\n3]', "x.json:2: .* no list of strings"),
        ("x_json", '{"database": {"a": {"subset": "training"}}}', "video 'a' has no subset or"),
        ("x_csv", "", "found none"),
        ("x_csv", "id,name\na,b\n", "neither captions .*'id', 'name'"),
        ("x_csv", "id,caption,label\na,b,c\n", "neither captions"),
        ("x_csv", "label,youtube_id\na,b\n", "no column split"),
        ("x_csv", 'id,caption\na,"b\n', "x.csv:2: not excel"),
        ("x_tsv", "id\tcaption\na\n", "1 fields, but the header has 2"),
        ("notes_txt", "anything", "only text file allowed here is excluded_ids.txt"),
    ],
)
def test_file_of_unknown_type_gives_a_one_line_error(tmp_path, name, text, words):
    folder = folder_of(tmp_path, a_csv=CAPTIONS, b_csv=ANNOTATIONS.format("train"))
    folder_of(tmp_path, **{name: text})
    with pytest.raises(UserError, match=words) as caught:
        list(captions.Captions(folder).rows(readers.Tally()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["captions", "annotations"])
def test_folder_without_captions_or_annotations_raises(tmp_path, kind):
    text = ANNOTATIONS.format("train") if kind == "captions" else CAPTIONS
    with pytest.raises(UserError, match=f"no file of {kind} found") as caught:
        captions.Captions(folder_of(tmp_path, a_csv=text))
    assert "\n" not in str(caught.value)


def test_captions_by_video_are_joined_by_the_id_in_a_path(tmp_path):
    """A list or a text for each video: the captions of Open-VCLIP, converted to JSON."""
    captions_of = {
        "train/luge/fake-k_0001_000010_000020.mp4": "a man rides a sled down a track",
        "fake-k_0002.mp4": ["a girl jumps over a rope", "a rope turns quickly around a girl"],
        "val/luge/fake-k_0006.mp4": "two people push a sled on ice",
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions_of))
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,split\nluge,fake-k_0001,train\nskipping rope,fake-k_0002,train\n"
        "luge,fake-k_0006,val\n"
    )
    _, stored, report = build(tmp_path, tmp_path)
    assert stored == [("fake-k_0001", "luge"), *[("fake-k_0002", "skipping rope")] * 2]
    assert report["files"]["captions.json"] == "captions"
    assert report["left_out"] == {"annotated as val": 1}


def test_pickled_captions_are_refused_with_the_command_that_converts_them(tmp_path):
    (tmp_path / "captions.pt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "train.csv").write_text("label,youtube_id,split\nluge,fake-k_0001,train\n")
    with pytest.raises(UserError, match=r"captions.pt: a pickle.* python -c ") as error:
        captions.Captions(tmp_path)
    (code,) = shlex.split(str(error.value).rpartition("python -c ")[2])
    compile(code, "code", "exec")
    assert "torch.load('captions.pt', weights_only=True), open('captions.json', 'w')" in code
    (tmp_path / "captions.json").write_text('{"fake-k_0001": "a man rides a sled down a track"}')
    captions.Captions(tmp_path)  # once there are captions, the pickle is ignored
