"""Protocols and class splits, and the rules of docs/method.md: each violation is an error."""

import dataclasses

import numpy as np
import pytest

from coco_jax.data import dataset as datasets
from coco_jax.data import splits
from coco_jax.data.dataset import Dataset, Records
from coco_jax.data.task import make_task
from coco_jax.errors import UserError


@pytest.fixture
def fake():
    """Six classes with two training videos and one test video each."""
    labels = np.repeat(np.arange(6), 3)
    records = Records((), labels, tuple(f"v{i}" for i in range(18)), ("train", "train", "test") * 6)
    class_splits = {"1": {"seen": list("abcd"), "unseen": list("ef")}}
    return Dataset("fake", tuple("abcdef"), class_splits, records)


def config(**changes):
    from coco_jax.config import default

    c = default()
    c.update(changes)
    return c


def test_protocol_test_trains_on_seen_and_tests_on_unseen_classes(fake):
    plan = splits.make_plan(fake, config())
    assert plan.seen == tuple("abcd") and plan.unseen == tuple("ef")
    assert plan.train.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert plan.test_seen.tolist() == [2, 5, 8, 11]
    assert plan.test_unseen.tolist() == list(range(12, 18))


def test_protocol_validation_uses_no_videos_of_unseen_classes(fake):
    plan = splits.make_plan(fake, config(protocol="validation", validation_classes=2))
    assert len(plan.seen) == len(plan.unseen) == 2
    assert set(plan.seen + plan.unseen) == set("abcd")
    used = np.concatenate([plan.train, plan.test_seen, plan.test_unseen])
    assert not np.isin(fake.records.labels[used], [4, 5]).any()


def broken(fake, **changes):
    return dataclasses.replace(splits.make_plan(fake, config()), **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": tuple("abcde")}, "classes are both seen and unseen"),
        ({"seen": ("a", "b", "E")}, "classes are both seen and unseen"),
        ({"train": np.array([0, 12])}, "videos of unseen classes"),
        ({"train": np.array([0, 2])}, "trained on and tested"),
    ],
)
def test_leak_in_a_plan_is_an_error(fake, change, message):
    with pytest.raises(splits.LeakError, match=message):
        splits.check_plan(broken(fake, **change), fake)


def test_video_that_is_both_a_training_and_a_tested_record_is_an_error(fake):
    ids = list(fake.records.video_ids)
    ids[13] = ids[0]
    leaky = dataclasses.replace(
        fake, records=dataclasses.replace(fake.records, video_ids=tuple(ids))
    )
    with pytest.raises(splits.LeakError, match="v0"):
        splits.make_plan(leaky, config())


def test_class_split_with_a_class_both_seen_and_unseen_is_an_error(fake):
    leaky = dataclasses.replace(
        fake, class_splits={"1": {"seen": list("abc"), "unseen": list("cf")}}
    )
    with pytest.raises(splits.LeakError, match="'c'"):
        splits.make_plan(leaky, config())


def test_one_unseen_class_is_reported_in_one_line(fake, capsys):
    one = dataclasses.replace(fake, class_splits={"1": {"seen": list("abc"), "unseen": ["f"]}})
    splits.make_plan(fake, config())
    assert not capsys.readouterr().err
    assert splits.make_plan(one, config()).unseen == ("f",)
    (line,) = capsys.readouterr().err.splitlines()
    assert "'f' is the only unseen class, so the zero-shot accuracy is always 100 %" in line


def test_description_of_a_tested_video_is_an_error():
    splits.check_texts(["v1", "", "v2"], ["v3"])
    with pytest.raises(splits.LeakError, match="v2"):
        splits.check_texts(["v1", "v2"], ["v2", "v3"])


@pytest.mark.parametrize(
    "written", ["v_0123456789a", "0123456789a_000010_000020", "0123456789a.mp4"]
)
def test_description_of_a_tested_video_is_found_in_every_form_of_its_id(written):
    with pytest.raises(splits.LeakError, match="0123456789a"):
        splits.check_texts([written], ["0123456789a"])
    with pytest.raises(splits.LeakError, match="0123456789a"):
        splits.check_texts(["0123456789a"], [written])


def test_evaluation_on_test_classes_before_the_last_step_is_an_error():
    c = config()
    splits.check_final(c.optimizer.steps, c)
    with pytest.raises(splits.LeakError, match="step 5"):
        splits.check_final(5, c)
    c.protocol = "validation"
    splits.check_final(5, c)


def test_task_removes_descriptions_of_tested_videos(tiny, monkeypatch):
    task = make_task(tiny())
    # One in five descriptions of an unseen class has the id of a tested video.
    assert task.removed_descriptions > 100
    # If they are not removed, the check fails.
    from coco_jax.data.corpus import Corpus

    monkeypatch.setattr(Corpus, "without_videos", lambda self, excluded: (self, 0))
    with pytest.raises(splits.LeakError, match="tested videos"):
        make_task(tiny())


def test_numbers_of_classes_and_videos_in_the_splits_of_motion_zsar(data_dir):
    dataset = datasets.load("motion_zsar", data_dir)
    assert len(dataset.records) == 32 * 10
    for name in ("1", "2", "3"):
        plan = splits.make_plan(dataset, config(split=name))
        assert (len(plan.seen), len(plan.unseen)) == (24, 8)
        assert (len(plan.train), len(plan.test_seen), len(plan.test_unseen)) == (192, 48, 80)


def test_unknown_split_is_an_error_that_lists_the_splits(fake):
    with pytest.raises(UserError, match=r"no split '9'; it has 1"):
        splits.make_plan(fake, config(split="9"))
