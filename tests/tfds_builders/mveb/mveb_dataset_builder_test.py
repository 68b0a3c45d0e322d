"""MTEB's video data sets: builds of generated Parquet files, and files that others made."""

import json
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds

from coco_jax.data import dataset as datasets
from coco_jax.errors import UserError
from tests.helpers import mveb as files
from tfds_builders.build import build
from tfds_builders.common import child
from tfds_builders.mveb import mveb_dataset_builder as mveb
from tfds_builders.mveb import parquet

LABELS = (0, 3, 1, 1, 0)


class MvebTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = mveb.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["hmdb51", "kinetics400_jpeg"]  # noqa: RUF012
    SPLITS = {"test": 5}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        folder = pathlib.Path(cls.EXAMPLE_DIR) / "data"
        files.write(folder / "test-00000-of-00001.parquet", files.generated(5), LABELS)
        files.write(folder / "train-00000-of-00001.parquet", files.generated(2, 9), LABELS[:2])
        super().setUpClass()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The data_dir of hmdb51 from two files; the third row of the second one is no video."""
    place = tmp_path_factory.mktemp("mveb")
    videos = [*files.generated(4), (b"no video", "bad.mp4"), (None, "gone.mp4")]
    for number, part in enumerate((slice(0, 2), slice(2, 6))):
        path = place / f"HMDB51/data/test-0000{number}-of-00002-0a1b2c.parquet"
        files.write(path, videos[part], (*LABELS, 0)[part], row_group_size=1)
    build("mveb/hmdb51", str(place / "data"), str(place))
    return place / "data"


def test_rows_are_stored_with_their_class_and_all_classes_are_candidates(built):
    dataset = datasets.load("mveb/hmdb51", str(built))
    assert dataset.classes == ("brush hair", "cartwheel", "pick", "ride bike")
    assert dataset.class_splits == {
        "1": {"seen": [], "unseen": list(dataset.classes), "empty": ["pick"]}
    }
    stored = {record["video_id"]: record for record in dataset.records}
    assert set(dataset.records.splits) == {"test"} and len(stored) == 4
    for n in range(4):
        record = stored[f"clip_{n}"]
        assert record["video"] == files.generated(1, n)[0][0] and record["label"] == LABELS[n]
    folder = built / "mveb/hmdb51/1.0.0"
    about = json.loads((folder / "metadata.json").read_text())["mteb"]
    assert about["task"] == "HMDB51ZeroShot" and about["prompt"].format("pick") == "a video of pick"
    report = json.loads((folder / "report.json").read_text())["test"]
    assert (report["stored"], report["expected"], report["missing"], report["in_mteb"]) == (
        4,
        6,
        0,
        1530,
    )
    bad, gone = (broken["reason"] for broken in report["broken"])
    assert bad.startswith("test-00001-of-00002-0a1b2c.parquet, row 2 (bad.mp4): not a video")
    assert gone.endswith("row 3 (gone.mp4): has no video in the file; download the file again")


def test_another_number_of_videos_than_in_mteb_is_printed(tmp_path, capfd):
    files.write(tmp_path / "test.parquet", files.generated(2), [0, 1])
    build("mveb/kinetics600", str(tmp_path / "data"), str(tmp_path))
    assert (
        "the files have 2 videos, and MTEB's Kinetics600VZeroShot has 9,576"
        in capfd.readouterr().err
    )
    dataset = datasets.load("mveb/kinetics600", str(tmp_path / "data"))
    assert dataset.classes == files.NAMES  # only HMDB51's underscores are spaces in MTEB's prompts


def test_incomplete_or_mixed_files_are_an_error(tmp_path):
    def one_line(message):
        with pytest.raises(UserError, match=message) as error:
            mveb.read_labels(mveb.shards(tmp_path))
        assert "\n" not in str(error.value)

    files.write(tmp_path / "train-00000-of-00001.parquet", files.generated(1), [0])
    one_line("no Parquet files of the split test")
    files.write(tmp_path / "data/test-00000-of-00002.parquet", files.generated(1), [0])
    one_line("has the files 0 of 2, counted from 0")
    files.write(tmp_path / "copy/test-00000-of-00002.parquet", files.generated(1), [0])
    one_line("has the files 0, 0 of 2, counted from 0")
    second = (tmp_path / "copy/test-00000-of-00002.parquet").rename(
        tmp_path / "data/test-00001-of-00002.parquet"
    )
    assert mveb.read_labels(mveb.shards(tmp_path)) == (list(files.NAMES), {0: 2})
    files.write(second, files.generated(1), [0], ("hop", "run"))
    one_line("test-00001-of-00002.parquet: its classes differ from those of test-00000")
    files.write(second, files.generated(1), [4])
    one_line("row 0 has the label 4, and there are 4 classes")
    files.write(second, files.generated(1), [None])
    one_line("column 'label' has a row without a value")


def test_class_name_that_would_change_a_terminal_is_an_error(tmp_path):
    files.write(tmp_path / "test.parquet", files.generated(1), [0], ("a\x1b[2J", "b"))
    with pytest.raises(UserError, match="has control characters") as error:
        build("mveb/hmdb51", str(tmp_path / "data"), str(tmp_path))
    assert "\x1b" not in str(error.value)


def test_missing_files_are_downloaded_or_the_error_says_which(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        if not options["revision"].startswith("7f9a"):
            raise ConnectionError("no network")
        files.write(tmp_path / "hub/data/test-00000-of-00001.parquet", files.generated(2), [0, 1])
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    build("mveb/hmdb51", str(tmp_path / "data"))
    assert len(datasets.load("mveb/hmdb51", str(tmp_path / "data")).records) == 2
    assert (asked["repository"], asked["repo_type"]) == ("mteb/HMDB51", "dataset")
    with pytest.raises(
        UserError, match=r"datasets/mteb/kinetics-400: .*ConnectionError.*e5b93b6eae"
    ):
        build("mveb/kinetics400", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (pa.schema([("label", pa.int64())]), "no column 'video', but label"),
        (pa.schema([("video", pa.binary())]), "no column 'label', but video"),
        (files.schema(video=pa.string()), "column 'video' is string, not a struct"),
        (files.schema(video=pa.struct([("bytes", pa.string())])), "not a struct of bytes and path"),
        (files.schema(video=pa.struct([("path", pa.string())])), "not a struct of bytes and path"),
        (files.schema(label=pa.string()), "column 'label' is string, not a whole number"),
        (files.schema(None), "no names of classes in its metadata"),
        (files.schema().remove_metadata(), "no names of classes in its metadata"),
        (files.schema().with_metadata({b"huggingface": b"[" * 9000}), "no names of classes"),
        (files.schema(["hop"]), "are not a list of different texts"),
        (files.schema(["hop", "hop"]), "are not a list of different texts"),
        (files.schema(["hop", 3]), "are not a list of different texts"),
        (files.schema(["hop", " "]), "are not a list of different texts"),
    ],
)
def test_other_columns_and_metadata_are_an_error(schema, message):
    with pytest.raises(ValueError, match=message):
        parquet.class_names(schema)


def test_damaged_files_give_rows_or_an_error(tmp_path):
    content = files.write(tmp_path / "a.parquet", files.generated(3), [0, 1, 2]).read_bytes()
    rng = np.random.default_rng(0)
    damaged = [
        b"",
        b"PAR1",
        content[: len(content) // 2],
        content[:-20] + b"\xff" * 12 + content[-8:],
    ]
    for _ in range(3):
        changed = np.frombuffer(content, np.uint8).copy()
        at = rng.integers(len(content) - 1500, len(content), 5)  # in the footer
        changed[at] = rng.integers(0, 256, 5)
        damaged.append(changed.tobytes())
    errors = 0
    for n, data in enumerate(damaged):
        path = tmp_path / f"{n}.parquet"
        path.write_bytes(data)
        try:
            assert all(type(row) is parquet.Row for row in parquet.rows(path))
        except ValueError as error:
            errors += 1
            assert str(error) and "\n" not in str(error)
    assert errors >= 4
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        list(parquet.rows(tmp_path / "folder.parquet"))


def test_decompression_bomb_and_a_reader_that_hangs_are_an_error(tmp_path, monkeypatch):
    """A value that many rows share is stored once."""
    huge = bytes(4 << 20)
    path = files.write(tmp_path / "a.parquet", [(huge, "a.mp4")] * 30, [0] * 30, compression="zstd")
    assert path.stat().st_size < 1 << 20
    assert next(iter(parquet.rows(path))).data == huge
    monkeypatch.setattr(parquet, "MAX_TOTAL", 64 << 20)
    with pytest.raises(
        ValueError, match="more than 67,108,864 bytes and more than 20 times its own"
    ):
        list(parquet.rows(path))
    monkeypatch.setattr(child, "CPU_SECONDS", 0.0005)
    with pytest.raises(ValueError, match=r"for more than 0\.0005 s"):
        list(parquet.rows(path))
