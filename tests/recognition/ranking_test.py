"""Ranking by raw scores: the row "none of these", and one recogniser in several threads."""

import concurrent.futures
import sys
import types

import numpy as np
import pytest

from coco_jax.data import action_names
from coco_jax.errors import UserError
from coco_jax.recognition.ranking import NONE, VideoRanker


class FixedScores(VideoRanker):
    """A recogniser that gives the same raw scores for every video."""

    temperature = 0.5

    def __init__(self, scores):
        self.scores = scores

    def embed_actions(self, actions, descriptions=None):
        return types.SimpleNamespace(names=tuple(actions))

    def raw_scores(self, path, candidates):
        return np.array([self.scores[name] for name in candidates.names])


RANKER = FixedScores({"a": 0.2, "b": 0.7, "c": -0.1})


def test_scores_are_a_softmax_of_the_raw_scores_at_the_temperature():
    (ranked,) = RANKER.rank(["x.mp4"], ["a", "b", "c"])
    assert [row.action for row in ranked] == ["b", "a", "c"]
    share = np.exp(np.array([0.7, 0.2, -0.1]) / 0.5)
    np.testing.assert_allclose([row.score for row in ranked], share / share.sum(), rtol=1e-6)


@pytest.mark.parametrize(("threshold", "place"), [(-1.0, 3), (0.0, 2), (0.69, 1), (0.71, 0)])
def test_none_of_these_is_first_only_if_all_raw_scores_are_below_the_threshold(threshold, place):
    (ranked,) = RANKER.rank(["x.mp4"], ["a", "b", "c"], threshold=threshold)
    assert [row.action for row in ranked].index(NONE) == place
    assert sum(row.score for row in ranked) == pytest.approx(1)
    others = [row for row in ranked if row.action != NONE]
    (without,) = RANKER.rank(["x.mp4"], ["a", "b", "c"])
    assert [row.action for row in others] == [row.action for row in without]
    ratio = [a.score / b.score for a, b in zip(others, without, strict=True)]
    np.testing.assert_allclose(ratio, ratio[0])


def test_action_named_as_the_row_of_the_threshold_is_an_error():
    ranker = FixedScores({NONE: 1.0, "a": 0.0})
    assert ranker.rank(["x.mp4"], ["a", NONE])[0][0].action == NONE
    with pytest.raises(UserError, match="has the name of the row"):
        ranker.rank(["x.mp4"], ["a", NONE], threshold=0.0)


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match=r"x\.mp4: .* not finite"):
        FixedScores({"a": np.nan, "b": 1.0}).rank(["x.mp4"], ["a", "b"])


def test_threads_rank_as_one_thread_does(untrained, video_path):
    """Eight calls in two threads, half of them with captions."""
    actions = ["juggling", "rope skipping", "swimming"]
    captions = [None, {name: [f"a clip of {name}"] for name in actions}]
    want = [untrained.rank([video_path], actions, texts) for texts in captions]
    assert want[0] != want[1]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(untrained.rank, [video_path] * 2, actions, captions[n % 2])
            for n in range(8)
        ]
        got = [call.result() for call in calls]
    assert got == [want[n % 2] * 2 for n in range(8)]


def test_threads_read_names_as_one_thread_does():
    """The stemmer of the library keeps the word that it works on."""
    words = [f"{stem}{end}" for stem in ("juggl", "skip", "climb", "danc") for end in ("ing", "er")]
    names = [f"{a} {b}" for a in words for b in words]
    want = [action_names.normal(name) for name in names]
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for _ in range(5):
            action_names._stem.cache_clear()
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda _: [action_names.normal(n) for n in names], range(4)))
            assert found == [want] * 4
    finally:
        sys.setswitchinterval(interval)
