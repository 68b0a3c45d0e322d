"""Raw scores as matrix products, and the function of clips that is exported."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import coco_jax
from coco_jax.data import starter
from coco_jax.data import video as videos
from coco_jax.recognition.timeline import WINDOW

ACTIONS = list(starter.load())[:3]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCO_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield coco_jax.load()


@pytest.fixture
def quick(pretrained, monkeypatch):
    """The pretrained recogniser with a quick function in place of I3D."""
    kernel = np.random.default_rng(0).normal(size=(224 * 3, 1024)).astype(np.float32)

    def embed(params, clips):
        means = jnp.asarray(clips).astype(jnp.float32).mean((1, 2)).reshape(len(clips), -1)
        return jax.nn.relu((means / 127.5 - 1) @ kernel)

    monkeypatch.setattr(pretrained, "_embed", embed)
    return pretrained


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A video of one window: a square moves over noise."""
    frames = np.random.default_rng(0).integers(0, 90, (64, 64, 80, 3), dtype=np.uint8)
    for t in range(64):
        frames[t, 20:40, t : t + 16] = (200, 180, 40)
    path = tmp_path_factory.mktemp("moving") / "a.mp4"
    path.write_bytes(videos.encode(frames, 25))
    return path


def test_the_table_of_the_pretrained_recogniser_gives_the_scores_of_predict(quick, moving):
    candidates = quick.embed_actions(ACTIONS)
    windows = quick.embed_windows(moving, WINDOW)
    rows_NW = quick.rows(windows.v_TD)
    assert rows_NW.shape == (1, quick.row_width) and rows_NW.dtype == np.float32
    score_NK = quick.table(candidates).scores(rows_NW)
    np.testing.assert_allclose(score_NK[0], quick.raw_scores(moving, candidates), atol=1e-5)
    np.testing.assert_allclose(score_NK, quick.compare(windows.v_TD, candidates), atol=1e-5)
    # The exported function computes the same rows from clips.
    (clip,) = quick.clip_reader(1).read_windows(moving, windows.starts_T, windows.length)
    np.testing.assert_allclose(quick.clip_function()(clip[None]), rows_NW, atol=1e-5)


def test_the_table_of_a_trained_model_gives_its_scores(untrained, video_path):
    candidates = untrained.embed_actions(["juggling", "swimming", "jumps"])
    v_XD = np.random.default_rng(0).normal(size=(5, untrained.vector_width)).astype(np.float32)
    v_XD /= np.linalg.norm(v_XD, axis=1, keepdims=True)
    score_XK = untrained.table(candidates).scores(untrained.rows(v_XD))
    np.testing.assert_allclose(score_XK, untrained.compare(v_XD, candidates), atol=1e-5)
    clips = np.stack(list(untrained.clip_reader(2).read_views(video_path)))
    rows_BW = jax.jit(untrained.clip_function())(clips)
    np.testing.assert_allclose(rows_BW, untrained.embed_clips(clips), atol=1e-5)


def test_scores_with_descriptions_have_no_table(untrained):
    captions = {"juggling": ["balls in the air"], "swimming": ["a clown", "jumps"]}
    assert untrained.table(untrained.embed_actions(list(captions), captions)) is None


def test_fingerprints_differ_if_a_parameter_or_a_setting_does(untrained, pretrained):
    assert untrained.fingerprint == dataclasses.replace(untrained).fingerprint
    params = jax.tree.map(lambda x: x, untrained.params)
    params["video_out"]["kernel"] = params["video_out"]["kernel"].at[0, 0].add(1e-3)
    changed = dataclasses.replace(untrained, params=params)
    assert changed.fingerprint != untrained.fingerprint
    same, other = copy.copy(pretrained), copy.copy(pretrained)
    same.windows = 5
    other.settings = dataclasses.replace(pretrained.settings, hubness=0.31)
    assert same.fingerprint == pretrained.fingerprint != other.fingerprint
