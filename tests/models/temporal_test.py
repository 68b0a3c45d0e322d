"""Tests of the temporal modules, LoRA, and the cap of attention logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax.models.temporal import TemporalShift
from coco_jax.models.transformer import LowRank, make_attention
from coco_jax.models.video import VideoTower
from coco_jax.presets import VideoTowerConfig
from tests.models.towers_test import VIDEO

FRAMES = jax.random.normal(jax.random.key(0), (2, 4, 16, 16, 3))


def tower(kind):
    return VideoTower(VideoTowerConfig(**VIDEO | dict(temporal=kind)), rngs=nnx.Rngs(0))


# Compiled as a whole, which is faster than one compilation per operation.
embed = nnx.jit(lambda tower, frames: tower(frames))


@pytest.mark.parametrize("kind", ["transformer", "divided", "shift"])
def test_temporal_module_starts_as_mean_over_frames(kind):
    got, mean = tower(kind), tower("mean")
    # The same tower, except for the parameters that `kind` adds.
    params = nnx.to_pure_dict(nnx.state(mean, nnx.Param))
    graph, own = nnx.split(got)
    flat = dict(jax.tree.leaves_with_path(nnx.to_pure_dict(own)))
    flat |= dict(jax.tree.leaves_with_path(params))
    filled = jax.tree.map_with_path(lambda path, x: flat[path], nnx.to_pure_dict(own))
    got = nnx.merge(graph, nnx.State(filled))
    np.testing.assert_allclose(embed(got, FRAMES), embed(mean, FRAMES), atol=1e-6)
    each = jnp.stack([embed(mean, FRAMES[:, t : t + 1]) for t in range(4)], 1)
    np.testing.assert_allclose(embed(got, FRAMES), each.mean(1), atol=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "divided", "shift"])
def test_frame_order_matters_after_one_update(kind):
    model = tower(kind)
    backward = FRAMES[:, ::-1]
    np.testing.assert_allclose(embed(model, FRAMES), embed(model, backward), atol=1e-6)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda p: (nnx.merge(graph, p, rest)(FRAMES)[:, :3] ** 3).sum()
    grads = jax.jit(jax.grad(loss))(params)
    moved = nnx.merge(graph, jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), params, grads), rest)
    assert np.abs(embed(moved, FRAMES) - embed(moved, backward)).max() > 1e-3


def test_temporal_shift_with_open_gate_shifts_an_eighth_each_way():
    shift = TemporalShift(3, 16)
    shift.gate[...] = jnp.ones(4)
    x = np.arange(3 * 16, dtype=np.float32).reshape(3, 1, 16) + 1  # one video, one token
    got = np.asarray(shift(jnp.asarray(x)))
    np.testing.assert_array_equal(got[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(got[1:, :, :2], x[:-1, :, :2])  # from the frame before
    np.testing.assert_array_equal(got[:-1, :, 2:4], x[1:, :, 2:4])  # from the one after
    assert (got[0, :, :2] == 0).all() and (got[-1, :, 2:4] == 0).all()


def test_lora_starts_at_zero_and_has_low_rank():
    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    layer = LowRank(8, (2, 4), rank=2, scale=0.5, dtype=None, rngs=nnx.Rngs(0))
    plain = nnx.LinearGeneral(8, (2, 4), rngs=nnx.Rngs(0))
    plain.kernel[...], plain.bias[...] = layer.kernel[...], layer.bias[...]
    np.testing.assert_array_equal(layer(x), plain(x))
    layer.lora_up[...] = jax.random.normal(jax.random.key(1), (2, 2, 4))
    change = np.asarray(layer(x) - plain(x)).reshape(15, 8)
    assert np.linalg.matrix_rank(change, tol=1e-4) == 2
    merged = plain.kernel[...] + 0.5 * jnp.tensordot(layer.lora_down[...], layer.lora_up[...], 1)
    plain.kernel[...] = merged
    np.testing.assert_allclose(layer(x), plain(x), atol=1e-5)


def test_attention_logit_cap_bounds_logits():
    x = 30 * jax.random.normal(jax.random.key(0), (2, 5, 8))
    outs = [
        make_attention(8, 2, attention_logit_cap=cap, rngs=nnx.Rngs(0))(x)
        for cap in (0.0, 1e6, 1.0, 1e-4)
    ]
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-2)
    assert np.abs(outs[0] - outs[2]).max() > 1e-2
    # Bounded to nearly zero, all logits are alike: every query sees the mean.
    np.testing.assert_allclose(outs[3], outs[3][:, :1].repeat(5, 1), atol=1e-2)
