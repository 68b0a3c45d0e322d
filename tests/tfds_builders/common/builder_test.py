"""Tests of what the video builders share: reports, interrupted builds, storages, index, checksums."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from coco_jax.data import dataset as datasets
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.loader import TrainLoader
from coco_jax.data.task import make_task
from coco_jax.errors import UserError
from tests.helpers import runs
from tests.tfds_builders.ucf101_zsar.ucf101_zsar_dataset_builder_test import fake_lists
from tfds_builders.build import build, names
from tfds_builders.common import builder as base
from tfds_builders.common import testing

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def hundred_videos(tmp_path) -> pathlib.Path:
    """A folder of 100 videos; one of them is truncated, another is an HTML page."""
    folder = tmp_path / "mine"
    names = [
        f"{action}/{n:02d}.mp4" for action in ("hop", "skip", "jump", "run") for n in range(25)
    ]
    testing.write(folder, names)
    cut = folder / "hop" / "03.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "run" / "07.mp4").write_bytes(b"<html>404 Not Found</html>" * 9)
    (folder / "unseen.txt").write_text("jump\n")
    return folder


def test_broken_videos_are_left_out_and_reported(hundred_videos, tmp_path, capsys):
    folder = build("video_folder", str(tmp_path / "data"), str(hundred_videos), max_broken=0.1)
    dataset = datasets.load("video_folder/video", str(tmp_path / "data"))
    assert len(dataset.records) == 98
    report = json.loads((folder / "report.json").read_text())
    broken = {b["video"]: b["reason"] for part in report.values() for b in part["broken"]}
    assert set(broken) == {"hop/03.mp4", "run/07.mp4"}
    assert all(
        reason.startswith(name) and "complete video" in reason for name, reason in broken.items()
    )
    assert sum(part["stored"] for part in report.values()) == 98
    printed = capsys.readouterr().err
    assert "hop/03.mp4" in printed and "run/07.mp4" in printed


@pytest.mark.parametrize("beam", [None, "runner=DirectRunner"])
def test_skipped_files_are_reported(tmp_path, capsys, beam):
    """Files that are not videos are listed; lists that the builder reads and hidden files are not."""
    if beam:
        pytest.importorskip("apache_beam")
    folder = tmp_path / "mine"
    testing.write(
        folder, [f"train/{action}/{n}.mp4" for action in ("hop", "run") for n in range(2)]
    )
    (folder / "unseen.txt").write_text("run\n")
    for name in (".hidden", *(f"note{n:02d}.txt" for n in range(base.MAX_SKIPPED + 2)), "b.zip"):
        (folder / "train/hop" / name).write_text("not a video")
    built = build("video_folder", str(tmp_path / "data"), str(folder), beam=beam)
    names = ["b.zip", *(f"note{n:02d}.txt" for n in range(base.MAX_SKIPPED - 1))]
    report = json.loads((built / "report.json").read_text())
    assert report["train"]["stored"] == 4 and report["train"]["broken"] == []
    assert report["train"]["skipped"] == {
        "count": base.MAX_SKIPPED + 3,
        "files": [f"train/hop/{name}" for name in names],
    }
    printed = capsys.readouterr().err
    assert f"{base.MAX_SKIPPED + 3} other files skipped" in printed
    assert all(
        f"skipped, not a supported file type: 'train/hop/{name}'" in printed for name in names
    )
    assert "skipped, not a supported file type: 3 more files" in printed


def test_skipped_files_in_an_archive_are_reported(tmp_path):
    placed = tmp_path / "placed"
    names = fake_lists(placed / "lists", each=1)
    testing.write(tmp_path / "videos", names)
    (tmp_path / "videos" / "README.pdf").write_bytes(b"%PDF")
    shutil.make_archive(str(placed / "UCF101"), "zip", tmp_path / "videos")
    built = build("ucf101_zsar/intra", str(tmp_path / "data"), str(placed))
    report = json.loads((built / "report.json").read_text())
    for part in report.values():
        assert part["stored"] == 4 and part["missing"] == 0
        assert part["skipped"] == {"count": 1, "files": ["README.pdf"]}


class _Builder:
    """Stands in for a TFDS builder; `annotations` reads its name and its checksums only."""

    name = "some_zsar"

    def __init__(self, url_infos):
        self.url_infos = url_infos


class _Downloads:
    """Stands in for the download manager of TFDS; it creates an empty file for each URL."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def download(self, urls):
        for key in urls:
            (self.folder / key).touch()
        return {key: self.folder / key for key in urls}


URL = "https://example.org/lists/classes.json"


@pytest.mark.parametrize("placed", [False, True])
def test_missing_checksums_file_stops_the_build(tmp_path, placed):
    if placed:
        (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(UserError, match=r"some_zsar/checksums\.tsv: missing") as error:
        base.annotations(_Builder(None), _Downloads(tmp_path), tmp_path, {"classes": URL})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("placed", [False, True])
def test_file_without_checksum_stops_the_build(tmp_path, placed):
    """Whether it is to be downloaded, or was placed by hand."""
    if placed:
        (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(UserError, match=rf"some_zsar/checksums\.tsv: no line for {URL}") as error:
        base.annotations(_Builder({}), _Downloads(tmp_path), tmp_path, {"classes": URL})
    assert "\n" not in str(error.value) and not (tmp_path / "classes").exists()


def test_download_with_checksum_is_used(tmp_path):
    info = tfds.download.checksums.UrlInfo(size=0, checksum="0" * 64, filename="classes.json")
    builder, downloads = _Builder({URL: info}), _Downloads(tmp_path)
    found = base.annotations(builder, downloads, None, {"classes": URL})
    assert found == {"classes": tmp_path / "classes"}


def test_user_file_with_another_checksum_stops_the_build(tmp_path):
    (tmp_path / "classes.json").write_text("{}")
    info = tfds.download.checksums.UrlInfo(size=2, checksum="0" * 64, filename="classes.json")
    with pytest.raises(UserError, match=r"classes\.json: SHA-256 differs"):
        base.annotations(_Builder({URL: info}), _Downloads(tmp_path), tmp_path, {"classes": URL})


def test_too_many_broken_videos_stop_the_build_and_leave_no_dataset(
    hundred_videos, tmp_path, monkeypatch
):
    monkeypatch.setattr(base, "MIN_BROKEN", 0)
    with pytest.raises(UserError, match=r"videos of split '\w+' are broken, more than 1.0%"):
        build("video_folder", str(tmp_path / "data"), str(hundred_videos))
    left = [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert [p.name for p in left if "record" in p.name or p.name == "dataset_info.json"] == []
    with pytest.raises(UserError, match="is not in"):
        datasets.load("video_folder/video", str(tmp_path / "data"))


@pytest.mark.parametrize("number", [1, 3, 4])
def test_small_split_may_have_up_to_three_broken_videos(tmp_path, number):
    """The default of --max_broken, 1 %, would allow none of 20 videos."""
    names = [f"train/{action}/{n}.mp4" for action in ("hop", "run") for n in range(10)]
    testing.write(tmp_path / "mine", names)
    (tmp_path / "mine" / "unseen.txt").write_text("run\n")
    for name in names[5 : 5 + number]:
        (tmp_path / "mine" / name).write_bytes(b"<html>404 Not Found</html>")
    if number <= 3:
        folder = build("video_folder", str(tmp_path / "data"), str(tmp_path / "mine"))
        report = json.loads((folder / "report.json").read_text())["train"]
        assert report["stored"] == 20 - number and len(report["broken"]) == number
        return
    with pytest.raises(
        UserError, match=r"4 of 20 videos .* are broken, more than 1.0% and more than 3"
    ):
        build("video_folder", str(tmp_path / "data"), str(tmp_path / "mine"))


def test_build_after_a_killed_build_removes_its_files_and_completes(hundred_videos, tmp_path):
    """What the killed build wrote is not loaded as a dataset either."""
    data = tmp_path / "data"
    code = (
        "import sys, time\nfrom tfds_builders import build\n"
        "from tfds_builders.common import builder as base\n"
        "store = base.Storage.store\n"
        "def slow(self, data, name):\n    time.sleep(0.05)\n    return store(self, data, name)\n"
        "base.Storage.store = slow\n"
        f"build.build('video_folder', {str(data)!r}, {str(hundred_videos)!r}, max_broken=1.0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(data.rglob("incomplete.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(data.rglob("incomplete.*"))
    with pytest.raises(UserError, match="is not in"):
        datasets.load("video_folder/video", str(data))
    build("video_folder", str(data), str(hundred_videos), max_broken=0.1)
    assert not list(data.rglob("incomplete.*"))
    assert len(datasets.load("video_folder/video", str(data)).records) == 98


def test_second_process_that_builds_the_same_dataset_fails(hundred_videos, tmp_path):
    import filelock

    folder = tmp_path / "data" / "video_folder" / "video"
    folder.mkdir(parents=True)
    with (
        filelock.FileLock(folder / ".1.0.0.lock"),
        pytest.raises(UserError, match="another process is building it"),
    ):
        build("video_folder", str(tmp_path / "data"), str(hundred_videos))


def folder_config(data: pathlib.Path, name: str) -> ConfigDict:
    from conftest import tiny_config

    return tiny_config(
        str(data), data__name=name, ablation="label", text__corpus=None, data__batch=4,
        data__crop=1.0, data__color=0.0,
        text__vocabulary=100, data__flip=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both_storages(tmp_path_factory) -> pathlib.Path:
    """Videos of four actions, stored as they are and as JPEG frames of the same size and rate."""
    place = tmp_path_factory.mktemp("both")
    testing.write(
        place / "mine",
        [f"{split}/{a}/{n}.mp4" for split in ("train", "test") for a in "abcd" for n in range(4)],
    )
    (place / "mine" / "unseen.txt").write_text("d\n")
    build("video_folder/video", str(place / "data"), str(place / "mine"))
    build("video_folder/jpeg", str(place / "data"), str(place / "mine"), jpeg_side=32, jpeg_fps=8.0)
    return place / "data"


def test_jpeg_frames_match_the_decoded_video(both_storages):
    clips = {}
    for storage in ("video", "jpeg"):
        config = folder_config(both_storages, f"video_folder/{storage}")
        task = make_task(config)
        clip = ClipReader(config, training=False, records=task.dataset.records)
        rng = np.random.default_rng(0)
        clips[storage] = {
            v: clip(n, rng)["video"] for n, v in enumerate(task.dataset.records.video_ids)
        }
    assert clips["video"].keys() == clips["jpeg"].keys()
    for name, clip_THWC in clips["video"].items():
        # Two codecs differ in pixel values, but each frame is nearest to the one of the same time.
        off_TS = np.abs(clip_THWC[:, None].astype(int) - clips["jpeg"][name][None]).mean((2, 3, 4))
        assert off_TS.argmin(1).tolist() == list(range(len(off_TS))), name
        assert off_TS.diagonal().max() < 8


def test_train_loader_reads_jpeg_frames(both_storages):
    config = folder_config(both_storages, "video_folder/jpeg")
    task = make_task(config)
    batch = next(TrainLoader(task.dataset.records, task.plan.train, config))
    assert batch["video"].shape == (4, 4, 32, 32, 3) and batch["video"].dtype == np.uint8
    assert set(task.plan.seen) == {"a", "b", "c"} and task.plan.unseen == ("d",)


def test_error_on_a_corrupt_jpeg_names_the_video():
    frames = videos.Frames((b"\xff\xd8 no jpeg", b""), 8.0)
    with pytest.raises(videos.VideoError, match=r"a\.mp4: corrupt JPEG frame"):
        videos.decode(frames, None, name="a.mp4")
    with pytest.raises(videos.VideoError, match="has no frames"):
        videos.probe(videos.Frames((), 8.0))


def test_index_matches_the_records_and_a_corrupt_index_is_rebuilt(both_storages):
    datasets.load.cache_clear()
    dataset = datasets.load("video_folder/video", str(both_storages))
    for n, record in enumerate(dataset.records):
        assert record["video_id"] == dataset.records.video_ids[n]
        assert record["label"] == dataset.records.labels[n]
    (path,) = both_storages.glob("video_folder/video/*/index.npz")
    whole = path.read_bytes()
    for wrong in (b"", whole[: len(whole) // 2], b"PK nonsense"):
        path.write_bytes(wrong)
        datasets.load.cache_clear()
        again = datasets.load("video_folder/video", str(both_storages))
        assert again.records.video_ids == dataset.records.video_ids


def test_loading_with_an_index_reads_no_records(both_storages, monkeypatch):
    datasets.load.cache_clear()
    monkeypatch.setattr(datasets, "write_index", lambda builder: pytest.fail("read everything"))
    assert len(datasets.load("video_folder/video", str(both_storages)).records) == 32


@pytest.mark.parametrize("config", ["k400_zsar", "hmdb51_zsar", "hmdb51_cross"])
def test_error_on_missing_data_says_what_to_download_in_five_lines(
    config, tmp_path, monkeypatch, call_here
):
    monkeypatch.chdir(tmp_path)
    got = call_here(*runs.command(ROOT / f"configs/{config}.py", tmp_path / "run"))
    lines = got.stderr.strip().splitlines()
    assert got.returncode == 2 and len(lines) == 5, got.stderr
    for line, begin in zip(lines[1:], ("Fetch:", "Size:", "Put:", "Build:"), strict=True):
        assert line.strip().startswith(begin)
    assert "GB" in lines[2] and "python -m tfds_builders.build " in lines[4]


def test_every_dataset_named_in_a_config_has_a_builder():
    import importlib

    for path in sorted((ROOT / "configs").glob("*.py")):
        module = importlib.import_module(f"coco_jax.configs.{path.stem}")
        if not hasattr(module, "get_config"):
            continue
        config = module.get_config()
        for name in (config.data.name, config.data.test_name, config.text.corpus):
            assert name is None or name.partition("/")[0] in names(), (path.name, name)


def test_ucf101_with_a_real_clip_trains_and_evaluates(clips, tmp_path, one_device):
    """One class has a real video, the other 100 have generated ones."""
    from coco_jax.evaluation.experiment import run
    from conftest import tiny_config

    label_map = clips.parent / "annotations" / "ucf101" / "label_map.txt"
    labels = label_map.read_text().split()
    placed = tmp_path / "placed"
    found = fake_lists(placed / "ucfTrainTestlist", labels, each=1)
    testing.write(placed / "UCF-101", found)
    shutil.copyfile(
        clips / "applying_eye_makeup.avi",
        placed / "UCF-101" / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g01_c01.avi",
    )
    build("ucf101_zsar/intra", str(tmp_path / "data"), str(placed))
    dataset = datasets.load("ucf101_zsar/intra", str(tmp_path / "data"))
    assert len(dataset.classes) == 101 and len(dataset.records) == 202
    name = "apply eye makeup"
    split = next(k for k, v in dataset.class_splits.items() if name in v["unseen"])
    config = tiny_config(
        str(tmp_path / "data"), data__name="ucf101_zsar/intra", split=split, ablation="label",
        text__corpus=None, data__batch=8, text__vocabulary=150, optimizer__steps=3,
    )  # fmt: skip
    figures = run(config, tmp_path / "run")
    assert figures["unseen_videos"] == 100 and len(figures["unseen_classes"]) == 50
    shown = {e["video_id"] for e in figures["examples"] if e["action"] == name}
    assert shown <= {"v_ApplyEyeMakeup_g01_c01", "v_ApplyEyeMakeup_g08_c01"} and shown
    real = dataset.records[dataset.records.video_ids.index("v_ApplyEyeMakeup_g01_c01")]
    assert real["video"] == (clips / "applying_eye_makeup.avi").read_bytes()


def test_cross_dataset_run_evaluates_each_named_test_split(tmp_path, one_device):
    """The datasets of training and evaluation have one class name in common."""
    from coco_jax.evaluation.experiment import run
    from conftest import tiny_config

    data, placed = tmp_path / "data", tmp_path / "placed"
    testing.write(
        tmp_path / "mine", [f"{a}/{n}.mp4" for a in ("archery", "b", "c", "d") for n in range(5)]
    )
    (tmp_path / "mine" / "unseen.txt").write_text("d\n")
    build("video_folder", str(data), str(tmp_path / "mine"))
    labels = ("Archery", "Biking", "Diving", "HighJump")
    testing.write(placed / "UCF-101", fake_lists(placed / "lists", labels, each=1))
    build("ucf101_zsar/cross", str(data), str(placed))
    config = tiny_config(
        str(data), data__name="video_folder/video", protocol="cross",
        data__test_name="ucf101_zsar/cross",
        data__test_splits=("1", "2", "half1"), ablation="label", text__corpus=None, data__batch=8,
        text__vocabulary=80, optimizer__steps=2, checkpoint_every=2,
    )  # fmt: skip
    task = make_task(config)
    assert task.plan.seen == ("archery", "b", "c")
    assert task.plan.unseen == ("ucf101_zsar: archery", "biking", "diving", "high jump")
    assert task.classes["unseen"][0] == "archery"
    # testlist02 of fake_lists has every other video of testlist01.
    sizes = {name: len(subset.records) for name, subset in task.plan.subsets.items()}
    assert sizes == {"1": 4, "2": 2, "half1": 4}
    labels_of = task.dataset.records.labels
    assert not set(labels_of[task.plan.train]) & set(labels_of[task.plan.test_unseen])
    figures = run(config, tmp_path / "run")
    assert (
        len(figures["cross"]["official"]["top1"]) == 2
        and len(figures["cross"]["half"]["top1"]) == 1
    )
    assert figures["top1"] == np.mean(figures["cross"]["official"]["top1"])
    assert figures["top5"] is None and figures["chance"] == 1 / 4
    with config.unlocked():
        config.data.shared_classes = "drop"
    assert make_task(config).plan.seen == ("b", "c")


def test_beam_builds_the_same_dataset(hundred_videos, tmp_path):
    pytest.importorskip("apache_beam")
    build("video_folder", str(tmp_path / "alone"), str(hundred_videos), max_broken=0.1)
    folder = build(
        "video_folder",
        str(tmp_path / "beam"),
        str(hundred_videos),
        beam="runner=DirectRunner",
        max_broken=0.1,
    )
    alone, beam = (
        datasets.load("video_folder/video", str(tmp_path / which)) for which in ("alone", "beam")
    )

    def contents(dataset):
        return {
            record["video_id"]: (record["label"], record["video"]) for record in dataset.records
        }

    assert contents(alone) == contents(beam) and len(beam.records) == 98
    assert beam.class_splits == alone.class_splits
    report = json.loads((folder / "report.json").read_text())
    assert sum(len(part["broken"]) for part in report.values()) == 2


def test_random_class_splits_stay_the_same_across_releases():
    """Results of different releases are comparable only if their splits are the same."""
    split = base.halves("ucf101", ["a", "b", "c", "d", "e"], 2)
    assert split == {
        "1": {"seen": ["a", "b", "e"], "unseen": ["c", "d"]},
        "2": {"seen": ["a", "c", "e"], "unseen": ["b", "d"]},
    }
