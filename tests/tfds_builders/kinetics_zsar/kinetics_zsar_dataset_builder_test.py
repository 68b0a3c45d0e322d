"""Tests of kinetics_zsar: its class splits against the published files, builds of generated videos."""

import csv
import hashlib
import io
import json
import pathlib
import tarfile
import tempfile

import pytest
import tensorflow_datasets as tfds

from coco_jax.data import dataset as datasets
from coco_jax.errors import UserError
from tfds_builders.build import build
from tfds_builders.common import testing
from tfds_builders.kinetics_zsar import kinetics_zsar_dataset_builder as kinetics

REAL = pathlib.Path(__file__).resolve().parents[4] / "shared" / "annotations" / "kinetics"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real class lists: {REAL} is absent")
SEEN = ("archery", "garbage collecting", "tying tie")
NEW = ("acting in play", "yarn spinning", "cosplaying")


def youtube_id(n: int) -> str:
    return f"-_vid{n:06d}"


def fake_annotations(folder: pathlib.Path) -> None:
    """Writes class lists in the form of the protocol, with three seen and three new classes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [{"word": name, "defn": name} for name in SEEN + NEW]
    (folder / "classes620_label_defn.json").write_text(json.dumps(names))
    (folder / "tst_class_idxs.json").write_text(json.dumps([[3, 4], [4, 5], [3, 5]]))
    (folder / "val_class_idxs.json").write_text(json.dumps([[5], [3], [4]]))


def checksums(folder: pathlib.Path) -> dict[str, tfds.download.checksums.UrlInfo]:
    """What checksums.tsv would have for the lists that `fake_annotations` wrote."""
    found = {}
    for url in kinetics.LISTS.values():
        name = url.rpartition("/")[2]
        data = (folder / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        found[url] = tfds.download.checksums.UrlInfo(len(data), digest, name)
    return found


def table(path: pathlib.Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
        out.writerows((label, video_id, 1, 11, "x") for label, video_id in rows)


def fake_videos(folder: pathlib.Path) -> None:
    """Writes class folders for Kinetics-400, archives for Kinetics-600, and annotation CSVs.

    One video is both a train video of Kinetics-400 and a test video.
    """
    train = [(name, youtube_id(n)) for n, name in enumerate(SEEN * 2)]
    train.append((SEEN[0], youtube_id(20)))  # also a test video, of a new class
    table(folder / "k400" / "train.csv", train)
    testing.write(
        folder / "k400" / "train",
        [f"{name.replace(' ', '_')}/{v}_000001_000011.mp4" for name, v in train],
    )
    test = [(name, youtube_id(20 + n)) for n, name in enumerate(NEW * 2)]
    # Seen classes; the first has another name in Kinetics-600.
    test += [("person collecting garbage", youtube_id(40)), ("archery", youtube_id(41))]
    table(folder / "k600" / "val.csv", test[:4])
    table(folder / "k600" / "annotations" / "test.csv", test[4:])
    for part, rows in (("val", test[:4]), ("test", test[4:])):
        place = folder / "k600" / part
        place.mkdir(parents=True)
        with tarfile.open(place / "part_0.tar.gz", "w:gz") as out:
            for n, (_, video_id) in enumerate(rows):
                info = tarfile.TarInfo(f"{video_id}_000001_000011.mp4")
                info.size = len(testing.video(50 + n))
                out.addfile(info, io.BytesIO(testing.video(50 + n)))


class KineticsZsarTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = kinetics.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["video", "jpeg"]  # noqa: RUF012
    SPLITS = {"train": 6, "test": 8}  # noqa: RUF012
    DL_DOWNLOAD_RESULT = {  # noqa: RUF012
        which: f"downloaded/{url.rpartition('/')[2]}" for which, url in kinetics.LISTS.items()
    }

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        folder = pathlib.Path(cls.EXAMPLE_DIR)
        fake_videos(folder)
        fake_annotations(folder / "downloaded")
        cls.patch = pytest.MonkeyPatch()
        cls.patch.setattr(kinetics, "SEEN", len(SEEN))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        cls.patch.undo()
        super().tearDownClass()


@real
def test_real_class_splits_match_the_published_sizes_and_lists():
    names = ("classes620_label_defn.json", "tst_class_idxs.json", "val_class_idxs.json")
    classes, splits = kinetics.read_splits(*(REAL / name for name in names))
    k400, k600 = ((REAL / f"label_map_k{n}.txt").read_text().splitlines() for n in (400, 600))
    assert classes[:400] == k400 and len(set(classes)) == 620
    assert set(classes[400:]) <= set(k600)
    assert list(splits) == ["1", "2", "3"]
    for split in splits.values():
        seen, validation, unseen = (split[k] for k in ("seen", "validation", "unseen"))
        assert (len(seen), len(validation), len(unseen)) == (400, 60, 160)
        assert len({*seen, *validation, *unseen}) == 620
    assert len({tuple(split["unseen"]) for split in splits.values()}) == 3
    with (REAL / "vifi_split1_test_classes.csv").open() as stream:
        peer = [row["name"] for row in csv.DictReader(stream)]
    assert splits["1"]["unseen"] == peer


@real
def test_renamed_classes_are_the_names_of_kinetics_600_that_are_neither_old_nor_new():
    k400, k600 = (set((REAL / f"label_map_k{n}.txt").read_text().splitlines()) for n in (400, 600))
    words = json.loads((REAL / "classes620_label_defn.json").read_text())
    new = {entry["word"] for entry in words[400:]}
    assert set(kinetics.RENAMED) == k600 - k400 - new and len(kinetics.RENAMED) == 12
    assert set(kinetics.RENAMED.values()) <= k400 - k600
    assert len(set(kinetics.RENAMED.values())) == 12


@real
def test_every_real_file_name_has_a_distinct_youtube_id():
    lines = (REAL / "tst_video_metas.head.jsonl").read_text().splitlines()
    names = [json.loads(line)["videoname"] for line in lines]
    ids = [kinetics.id_of(name) for name in names]
    assert all(len(video_id) == 11 for video_id in ids) and len(set(ids)) == len(names) == 2000


@pytest.fixture
def placed(tmp_path, monkeypatch):
    monkeypatch.setattr(kinetics, "SEEN", len(SEEN))
    fake_videos(tmp_path / "placed")
    fake_annotations(tmp_path / "placed" / "annotations")
    # The generated lists do not have the checksums of the real ones.
    infos = checksums(tmp_path / "placed" / "annotations")
    monkeypatch.setattr(kinetics.Builder, "url_infos", infos)
    return tmp_path


def test_test_videos_are_left_out_of_the_train_split(placed):
    folder = build("kinetics_zsar", str(placed / "data"), str(placed / "placed"))
    dataset = datasets.load("kinetics_zsar/video", str(placed / "data"))
    records = dataset.records
    by_split = {
        split: {v for v, s in zip(records.video_ids, records.splits, strict=True) if s == split}
        for split in ("train", "test")
    }
    assert youtube_id(20) in by_split["test"] and not by_split["test"] & by_split["train"]
    report = json.loads((folder / "report.json").read_text())
    assert report["train"]["left_out_because_tested"] == 1
    assert (report["train"]["stored"], report["train"]["missing"]) == (6, 0)
    label = dict(zip(records.video_ids, records.labels.tolist(), strict=True))
    assert dataset.classes[label[youtube_id(40)]] == "garbage collecting"


def test_without_csvs_classes_are_read_from_folder_names(placed):
    for path in (placed / "placed").rglob("*.csv"):
        path.unlink()
    for part in ("val", "test"):
        for path in (placed / "placed" / "k600" / part).iterdir():
            path.unlink()
    testing.write(
        placed / "placed" / "k600" / "val",
        [
            f"person_collecting_garbage/{youtube_id(40)}_000001_000011.mp4",
            f"Acting in Play/{youtube_id(0)}.mp4",  # has the id of a train video
        ],
    )
    build("kinetics_zsar", str(placed / "data"), str(placed / "placed"))
    records = datasets.load("kinetics_zsar/video", str(placed / "data")).records
    assert records.splits.count("test") == 2 and records.splits.count("train") == 6
    assert [records.video_ids.index(youtube_id(0))] == [
        n
        for n, split in enumerate(records.splits)
        if split == "test" and records.video_ids[n] == youtube_id(0)
    ]


def test_renamed_class_among_the_unseen_classes_raises(tmp_path, monkeypatch):
    fake_annotations(tmp_path)
    monkeypatch.setattr(kinetics, "SEEN", 3)
    names = json.loads((tmp_path / "classes620_label_defn.json").read_text())
    names[3]["word"] = "tying necktie"
    (tmp_path / "classes620_label_defn.json").write_text(json.dumps(names))
    paths = {which: tmp_path / url.rpartition("/")[2] for which, url in kinetics.LISTS.items()}
    with pytest.raises(UserError, match="unseen classes tying necktie are renamed classes"):
        kinetics.read_splits(**paths)


def test_missing_test_videos_raise_and_leave_no_incomplete_build(placed):
    import shutil

    shutil.rmtree(placed / "placed" / "k600" / "test")
    shutil.rmtree(placed / "placed" / "k600" / "val")
    with pytest.raises(UserError, match=r"no video of split 'test' was found"):
        build("kinetics_zsar", str(placed / "data"), str(placed / "placed"))
    assert not list((placed / "data").rglob("incomplete*"))


def test_validation_protocol_uses_the_validation_classes_as_unseen(placed):
    """The seen classes are the same in both protocols."""
    from coco_jax.config import default
    from coco_jax.data.splits import make_plan

    build("kinetics_zsar", str(placed / "data"), str(placed / "placed"))
    dataset = datasets.load("kinetics_zsar/video", str(placed / "data"))
    config = default()
    plans = {}
    for config.protocol in ("validation", "test"):
        plans[config.protocol] = make_plan(dataset, config)
    assert plans["validation"].seen == plans["test"].seen == SEEN
    assert plans["validation"].unseen == ("cosplaying",)
    assert plans["test"].unseen == ("acting in play", "yarn spinning")
    tested = {
        dataset.classes[label] for label in dataset.records.labels[plans["validation"].test_unseen]
    }
    assert tested == {"cosplaying"}
    # Test videos of seen classes, for generalised zero-shot recognition.
    assert len(plans["test"].test_seen) == 2
