"""Tests of ucf101_zsar: its class splits, its official lists, and builds of generated videos."""

import pathlib
import tempfile
import zipfile

import pytest
import tensorflow_datasets as tfds

from coco_jax.errors import UserError
from tfds_builders.common import testing
from tfds_builders.ucf101_zsar import ucf101_zsar_dataset_builder as ucf101

REAL = pathlib.Path(__file__).resolve().parents[4] / "shared" / "annotations" / "ucf101"
CLASSES = ("ApplyEyeMakeup", "Hammering", "HammerThrow", "HandstandPushups")


def fake_lists(folder: pathlib.Path, classes=CLASSES, each: int = 2) -> list[str]:
    """Writes official lists with `each` train videos and one test video per class.

    testlist02 has every other video of testlist01. Returns the paths of the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, test = [], []
    for number, name in enumerate(classes, 1):
        file = name.replace("HandstandPushups", "HandStandPushups")  # spelled as in the real lists
        train += [f"{name}/v_{file}_g08_c{n:02d}.avi {number}" for n in range(1, each + 1)]
        test.append(f"{name}/v_{file}_g01_c01.avi")
    for n in (1, 2, 3):
        (folder / f"trainlist{n:02d}.txt").write_text("\n".join(train) + "\n")
        (folder / f"testlist{n:02d}.txt").write_text("\n".join(test[:: n if n < 3 else 1]) + "\n")
    return [line.split()[0] for line in train + test]


class Ucf101ZsarTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = ucf101.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["intra", "cross_jpeg"]  # noqa: RUF012
    SPLITS = {"train": 8, "test": 4}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        folder = pathlib.Path(cls.EXAMPLE_DIR)
        names = fake_lists(folder / "ucfTrainTestlist")
        # Spelled as in the real archive, which differs from the lists in HandstandPushups.
        testing.write(folder / "UCF-101", [n.replace("v_HandStand", "v_Handstand") for n in names])
        super().setUpClass()


def test_zipped_videos_and_lists_are_read_and_checksum_of_lists_is_verified(tmp_path):
    names = fake_lists(tmp_path / "lists")
    testing.write(tmp_path / "videos" / "UCF101", [n.rpartition("/")[2] for n in names])
    place = tmp_path / "placed"
    place.mkdir()
    for archive, packed in (("UCF101_videos.zip", "videos"), ("lists.zip", "lists")):
        with zipfile.ZipFile(place / archive, "w") as out:
            for path in sorted((tmp_path / packed).rglob("*.*")):
                out.write(path, path.relative_to(tmp_path / packed))
    (place / "lists.zip").rename(place / "UCF101TrainTestSplits-RecognitionTask.zip")
    from tfds_builders.build import build

    with pytest.raises(UserError, match=r"RecognitionTask\.zip: SHA-256 differs"):
        build("ucf101_zsar/intra", str(tmp_path / "data"), str(place))
    (place / "UCF101TrainTestSplits-RecognitionTask.zip").unlink()
    fake_lists(place / "ucfTrainTestlist")
    folder = build("ucf101_zsar/intra", str(tmp_path / "data"), str(place))
    assert (folder / "index.npz").is_file() and (folder / "report.json").is_file()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no official lists: {REAL} is absent")
def test_official_lists_have_the_published_counts_and_class_order():
    lists = ucf101.read_lists({p.stem: p.read_text() for p in REAL.glob("*list01.txt")})
    assert {name: len(rows) for name, rows in lists.items()} == {
        "trainlist01": 9537,
        "testlist01": 3783,
    }
    assert not set(lists["trainlist01"]) & set(lists["testlist01"])
    labels = ucf101.class_names(lists["trainlist01"])
    assert labels == (REAL / "label_map.txt").read_text().split()
    # The class numbers in the train list follow this order.
    numbers = {
        line.split("/")[0]: int(line.split()[1])
        for line in (REAL / "trainlist01.txt").read_text().splitlines()
    }
    assert sorted(numbers, key=numbers.__getitem__) == labels and len(labels) == 101


@pytest.mark.parametrize(("classes", "seen", "name"), [(101, 51, "ucf101"), (51, 26, "hmdb51")])
def test_random_class_splits_partition_the_classes_and_differ(classes, seen, name):
    from tfds_builders.common.builder import halves

    names = [f"class {n}" for n in range(classes)]
    trials = halves(name, names, 50)
    assert list(trials) == [str(n) for n in range(1, 51)]
    for split in trials.values():
        assert len(split["seen"]) == seen and sorted(split["seen"] + split["unseen"]) == sorted(
            names
        )
    assert len({tuple(split["seen"]) for split in trials.values()}) == 50
    counts = [sum(c in split["seen"] for split in trials.values()) for c in names]
    assert min(counts) > 10 and max(counts) < 40  # each class is seen in some trials only
    # A split does not depend on the number of trials.
    assert halves(name, names, 3) == {n: trials[n] for n in "123"}


def test_error_on_an_invalid_list_names_the_file_and_line():
    with pytest.raises(UserError, match=r"trainlist01.txt:1: 'hello' is not Class/"):
        ucf101.read_lists({"trainlist01": "hello"})
    with pytest.raises(UserError, match="missing"):
        ucf101.read_lists({"trainlist01": ""})
