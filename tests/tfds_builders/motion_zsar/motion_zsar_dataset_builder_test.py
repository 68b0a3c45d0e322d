"""Tests of motion_zsar: its actions, class splits, descriptions, rendering and stored dataset."""

import collections
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from coco_jax.data import dataset as datasets
from coco_jax.data import video as videos
from tfds_builders.motion_zsar import language, render

BY_NAME = {action.name: action for action in language.ACTIONS}
CORPUS = list(language.corpus())


def test_actions_are_distinct_combinations():
    actions = language.ACTIONS + language.AUXILIARY
    assert (len(language.ACTIONS), len(language.AUXILIARY)) == (32, 8)
    assert len({a.name for a in actions}) == 40
    assert len({(a.path, a.manner) for a in actions}) == 40


def test_path_and_manner_of_unseen_actions_occur_in_two_seen_actions():
    splits = language.class_splits()
    assert sorted(splits) == ["1", "2", "3"]
    for split in splits.values():
        seen, unseen = ([BY_NAME[name] for name in split[k]] for k in ("seen", "unseen"))
        assert len(seen) == 24 and len(unseen) == 8 and not set(seen) & set(unseen)
        paths = collections.Counter(a.path for a in seen)
        manners = collections.Counter(a.manner for a in seen)
        assert all(paths[a.path] >= 2 and manners[a.manner] >= 2 for a in unseen)


def test_corpus_describes_every_action_without_its_name():
    counts = collections.Counter(row["action"] for row in CORPUS)
    assert set(counts.values()) == {language.DESCRIPTIONS_PER_ACTION} and len(counts) == 40
    for row in CORPUS:
        words = set(row["description"].replace(",", " ").replace(":", " ").split())
        assert row["action"].split()[0] not in words
    assert list(language.corpus()) == CORPUS
    with_id = [row for row in CORPUS if row["video_id"]]
    assert 0.1 < len(with_id) / len(CORPUS) < 0.25
    assert all(row["video_id"].startswith(row["action"].replace(" ", "_")) for row in with_id)


def test_phrases_in_the_descriptions_identify_path_and_manner():
    """The most frequent path and manner phrases are those of the action: the task can be solved."""

    def primitive(text, table):
        return next((name for name, phrases in table.items() for p in phrases if p in text), None)

    def read(rows):
        votes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for row in rows:
            for table in (language.PATHS, language.MANNERS):
                found = primitive(row["description"], table)
                if found:
                    votes[row["action"]][found] += 1
        return votes

    votes = read(CORPUS)
    for action in language.ACTIONS + language.AUXILIARY:
        assert {name for name, _ in votes[action.name].most_common(2)} == {
            action.path,
            action.manner,
        }
    vague = np.mean([row["description"] in language._VAGUE for row in CORPUS])
    assert 0.08 < vague < 0.16


def test_encoded_clips_are_reproducible_in_another_process():
    code = (
        "import hashlib\n"
        "from coco_jax.data import video as videos\n"
        "from tfds_builders.motion_zsar import language, render\n"
        "for a in language.ACTIONS[:3]:\n"
        "    print(hashlib.sha256(videos.encode(render.clip(a, 7), render.FPS)).hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        hashlib.sha256(videos.encode(render.clip(a, 7), render.FPS)).hexdigest()
        for a in language.ACTIONS[:3]
    ]
    assert other.stdout.split() == here and len(set(here)) == 3


@pytest.mark.parametrize("path", language.PATHS)
@pytest.mark.parametrize("manner", language.MANNERS)
def test_every_combination_is_rendered_and_moves(path, manner):
    clip = render.clip(language.Action("test", path, manner), 0)
    assert clip.dtype == np.uint8 and clip.shape[1:] == (64, 64, 3) and 18 <= len(clip) <= 30
    assert np.abs(np.diff(clip.astype(int), axis=0)).max() > 40


def test_light_area_follows_the_manners_grow_shrink_and_blink():

    def light(manner, index):
        clip = render.clip(language.Action("test", "circle", manner), index)
        return (clip.max(-1) > 200).mean((1, 2))

    growth = [light("grow", i)[-4:].mean() / light("grow", i)[:4].mean() for i in range(6)]
    shrink = [light("shrink", i)[-4:].mean() / light("shrink", i)[:4].mean() for i in range(6)]
    assert np.median(growth) > 1.5 and np.median(shrink) < 0.7
    assert all(light("blink", i).min() < 0.3 * light("blink", i).max() for i in range(6))


def test_built_dataset_contains_the_rendered_clips(full_data_dir):
    dataset = datasets.load("motion_zsar", full_data_dir)
    records = dataset.records
    assert dataset.classes == tuple(a.name for a in language.ACTIONS)
    assert dataset.class_splits == language.class_splits()
    assert collections.Counter(records.splits) == {"train": 32 * 32, "test": 32 * 8}
    assert len(set(records.video_ids)) == 1280
    for index in (0, 700, 1279):
        record = records[index]
        action = BY_NAME[dataset.classes[record["label"]]]
        clip = render.clip(action, int(record["video_id"][-3:]))
        decoded = videos.decode(record["video"], None)
        assert videos.probe(record["video"]).codec == "h264" and len(decoded) == len(clip)
        assert np.abs(decoded.astype(int) - clip).mean() < 8
