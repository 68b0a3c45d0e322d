"""Metrics of an evaluation, from given scores: top-5, chance, the test sets of a cross-dataset run."""

import types

import numpy as np
import pytest

from coco_jax.data.splits import Plan, Subset
from coco_jax.evaluation import evaluate

NONE = np.zeros(0, np.int64)


def plan_of(classes, subsets=None):
    """One tested video of each class; `subsets` are (classes, official) by name."""
    made = {
        name: Subset(tuple(classes[:size]), np.arange(size), official)
        for name, (size, official) in (subsets or {}).items()
    }
    return Plan(("s",), tuple(classes), NONE, np.arange(len(classes)), NONE, made)


def accuracies(plan, scores_NU):
    labels_N = np.arange(len(plan.unseen))
    return evaluate._accuracies(types.SimpleNamespace(plan=plan), scores_NU, labels_N)


@pytest.mark.parametrize(("classes", "top5"), [("abcd", None), ("abcde", None), ("abcdef", 5 / 6)])
def test_top_5_is_none_with_at_most_five_candidates(classes, top5):
    """The class of the first video has the highest score, that of the second the second highest, etc."""
    size = len(classes)
    scores_NU = np.where(np.tri(size, k=-1, dtype=bool), 2.0, 0.0) + np.eye(size)
    got = accuracies(plan_of(classes), scores_NU)
    assert got == {"top1": pytest.approx(1 / size), "top5": top5 and pytest.approx(top5)}


def test_mean_top_5_is_none_if_one_test_set_has_at_most_five_candidates():
    plan = plan_of("abcdefg", {"1": (7, False), "2": (5, False)})
    got = accuracies(plan, np.eye(7))
    assert got["top1"] == 1 and got["top5"] is None
    assert got["cross"] == {"splits": {"top1": [1, 1], "top5": [1, None]}}


def test_chance_is_the_mean_top_1_of_random_scores_on_the_first_group_of_test_sets():
    """The first group has test sets of 2 and 4 classes; `half1` is in another group."""
    plan = plan_of("abcdef", {"1": (2, True), "2": (4, True), "half1": (6, False)})
    rng = np.random.default_rng(0)
    random_top1 = [accuracies(plan, rng.normal(size=(6, 6)))["top1"] for _ in range(1500)]
    assert evaluate._chance(plan) == pytest.approx(np.mean(random_top1), abs=0.03)
    assert evaluate._chance(plan) == (1 / 2 + 1 / 4) / 2
    assert evaluate._chance(plan_of("abcdef")) == 1 / 6
