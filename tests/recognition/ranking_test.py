"""Ranking by raw scores: the row "none of these", and one recogniser in several threads."""

import concurrent.futures
import dataclasses
import struct
import sys

import numpy as np
import pytest

from coco_jax.data import action_names
from coco_jax.errors import UserError
from coco_jax.recognition.ranking import NONE, Ranked
from tests.helpers import hostile
from tests.helpers.rankers import ColourRanker, coloured


class FixedScores(ColourRanker):
    """A recogniser that gives the same raw scores for every video."""

    temperature = 0.5

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of one colour, one that changes, and a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "red.mp4").write_bytes(coloured(("red", 4)))
    (folder / "blue.mp4").write_bytes(coloured(("blue", 4)))
    (folder / "both.mp4").write_bytes(coloured(("red", 4), ("blue", 8)))
    (folder / "x.mp4").write_bytes(b"no video")
    return folder


def test_recognize_gives_a_typed_result_for_each_video_and_the_reason_for_a_broken_one(folder):
    paths = [folder / "red.mp4", folder / "x.mp4", str(folder / "blue.mp4")]
    red, broken, blue = ColourRanker().recognize(paths, ["blue", "red", "green"], top=2)
    assert (red.best.action, blue.best.action) == ("red", "blue") and len(red.actions) == 2
    assert red.video == str(paths[0]) and red.error is None
    assert broken.actions == () and "x.mp4: not a video" in broken.error
    with pytest.raises(UserError, match=r"x\.mp4: not a video"):
        broken.best  # noqa: B018
    assert broken.as_dict() == {"video": str(paths[1]), "error": broken.error}
    first = {"action": "red", "score": red.best.score}
    assert red.as_dict()["actions"][0] == first and isinstance(red.best, Ranked)
    with pytest.raises(dataclasses.FrozenInstanceError):
        red.video = "other"


@pytest.mark.parametrize("method", ["recognize", "rank", "embed_videos"])
def test_path_in_place_of_a_list_is_an_error(method):
    arguments = () if method == "embed_videos" else (["red"],)
    with pytest.raises(TypeError, match="give a list of paths"):
        getattr(ColourRanker(), method)("a.mp4", *arguments)


def test_recognize_and_rank_agree(folder):
    actions = ["blue", "red"]
    (found,) = ColourRanker().recognize([folder / "both.mp4"], actions, threshold=0.1)
    (ranked,) = ColourRanker().rank([folder / "both.mp4"], actions, threshold=0.1)
    assert list(found.actions) == ranked and len(ranked) == 3


def test_vectors_of_videos_are_means_over_their_clips(folder):
    """With two clips, one in the middle of each half of the possible starts, of 12 s."""
    ranker = ColourRanker()
    v_ND = ranker.embed_videos([folder / "red.mp4", folder / "both.mp4"])
    assert v_ND.shape == (2, 3) and v_ND.dtype == np.float32
    np.testing.assert_allclose(v_ND[0], [1, 0, 0], atol=0.03)
    # The clips last 2.1 s and start at 2.475 and 7.425 s: 6 of the first 8 frames are red.
    np.testing.assert_allclose(v_ND[1], [6 / 16, 0, 10 / 16], atol=0.03)
    with pytest.raises(UserError, match="no videos to embed"):
        ranker.embed_videos([])


def test_clips_with_the_same_frames_are_embedded_once(folder, tmp_path):
    """A video of two frames that lasts 400 s, as a broken camera makes."""
    ranker = ColourRanker()
    path = tmp_path / "slow.gif"
    hostile_gif = hostile.gif(32, 24, frames=2)
    path.write_bytes(
        hostile_gif.replace(b"\x04" + struct.pack("<H", 10), b"\x04" + struct.pack("<H", 20_000))
    )
    windows = ranker.embed_windows(path)
    assert windows.duration == pytest.approx(400, abs=1) and len(windows.starts_T) > 300
    assert ranker.clips < 20 and len(windows.v_TD) == len(windows.starts_T)


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_vectors_do_not_depend_on_the_batch(folder, batch):
    ranker = ColourRanker()
    ranker.clip_batch = batch
    got = ranker.embed_windows(folder / "both.mp4", 0.5)
    want = ColourRanker().embed_windows(folder / "both.mp4", 0.5)
    np.testing.assert_allclose(got.v_TD, want.v_TD, atol=1e-6)
    assert ranker.batches == -(-ranker.clips // batch)


def test_threads_recognise_as_one_thread_does(untrained, video_path):
    """Typed results and timelines of one model in four threads."""
    actions = ["juggling", "rope skipping", "swimming"]

    def call(n):
        if n % 2:
            return untrained.timeline(video_path, actions, stride=0.2)
        return untrained.recognize([video_path] * 2, actions)

    want = [call(0), call(1)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(12))) == want * 6
