"""Tests of the losses and scores against loops over their definitions, and of their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco_jax.models import alignment, invariance


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return unit(rng, 6, 8), unit(rng, 4, 8), unit(rng, 4, 5, 8), jnp.array([0, 1, 1, 3, 0, 1])


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_label_loss_sums_both_directions_with_all_positives(features):
    v_BD, l_KD, _, label_B = features
    tau = 0.1
    logits = v_BD @ l_KD.T / tau
    to_class = np.mean([-np.log(softmax(logits[b])[label_B[b]]) for b in range(6)])
    to_video = np.mean(
        [
            np.mean([-np.log(softmax(logits[:, c])[b]) for b in np.flatnonzero(label_B == c)])
            for c in (0, 1, 3)
        ]  # class 2 has no video in the batch
    )
    got = alignment.label_loss(v_BD, l_KD, label_B, jnp.array(tau))
    np.testing.assert_allclose(got, to_class + to_video, rtol=1e-5)


@pytest.mark.parametrize("hidden", [False, True])
def test_description_scores_equal_the_definition_of_e_c(features, hidden):
    v_BD, _, d_KMD, _ = features
    mask_KM = np.ones((4, 5), bool)
    mask_KM[1, 2:] = not hidden
    tau_d, want = 0.2, np.zeros((6, 4))
    for b, v in enumerate(v_BD):
        for c in range(4):
            d = d_KMD[c][mask_KM[c]]
            e = softmax(d @ v / tau_d) @ d
            want[b, c] = v @ (e / np.linalg.norm(e))
    got = alignment.description_scores(v_BD, d_KMD, tau_d, jnp.array(mask_KM))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_one_description_scores_like_a_label():
    """With a single description a class, L_desc is the video -> class half of L_label."""
    rng = np.random.default_rng(1)
    v_BD, l_KD, label_B = unit(rng, 5, 8), unit(rng, 3, 8), jnp.array([0, 1, 2, 2, 0])
    tau = jnp.array(0.3)
    one = alignment.description_loss(v_BD, l_KD[:, None], label_B, tau, 0.1)
    np.testing.assert_allclose(
        one, alignment.cross_entropy(v_BD @ l_KD.T / tau, label_B), rtol=1e-5
    )


def test_semantic_features_mix_and_have_unit_length(features):
    _, l_KD, d_KMD, _ = features
    np.testing.assert_allclose(alignment.semantic_features(l_KD, None, 0.3), l_KD)
    np.testing.assert_allclose(alignment.semantic_features(l_KD, d_KMD, 1.0), l_KD, atol=1e-6)
    s_KD = alignment.semantic_features(l_KD, d_KMD, 0.3)
    np.testing.assert_allclose(np.linalg.norm(s_KD, axis=1), 1, rtol=1e-5)
    mean_KD = d_KMD.mean(1)
    mean_KD /= np.linalg.norm(mean_KD, axis=1, keepdims=True)
    want = 0.3 * l_KD + 0.7 * mean_KD
    np.testing.assert_allclose(s_KD, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_losses_do_not_depend_on_the_order_of_videos_or_classes(seed):
    rng = np.random.default_rng(seed)
    v_BD, l_KD, d_KMD = unit(rng, 6, 8), unit(rng, 4, 8), unit(rng, 4, 3, 8)
    label_B, tau = jnp.asarray(rng.integers(4, size=6), jnp.int32), jnp.array(0.2)
    videos, classes = rng.permutation(6), rng.permutation(4)
    moved_B = jnp.argsort(classes)[label_B[videos]]

    def both(v, text, d, label):
        return alignment.label_loss(v, text, label, tau), alignment.description_loss(
            v, d, label, tau, 0.1
        )

    np.testing.assert_allclose(
        both(v_BD, l_KD, d_KMD, label_B),
        both(v_BD[videos], l_KD[classes], d_KMD[classes], moved_B),
        rtol=1e-4,
    )


def test_attend_at_initialisation_is_cosine_attention():
    rng = np.random.default_rng(2)
    q_QD, kv_KD = unit(rng, 3, 8), unit(rng, 5, 8)
    attend = invariance.Attend(8, heads=1, tau_r=0.1, learned=True)
    want = np.stack([softmax(kv_KD @ q / 0.1) @ kv_KD for q in q_QD])
    np.testing.assert_allclose(attend(q_QD, kv_KD), want, atol=1e-5)


def test_cycle_through_identical_classes_reconstructs_them():
    s_SD = jnp.array(unit(np.random.default_rng(3), 6, 16))
    cycle = invariance.Invariance(16, heads=2, tau_r=0.01, learned=True)
    rebuilt_SD = cycle(s_SD, s_SD)
    np.testing.assert_allclose(rebuilt_SD, s_SD, atol=1e-3)
    assert invariance.cycle_loss(rebuilt_SD, s_SD, "squared", jnp.array(1.0)) < 1e-5


def test_cycle_losses_equal_their_definitions():
    rng = np.random.default_rng(4)
    a_SD, b_SD = unit(rng, 5, 8), unit(rng, 5, 8)
    squared = np.mean([np.sum((a - b) ** 2) for a, b in zip(a_SD, b_SD, strict=True)])
    np.testing.assert_allclose(
        invariance.cycle_loss(a_SD, b_SD, "squared", jnp.array(1.0)), squared, rtol=1e-5
    )
    found = np.mean([-np.log(softmax(b_SD @ a / 0.2)[i]) for i, a in enumerate(a_SD)])
    got = invariance.cycle_loss(a_SD, b_SD, "contrastive", jnp.array(0.2))
    np.testing.assert_allclose(got, found, rtol=1e-5)


def test_attention_without_learning_has_no_parameters():
    from flax import nnx

    for learned, count in ((True, 8), (False, 0)):
        module = invariance.Invariance(4, heads=1, tau_r=0.1, learned=learned)
        assert len(jax.tree.leaves(nnx.state(module, nnx.Param))) == count


def test_normalise_is_finite_at_zero():
    grad = jax.grad(lambda x: alignment.normalise(x).sum())(jnp.zeros(4))
    assert np.isfinite(grad).all()
