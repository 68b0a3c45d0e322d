"""Tests of hmdb51_zsar: its class splits, its official lists, and builds of generated videos."""

import pathlib
import tempfile

import pytest
import tensorflow_datasets as tfds

from coco_jax.errors import UserError
from tfds_builders.common import testing
from tfds_builders.common.builder import protocol_splits
from tfds_builders.hmdb51_zsar import hmdb51_zsar_dataset_builder as hmdb51

REAL = pathlib.Path(__file__).resolve().parents[4] / "shared" / "annotations" / "hmdb51"
CLASSES = ("brush_hair", "catch", "sword_exercise", "wave")


def fake_lists(folder: pathlib.Path, classes=CLASSES) -> list[str]:
    """Writes official lists; in each split a class has two train videos, one test video, one other.

    Returns the paths of the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for label in classes:
        files = [f"{label}_#{n}_u_nm_np1_fr_med_{n}.avi" for n in range(4)]
        names += [f"{label}/{file}" for file in files]
        for split in (1, 2, 3):
            uses = [1, 1, 2, 0][split - 1 :] + [1, 1, 2, 0][: split - 1]
            lines = [f"{file} {use} " for file, use in zip(files, uses, strict=True)]
            (folder / f"{label}_test_split{split}.txt").write_text("\n".join(lines) + "\n")
    return names


class Hmdb51ZsarTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = hmdb51.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["intra", "cross"]  # noqa: RUF012
    SPLITS = {"train": 8, "test": 4, "rest": 4}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        folder = pathlib.Path(cls.EXAMPLE_DIR)
        testing.write(folder / "hmdb51_org", fake_lists(folder / "testTrainMulti_7030_splits"))
        super().setUpClass()


def test_official_test_flags_and_class_splits_are_stored_for_each_split(tmp_path):
    from coco_jax.data import dataset as datasets
    from tfds_builders.build import build

    testing.write(tmp_path / "placed" / "videos", fake_lists(tmp_path / "placed" / "lists"))
    build("hmdb51_zsar/cross", str(tmp_path / "data"), str(tmp_path / "placed"))
    dataset = datasets.load("hmdb51_zsar/cross", str(tmp_path / "data"))
    assert dataset.classes == ("brush hair", "catch", "sword exercise", "wave")
    assert dataset.records.official is not None
    official = dict(zip(dataset.records.video_ids, dataset.records.official.tolist(), strict=True))
    # Video 2 is a test video of split 1, video 1 of split 2, video 0 of split 3.
    for video_id, tested in official.items():
        number = int(video_id.rpartition("_")[2])
        assert tested == [number == 2, number == 1, number == 0]
    assert dataset.class_splits["2"] == {
        "seen": [],
        "unseen": list(dataset.classes),
        "official": 2,
    }


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real class list: {REAL} is absent")
def test_class_splits_of_the_real_classes_have_the_published_sizes():
    labels = (REAL / "label_map.txt").read_text().split()
    names = [hmdb51.readable(label) for label in labels]
    assert len(names) == 51 and names == sorted(names)
    intra = protocol_splits("hmdb51", "intra", names, 50)
    assert all((len(s["seen"]), len(s["unseen"])) == (26, 25) for s in intra.values())
    cross = protocol_splits("hmdb51", "cross", names, 50)
    assert [len(cross[n]["unseen"]) for n in ("1", "2", "3", "half1")] == [51, 51, 51, 25]


def test_error_on_missing_or_invalid_lists_names_the_place(tmp_path):
    with pytest.raises(UserError, match="no official lists found"):
        hmdb51.read_lists(tmp_path)
    (tmp_path / "wave_test_split1.txt").write_text("a.avi seven\n")
    with pytest.raises(UserError, match=r"wave_test_split1.txt:1: 'a.avi seven' is not FILE.avi"):
        hmdb51.read_lists(tmp_path)
