"""Transformer blocks with pre- or post-norm, and attention pooling of a sequence into one vector."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from coco_jax.config import CHOICES
from coco_jax.models.initial import repeat

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    "relu": jax.nn.relu,
}
NORMS = CHOICES["text_tower.norm"]
Mask = Bool[Array, "..."] | Float[Array, "..."]
# Heads x queries x keys of a sequence from which heads are computed one by one on CPUs. CLIP ViT-B/16
# has 12 x 197 x 197, B/32 12 x 50 x 50.
MIN_LOGITS_BY_HEAD = 1 << 18


class LowRank(nnx.LinearGeneral):
    """A linear layer plus a low-rank correction (LoRA, arXiv 2106.09685), zero at initialisation."""

    def __init__(
        self,
        width: int,
        out_features: tuple[int, ...],
        *,
        rank: int,
        scale: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, out_features, dtype=dtype, rngs=rngs)
        self.scale = scale
        self.lora_down = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (width, rank)))
        self.lora_up = nnx.Param(jnp.zeros((rank, *out_features)))

    def __call__(
        self, inputs: Float[Array, "*B D"], out_sharding: Any = None
    ) -> Float[Array, "*B H E"]:
        """Maps the last axis (D) to H heads of E values."""
        out = super().__call__(inputs, out_sharding)
        low = inputs.astype(out.dtype) @ self.lora_down[...].astype(out.dtype)
        return out + self.scale * jnp.tensordot(low, self.lora_up[...].astype(out.dtype), 1)


def plain_attention(
    query: Float[Array, "*B Q H E"],
    key: Float[Array, "*B K H E"],
    value: Float[Array, "*B K H E"],
    *,
    mask: Mask | None = None,
    **settings: Any,
) -> Float[Array, "*B Q H E"]:
    """Softmax attention; a `mask` of floats is added to the logits.

    An `attention_fn` of `nnx.MultiHeadAttention`, which hands on a mask, but no bias.

    Args:
      query: `... Q H E`.
      key: `... K H E`.
      value: `... K H E`.
      mask: broadcastable to `... H Q K`. Of bool: True where a query may attend. Of floats: added to
        the logits, as relative positions are.
      **settings: other arguments of `attention_fn`.
    """
    if mask is not None and mask.dtype != bool:
        settings, mask = settings | {"bias": mask.astype(query.dtype)}, None
    return nnx.dot_product_attention(query, key, value, mask=mask, **settings)


def capped_attention(
    query: Float[Array, "*B Q H E"],
    key: Float[Array, "*B K H E"],
    value: Float[Array, "*B K H E"],
    *,
    cap: float,
    mask: Mask | None = None,
    **unused: Any,
) -> Float[Array, "*B Q H E"]:
    """Attention with logits cap * tanh(logits / cap), as in VideoPrism (arXiv 2402.13217).

    An `attention_fn` of `nnx.MultiHeadAttention`.

    Args:
      query: `... Q H E`.
      key: `... K H E`.
      value: `... K H E`.
      cap: bound of the logits.
      mask: as of `plain_attention`; floats are added after the cap.
      **unused: other arguments of `attention_fn`.
    """
    logits = jnp.einsum("...qhe,...khe->...hqk", query, key) / query.shape[-1] ** 0.5
    logits = (cap * jnp.tanh(logits / cap)).astype(jnp.float32)
    if mask is not None and mask.dtype != bool:
        logits = logits + mask
    elif mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("...hqk,...khe->...qhe", weights, value)


def attend_by_head(
    query: Float[Array, "*B Q H E"],
    key: Float[Array, "*B K H E"],
    value: Float[Array, "*B K H E"],
    *,
    attention_fn: Callable[..., jax.Array],
    mask: Mask | None = None,
    **settings: Any,
) -> Float[Array, "*B Q H E"]:
    """Attention that is computed head by head on CPUs, if sequences are long and values are float32.

    The logits of one head fit into the processor's cache. The backward pass computes them again, so they
    are not stored. In all other cases, and on other devices, `attention_fn` gets all heads at once. Both
    results are equal up to rounding. With `mesh.tensor` above 1, each CPU device computes all heads.

    An `attention_fn` of `nnx.MultiHeadAttention`.

    Args:
      query: `... Q H E`.
      key: `... K H E`.
      value: `... K H E`.
      attention_fn: called with all heads, or with one.
      mask: as of `attention_fn`, broadcastable to `... H Q K`.
      **settings: other arguments of `attention_fn`, which do not differ by head.

    Returns:
      `... Q H E`.
    """
    attend = functools.partial(attention_fn, mask=mask, **settings)

    # `prevent_cse` is not needed: the forward and the backward pass are different loops, which XLA does
    # not merge.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend_one(inputs: tuple[jax.Array, ...]) -> jax.Array:
        return attend(*(x[..., None, :] for x in inputs))[..., 0, :]

    def by_head(*inputs: jax.Array) -> jax.Array:
        return jnp.moveaxis(
            jax.lax.map(attend_one, tuple(jnp.moveaxis(x, -2, 0) for x in inputs)), 0, -2
        )

    is_small = query.shape[-3] * key.shape[-3] * query.shape[-2] < MIN_LOGITS_BY_HEAD
    has_mask_by_head = mask is not None and mask.ndim > 2 and mask.shape[-3] > 1
    if is_small or has_mask_by_head or query.dtype != jnp.float32:
        return attend(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cpu=by_head, default=attend)


def rotary_angles(side: int, class_token: bool, width: int) -> Float[Array, "N E"]:
    """Angles in radians by which rotary positions turn the values of a head, two by two.

    As in PE (arXiv 2504.13181): the first half of the values turns with the column of a patch, the
    second with its row. Pair i of a half, which has width / 4 pairs, turns by
    position / 10000 ** (i / (width / 4)).

    Args:
      side: patches per side of a frame.
      class_token: whether a class token comes first. It is not turned, and the patches' positions
        start at 1 instead of 0.
      width: number of values of a head, a multiple of 4.
    """
    pairs = width // 4
    rate_F = (1e4 ** -(np.arange(pairs) / pairs)).astype(np.float32).repeat(2)
    angle_SF = (jnp.arange(side) + class_token)[:, None] * rate_F
    angle_NE = jnp.concatenate([jnp.tile(angle_SF, (side, 1)), angle_SF.repeat(side, 0)], 1)
    return jnp.pad(angle_NE, ((int(class_token), 0), (0, 0)))


def rotary_attention(
    query: Float[Array, "*B N H E"],
    key: Float[Array, "*B N H E"],
    value: Float[Array, "*B N H E"],
    *,
    rope: tuple[int, bool],
    attention_fn: Callable[..., jax.Array],
    **settings: Any,
) -> Float[Array, "*B N H E"]:
    """Attention with rotary positions (arXiv 2104.09864) of the patches of a frame.

    An `attention_fn` of `nnx.MultiHeadAttention`.

    Args:
      query: `... N H E`.
      key: `... N H E`.
      value: `... N H E`.
      rope: `side` and `class_token` of `rotary_angles`.
      attention_fn: called with the turned queries and keys.
      **settings: other arguments of `attention_fn`.
    """
    angle_N1E = rotary_angles(*rope, query.shape[-1])[:, None]
    cos, sin = jnp.cos(angle_N1E), jnp.sin(angle_N1E)
    is_first_E = np.arange(query.shape[-1]) % 2 == 0

    def turn(x: jax.Array) -> jax.Array:
        # (a, b) -> (a cos - b sin, b cos + a sin). Rolling avoids an axis of length 2, which is slow.
        other = jnp.where(is_first_E, -jnp.roll(x, -1, -1), jnp.roll(x, 1, -1))
        return (x * cos + other * sin).astype(x.dtype)

    return attention_fn(turn(query), turn(key), value, **settings)


def make_attention(
    width: int,
    heads: int,
    *,
    inner: int | None = None,
    attention_logit_cap: float = 0.0,
    rope: tuple[int, bool] | None = None,
    lora: tuple[int, float] | None = None,
    zero: bool = False,
    dtype: Any = None,
    rngs: nnx.Rngs,
) -> nnx.MultiHeadAttention:
    """Multi-head attention.

    Args:
      width: size of the tokens' last axis.
      heads: number of heads.
      inner: total width of all heads; `width` by default.
      attention_logit_cap: bound of the attention logits, or 0 for none.
      rope: patches per side of a frame and whether a class token comes first, for rotary positions;
        or None.
      lora: rank and scale of a low-rank correction of queries and values, or None.
      zero: initialise the output projection with zeros.
      dtype: of activations.
      rngs: random state for the initial parameters.
    """
    attention_fn: Callable[..., jax.Array] = plain_attention
    if attention_logit_cap:
        attention_fn = functools.partial(capped_attention, cap=attention_logit_cap)
    attention_fn = functools.partial(attend_by_head, attention_fn=attention_fn)
    if rope:
        attention_fn = functools.partial(rotary_attention, rope=rope, attention_fn=attention_fn)
    settings: dict = {"attention_fn": attention_fn}
    if zero:
        settings["out_kernel_init"] = nnx.initializers.zeros
    attention = nnx.MultiHeadAttention(
        heads, width, inner, dtype=dtype, decode=False, rngs=rngs, keep_rngs=False, **settings
    )
    if lora:
        rank, scale = lora
        shape = (heads, attention.head_dim)
        for name in ("query", "value"):
            layer = LowRank(width, shape, rank=rank, scale=scale, dtype=dtype, rngs=rngs)
            setattr(attention, name, layer)
    return attention


class Mlp(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        zero: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        settings: dict = {"kernel_init": nnx.initializers.zeros} if zero else {}
        self.up = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs, **settings)
        self.activation = activation

    def __call__(self, x_BND: Float[Array, "*B N D"]) -> Float[Array, "*B N D"]:
        """Applies the MLP to each token."""
        return self.down(ACTIVATIONS[self.activation](self.up(x_BND)))


class Block(nnx.Module):
    """Self-attention and MLP, each with a residual connection and a norm before or after it."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        norm: str = "pre",
        attention_logit_cap: float = 0.0,
        rope: tuple[int, bool] | None = None,
        lora: tuple[int, float] | None = None,
        zero: bool = False,
        mixer: Callable[[nnx.Rngs], nnx.Module] | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds the block.

        Args:
          width: size of the tokens' last axis.
          heads: number of attention heads.
          mlp_ratio: the MLP's hidden width as a multiple of `width`.
          activation: of the MLP, a key of `ACTIVATIONS`.
          dropout: rate on the output of each residual branch.
          epsilon: of the LayerNorms.
          norm: "pre": normalise the input of each branch; "post": normalise each sum (BERT).
          attention_logit_cap: bound of the attention logits, or 0 for none.
          rope: patches per side of a frame and whether a class token comes first, for rotary
            positions; or None.
          lora: rank and scale of LoRA on queries and values, or None.
          zero: initialise so that the block is the identity.
          mixer: makes a module that mixes frames before the block (models/temporal.py).
          dtype: of activations.
          rngs: random state for the initial parameters.

        Raises:
          ValueError: `norm` is unknown.
        """
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; must be one of {NORMS}")
        self.post = norm == "post"
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attention = make_attention(
            width,
            heads,
            attention_logit_cap=attention_logit_cap,
            rope=rope,
            lora=lora,
            zero=zero,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(
            width, int(width * mlp_ratio), activation=activation, zero=zero, dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout)
        self.mixer = nnx.data(mixer(rngs) if mixer else None)

    def __call__(
        self,
        x_BND: Float[Array, "*B N D"],
        mask_BHNN: Bool[Array, "*#B 1 #N N"] | Float[Array, "*#B H N N"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "*B N D"]:
        """Applies the block.

        Args:
          x_BND: tokens.
          mask_BHNN: True where a query may attend; or floats that are added to the attention logits.
          key: turns dropout on.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        if self.mixer is not None:
            x_BND = self.mixer(x_BND)
        if self.post:
            y_BND = self.attention(x_BND, mask=mask_BHNN)
            x_BND = self.norm1(x_BND + self._drop(y_BND, keys[0]))
            return self.norm2(x_BND + self._drop(self.mlp(x_BND), keys[1]))
        y_BND = self.attention(self.norm1(x_BND), mask=mask_BHNN)
        x_BND = x_BND + self._drop(y_BND, keys[0])
        return x_BND + self._drop(self.mlp(self.norm2(x_BND)), keys[1])

    def _drop(self, x_BND: Float[Array, "*B N D"], key: jax.Array | None) -> Float[Array, "*B N D"]:
        return self.dropout(x_BND, deterministic=key is None, rngs=key)


class Blocks(nnx.Module):
    """A stack of blocks; with `remat` the backward pass recomputes their activations."""

    def __init__(self, depth: int, *args: Any, remat: bool = False, rngs: nnx.Rngs, **kwargs: Any):
        make = lambda rngs: Block(*args, rngs=rngs, **kwargs)
        self.layers = nnx.List(repeat(make, depth, rngs))
        self.remat = remat

    def __call__(
        self,
        x_BND: Float[Array, "*B N D"],
        mask_BHNN: Bool[Array, "*#B 1 #N N"] | Float[Array, "*#B H N N"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "*B N D"]:
        """Applies the blocks in order."""
        apply = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for i, layer in enumerate(self.layers):
            x_BND = apply(
                layer, x_BND, mask_BHNN, None if key is None else jax.random.fold_in(key, i)
            )
        return x_BND


class AttentionPool(nnx.Module):
    """One learned query that attends to the tokens, then an MLP (the "map" head of SigLIP).

    `wide` is VideoPrism's variant: four times the attention width, and a LayerNorm instead of the MLP.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        activation: str = "gelu",
        epsilon: float = 1e-6,
        wide: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, width)))
        self.attention = make_attention(
            width, heads, inner=4 * width if wide else None, dtype=dtype, rngs=rngs
        )
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = nnx.data(
            None
            if wide
            else Mlp(width, int(width * mlp_ratio), activation=activation, dtype=dtype, rngs=rngs)
        )

    def __call__(
        self,
        x_BND: Float[Array, "B N D"],
        mask_B11N: Bool[Array, "B 1 1 N"] | None = None,
    ) -> Float[Array, "B D"]:
        """Pools the tokens for which the mask is True."""
        probe = jnp.broadcast_to(self.probe[...], (x_BND.shape[0], 1, x_BND.shape[-1]))
        y_B1D = self.attention(probe.astype(x_BND.dtype), x_BND, mask=mask_B11N)
        if self.mlp is None:
            return self.norm(y_B1D)[:, 0]
        return (y_B1D + self.mlp(self.norm(y_B1D)))[:, 0]
