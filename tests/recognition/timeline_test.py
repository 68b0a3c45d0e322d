"""Timelines: windows of a stream, the most likely sequence, and segments at known times."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_jax.data import video as videos
from coco_jax.errors import UserError
from coco_jax.recognition import timeline
from coco_jax.recognition.ranking import NONE
from coco_jax.recognition.timeline import best_path, change_cost, window_starts
from tests.helpers.rankers import ColourRanker, coloured

ACTIONS = ["green", "blue", "red"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Red until 8 s, blue until 20 s, green until 26 s."""
    path = tmp_path_factory.mktemp("timeline") / "a.mp4"
    path.write_bytes(coloured(("red", 8), ("blue", 12), ("green", 6)))
    return path


def test_segments_are_where_the_colours_are(path):
    found = ColourRanker().timeline(path, ACTIONS)
    assert [segment.action for segment in found.segments] == ["red", "blue", "green"]
    assert found.video == str(path) and found.duration == pytest.approx(26)
    ends = [segment.end for segment in found.segments]
    np.testing.assert_allclose(ends, [8, 20, 26], atol=0.7)  # half a stride
    assert found.segments[0].start == 0 and ends[-1] == found.duration
    for before, after in itertools.pairwise(found.segments):
        assert before.end == after.start
    assert found.scores_TK.shape == (len(found.starts_T), 3) and found.actions == tuple(ACTIONS)
    np.testing.assert_allclose(found.scores_TK.sum(1), 1, atol=1e-5)
    # A window of one colour: raw scores 1, 0, 0 at temperature 0.2.
    assert found.scores_TK[0, 2] == pytest.approx(1 / (1 + 2 * math.exp(-5)), abs=0.02)
    assert found.as_dict()["segments"][1]["action"] == "blue"


def test_score_of_a_segment_is_that_of_its_windows_as_one_video(path):
    ranker = ColourRanker()
    windows = ranker.embed_windows(path)
    candidates = ranker.embed_actions(ACTIONS)
    found = ranker.timeline_of(path, windows, candidates)
    assert found == ranker.timeline(path, ACTIONS)
    inside = windows.v_TD[
        : np.searchsorted(windows.starts_T + windows.length / 2, found.segments[0].end)
    ]
    raw_K = inside.mean(0)[[1, 2, 0]]  # of green, blue, red
    share_K = np.exp(raw_K / 0.2) / np.exp(raw_K / 0.2).sum()
    assert found.segments[0].score == pytest.approx(share_K[2], abs=1e-5)


def test_none_of_these_is_a_segment_where_no_action_reaches_the_threshold(path):
    found = ColourRanker().timeline(path, ["red", "green"], threshold=0.5)
    assert [segment.action for segment in found.segments] == ["red", NONE, "green"]
    assert found.actions == ("red", "green", NONE)
    with pytest.raises(UserError, match="has the name of the row"):
        ColourRanker().timeline(path, ["red", NONE], threshold=0.5)


def test_short_video_has_one_window_and_one_segment(tmp_path):
    (tmp_path / "a.mp4").write_bytes(coloured(("blue", 0.5)))
    found = ColourRanker().timeline(tmp_path / "a.mp4", ACTIONS)
    (segment,) = found.segments
    assert (segment.start, segment.end, segment.action) == (0, pytest.approx(0.5), "blue")
    assert found.window == pytest.approx(0.5) and len(found.starts_T) == 1


def test_single_candidate_has_one_segment(path):
    (segment,) = ColourRanker().timeline(path, ["red"]).segments
    assert segment.score == pytest.approx(1) and segment.end == pytest.approx(26)


def test_progress_is_reported_for_each_window(path):
    calls = []
    windows = ColourRanker().embed_windows(path, 2.0, lambda *counts: calls.append(counts))
    count = len(windows.starts_T)
    assert calls == [(n + 1, count) for n in range(count)]


@given(st.floats(0.05, 500), st.floats(0.1, 10))
def test_windows_cover_the_video_and_end_within_it(duration, stride):
    starts_T = window_starts(duration, stride)
    length = min(timeline.WINDOW, duration)
    assert starts_T[0] == 0 and starts_T[-1] + length <= duration + 1e-5
    assert duration - starts_T[-1] - length <= stride / 2 + 1e-5
    gaps = np.diff(starts_T)
    assert (gaps <= stride + 1e-6).all() and (gaps[:-1] >= stride - 1e-6).all()


def test_too_many_windows_are_an_error_that_says_which_stride_works():
    assert len(window_starts(60_000)) < timeline.MAX_WINDOWS
    with pytest.raises(
        UserError, match=r"100,000 s have more than .* a stride of at least 2.01 s"
    ) as error:
        window_starts(100_000)
    assert len(window_starts(100_000, 2.01)) <= timeline.MAX_WINDOWS and "\n" not in str(
        error.value
    )


@pytest.mark.parametrize("values", [{"stride": 0}, {"stride": -1}, {"action_seconds": math.nan}])
def test_numbers_that_are_no_durations_are_an_error(path, values):
    with pytest.raises(UserError, match="give a positive number of seconds"):
        ColourRanker().timeline(path, ACTIONS, **values)


SCORES = st.integers(1, 3).flatmap(
    lambda actions: st.lists(
        st.lists(st.integers(-8, 8).map(float), min_size=actions, max_size=actions),
        min_size=1,
        max_size=6,
    )
)


@given(SCORES, st.sampled_from([0.0, 0.5, 3.0, 100.0]))
def test_best_path_has_the_highest_total_of_all_paths(scores, cost):
    score_TK = np.array(scores)
    count, actions = score_TK.shape

    def total(path):
        changes = sum(a != b for a, b in itertools.pairwise(path))
        return score_TK[np.arange(count), list(path)].sum() - cost * changes

    best = max(map(total, itertools.product(range(actions), repeat=count)))
    assert total(best_path(score_TK, cost)) == pytest.approx(best)


def test_cost_of_a_change_follows_from_the_mean_duration():
    """With probability 1.28 / 10 an action ends, and one of 4 others begins."""
    assert change_cost(5, 1.28, 10.0) == pytest.approx(-math.log((0.128 / 4) / 0.872))
    assert change_cost(2, 60.0, 10.0) == 0


@pytest.mark.parametrize(
    "stride, action_seconds, segments", [(1.28, 10, 1), (2.56, 10, 3), (5.12, 60, 1)]
)
def test_windows_that_overlap_are_less_evidence(stride, action_seconds, segments):
    """One window of nine shows another action; two changes cost 3.8, 2.1 and 4.7.

    The evidence is 0.9 / 0.2 (raw score, temperature) = 4.5, or half of it if two windows see each
    moment. With gaps between the windows it is no more than 4.5.
    """
    v_TD = np.tile(np.float32([0.9, 0, 0]), (9, 1))
    v_TD[4] = [0, 0, 0.9]
    starts_T = np.arange(9) * stride
    windows = timeline.Windows(starts_T, stride, 2.56, starts_T[-1] + 2.56, v_TD)
    ranker = ColourRanker()
    candidates = ranker.embed_actions(["red", "blue"])
    found = ranker.timeline_of("a.mp4", windows, candidates, action_seconds=action_seconds)
    assert len(found.segments) == segments


def test_windows_of_a_stream_are_those_of_separate_decodes(path):
    """Overlapping windows, windows with gaps (which seek), and windows past the end."""
    video = path.read_bytes()
    info = videos.probe(video)
    for starts in ([0, 0.4, 0.8, 3.1], [0, 9, 17.5, 24.9], [2, 2, 25.5]):
        times_NT = np.array(starts)[:, None] + np.arange(5) * 0.33
        streamed = list(videos.decode_windows(video, times_NT, short_side=32))
        assert len(streamed) == len(starts)
        for times_T, frames in zip(times_NT, streamed, strict=True):
            np.testing.assert_array_equal(frames, videos.decode(video, times_T, short_side=32))
    assert info.duration == pytest.approx(26)
    twice = list(videos.decode_windows(video, np.array([[1.0, 2.0]] * 2), short_side=32))
    assert twice[0] is twice[1]


def test_memory_for_a_long_video_is_that_of_a_window(monkeypatch):
    """400 frames of 96 x 128 pixels are 14 MiB; a window has eight of them."""
    rgb = videos._rgb  # its arrays are in the memory of FFmpeg, which tracemalloc does not count
    monkeypatch.setattr(videos, "_rgb", lambda *args, **options: rgb(*args, **options).copy())
    video = coloured(("red", 40), size=(96, 128))
    times_NT = np.arange(0, 38.0, 0.5)[:, None] + np.arange(8) * 0.25
    tracemalloc.start()
    try:
        count = sum(1 for _ in videos.decode_windows(video, times_NT, short_side=96))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == len(times_NT) and peak < 3 << 20


@pytest.mark.parametrize(
    ("container", "codec"), [("avi", "mpeg4"), ("mpegts", "libx264"), ("gif", "gif")]
)
def test_containers_without_an_index_give_the_same_windows(container, codec):
    if container == "gif":
        from tests.helpers import hostile

        video = hostile.gif(64, 48, frames=20)
    else:
        frames = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
        video = videos.encode(frames, 10, codec=codec, container=container)
    times_NT = np.arange(6)[:, None] * 0.3 + np.arange(4) * 0.1
    for times_T, got in zip(
        times_NT, videos.decode_windows(video, times_NT, short_side=24), strict=True
    ):
        np.testing.assert_array_equal(got, videos.decode(video, times_T, short_side=24))


def test_damaged_video_is_an_error(path, tmp_path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = bytes(len(data) - middle)
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(videos.VideoError, match=r"x\.mp4: "):
        ColourRanker().timeline(tmp_path / "x.mp4", ACTIONS)


def test_trained_model_and_pretrained_windows_have_the_model_s_own_frames(untrained, video_path):
    """A window is sampled as a video of its length would be."""
    windows = untrained.embed_windows(video_path, 0.5)
    times_T = videos.sample_times(4, windows.length, "uniform")
    clip = videos.decode(video_path, times_T, short_side=round(32 / untrained.config.data.crop))
    margin = (np.array(clip.shape[1:3]) - 32) // 2
    clip = clip[:, margin[0] : margin[0] + 32, margin[1] : margin[1] + 32]
    np.testing.assert_allclose(windows.v_TD[0], untrained.embed_clips(clip[None])[0], atol=1e-5)
