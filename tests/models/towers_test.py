"""Tests of the video and text towers: output shapes and invariances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax.models.text import TextTower
from coco_jax.models.transformer import (
    MIN_LOGITS_BY_HEAD,
    Block,
    attend_by_head,
    capped_attention,
    rotary_attention,
)
from coco_jax.models.video import FeatureTower, VideoTower
from coco_jax.presets import TextTowerConfig, VideoTowerConfig

VIDEO = dict(
    frames=4, size=16, patch=8, tubelet=1, width=16, heads=2, mlp_ratio=2.0, depth=1,
    temporal_depth=1, pool="cls", activation="gelu", dropout=0.0, patch_bias=True, pre_norm=False,
)  # fmt: skip
TEXT = dict(
    vocabulary=20, length=8, width=16, heads=2, mlp_ratio=2.0, depth=1, pool="mean",
    activation="gelu", dropout=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("pool", "tubelet", "temporal_depth", "pre_norm"),
    list(itertools.product(["cls", "map", "mean"], [1, 2], [0, 1], [False, True])),
)
def test_video_tower_output_shape(pool, tubelet, temporal_depth, pre_norm):
    settings = VIDEO | dict(
        pool=pool, tubelet=tubelet, temporal_depth=temporal_depth, pre_norm=pre_norm
    )
    out = jax.eval_shape(
        lambda: VideoTower(VideoTowerConfig(**settings), rngs=nnx.Rngs(0))(
            jnp.zeros((3, 4, 16, 16, 3))
        )
    )
    assert out.shape == (3, 16)


def test_frame_order_matters_only_with_temporal_blocks():
    video = jax.random.normal(jax.random.key(0), (1, 4, 16, 16, 3))
    for depth, differs in ((0, False), (1, True)):
        tower = VideoTower(VideoTowerConfig(**VIDEO | dict(temporal_depth=depth)), rngs=nnx.Rngs(0))
        forward, backward = jax.jit(lambda v, t=tower: t(v))(
            jnp.concatenate([video, video[:, ::-1]])
        )
        assert bool(np.abs(forward - backward).max() > 1e-4) == differs


def test_patch_embedding_equals_strided_convolution():
    tower = VideoTower(
        VideoTowerConfig(**VIDEO | dict(depth=0, temporal_depth=0, pool="mean")), rngs=nnx.Rngs(0)
    )
    video = jax.random.normal(jax.random.key(1), (1, 1, 16, 16, 3))
    kernel_HWIO = tower.embed.kernel[...].reshape(8, 8, 3, 16)
    patches = jax.lax.conv_general_dilated(
        video[0], kernel_HWIO, (8, 8), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(4, 16)
    want = tower.norm(patches + tower.embed.bias[...] + tower.position[...]).mean(0)
    np.testing.assert_allclose(tower(jnp.repeat(video, 4, 1))[0], want, atol=1e-4)


@pytest.mark.parametrize("pool", ["mean", "map", "last"])
def test_text_pooling_ignores_padding(pool):
    tower = TextTower(TextTowerConfig(**TEXT | dict(pool=pool)), rngs=nnx.Rngs(0))
    short = jnp.array([[5, 6, 7]])
    np.testing.assert_allclose(tower(short), tower(jnp.pad(short, ((0, 0), (0, 5)))), atol=1e-5)
    assert np.abs(tower(short) - tower(jnp.array([[5, 6, 8]]))).max() > 1e-4


def test_block_equals_numpy_reference():
    """Pre-norm attention and MLP, written out with numpy."""
    block = Block(8, heads=2, mlp_ratio=2.0, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 8))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def part(name, h):
        layer = getattr(block.attention, name)
        return norm(x) @ np.asarray(layer.kernel)[:, h] + np.asarray(layer.bias)[h]

    mixed = []
    for h in range(2):
        logits = part("query", h) @ part("key", h).T / 2  # sqrt(8 / 2)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ part("value", h))
    out = block.attention.out
    y = x + np.einsum("hne,hed->nd", mixed, out.kernel[...]) + np.asarray(out.bias)
    up = norm(y) @ np.asarray(block.mlp.up.kernel) + np.asarray(block.mlp.up.bias)
    want = y + np.asarray(jax.nn.gelu(up, approximate=False)) @ np.asarray(block.mlp.down.kernel)
    np.testing.assert_allclose(block(jnp.asarray(x[None], jnp.float32))[0], want, atol=1e-4)


HEADS, TOKENS = 4, 260  # long enough to be computed by head


@pytest.mark.parametrize(
    ("attention_fn", "mask"),
    [
        (nnx.dot_product_attention, None),
        (functools.partial(capped_attention, cap=0.5), None),
        (nnx.dot_product_attention, np.arange(TOKENS)[:, None] >= np.arange(TOKENS)),
        (nnx.dot_product_attention, np.arange(TOKENS) < np.array([[[[200]]], [[[3]]]])),
        (nnx.dot_product_attention, np.arange(TOKENS) > np.arange(HEADS)[:, None, None]),
    ],
    ids=["no mask", "capped", "causal mask", "mask of each sequence", "mask of each head"],
)
def test_attention_by_head_equals_attention_of_all_heads(attention_fn, mask):
    assert HEADS * TOKENS * TOKENS >= MIN_LOGITS_BY_HEAD
    inputs = jax.random.normal(jax.random.key(0), (3, 2, TOKENS, HEADS, 8))
    mask = None if mask is None else jnp.asarray(mask)

    def loss(attention_fn, inputs):
        out = attention_fn(*inputs, mask=mask)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    by_head = functools.partial(attend_by_head, attention_fn=attention_fn)
    got, want = (
        jax.jit(jax.grad(functools.partial(loss, f), has_aux=True))(inputs)
        for f in (by_head, attention_fn)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), got, want)


def test_attention_by_head_needs_less_memory():
    inputs = jax.ShapeDtypeStruct((3, 2, TOKENS, HEADS, 8), jnp.float32)

    def memory(attention_fn):
        gradient = jax.jit(jax.grad(lambda inputs: attention_fn(*inputs).sum()))
        return gradient.lower(inputs).compile().memory_analysis().temp_size_in_bytes

    by_head = functools.partial(attend_by_head, attention_fn=nnx.dot_product_attention)
    assert memory(by_head) < 0.4 * memory(nnx.dot_product_attention)  # else the logits are stored


def turned(query, key, side, class_token):
    """The queries and keys that `rotary_attention` passes on."""
    found = []
    attention_fn = lambda query, key, value: found.extend((query, key)) or value
    rotary_attention(query, key, key, rope=(side, class_token), attention_fn=attention_fn)
    return found


@pytest.mark.parametrize("class_token", [False, True])
def test_rotary_attention_depends_on_the_distance_of_patches(class_token):
    """With equal queries and equal keys, only the offset of two patches determines their logit."""
    side, count = 3, 9 + class_token
    query_HE, key_HE = np.random.default_rng(0).normal(size=(2, 2, 8)).astype(np.float32)
    all_equal = (jnp.broadcast_to(x_HE, (count, 2, 8)) for x_HE in (query_HE, key_HE))
    logits_NMH = np.einsum("nhe,mhe->nmh", *turned(*all_equal, side, class_token))
    found = {}
    rows, columns = np.divmod(np.arange(9), side)
    for n, m in itertools.product(range(9), repeat=2):
        offset = rows[n] - rows[m], columns[n] - columns[m]
        found.setdefault(offset, []).append(logits_NMH[n + class_token, m + class_token])
    for same in found.values():
        np.testing.assert_allclose(same, [same[0]] * len(same), atol=1e-5)
    different = np.array([same[0] for same in found.values()])
    assert len(np.unique(different.round(4), axis=0)) == len(found) == 25
    if class_token:  # it is not turned, and its distance to each patch is another
        np.testing.assert_allclose(logits_NMH[0, 0], (query_HE * key_HE).sum(-1), rtol=1e-5)
        assert len(np.unique(logits_NMH[0].round(4), axis=0)) == count


def test_rotary_attention_keeps_bfloat16():
    ones = jnp.ones((4, 1, 4), jnp.bfloat16)
    assert {x.dtype.name for x in turned(ones, ones, 2, False)} == {"bfloat16"}


def test_feature_tower_output_shape():
    out = FeatureTower(features=7, width=16, dropout=0.0, rngs=nnx.Rngs(0))(jnp.zeros((3, 7)))
    assert out.shape == (3, 16)


def test_impossible_architectures_raise_value_error():
    with pytest.raises(ValueError, match="do not divide"):
        VideoTower(VideoTowerConfig(**VIDEO | dict(patch=7)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must be one of"):
        TextTower(TextTowerConfig(**TEXT | dict(pool="first")), rngs=nnx.Rngs(0))
