"""Temporal modules: how an image tower mixes information between frames.

Each module is initialised as the identity: at step 0 the tower's output is the mean over its frames.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from coco_jax.config import CHOICES
from coco_jax.models.transformer import Blocks, make_attention

# blocks: a transformer over the frame vectors with ordinary initialisation, for training from scratch.
# mean: no temporal module. transformer, divided, shift: added to an image tower, zero-initialised.
# tokens: a transformer over time at each patch position, as in VideoPrism.
KINDS = CHOICES["video_tower.temporal"]


class TemporalTransformer(nnx.Module):
    """Transformer blocks over the frame vectors; their output is added as a residual."""

    def __init__(self, steps: int, width: int, depth: int, *, rngs: nnx.Rngs, **block: Any):
        normal = nnx.initializers.normal(0.02)
        self.position = nnx.Param(normal(rngs.params(), (steps, width)))
        self.blocks = Blocks(depth, width=width, zero=True, rngs=rngs, **block)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], key: jax.Array | None = None
    ) -> Float[Array, "B T D"]:
        """Mixes the frames; dropout is on if a `key` is given."""
        h_BTD = x_BTD + self.position[...].astype(x_BTD.dtype)
        # Subtract the blocks' input: the position embeddings must not be part of the output.
        return x_BTD + (self.blocks(h_BTD, key=key) - h_BTD)


class DividedAttention(nnx.Module):
    """Attention over time at each patch position, before the attention within each frame.

    Divided space-time attention (TimeSformer, arXiv 2102.05095).
    """

    def __init__(
        self,
        steps: int,
        width: int,
        heads: int,
        *,
        epsilon: float,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.steps = steps
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (steps, 1, width)))
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attention = make_attention(width, heads, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x_XND: Float[Array, "X N D"]) -> Float[Array, "X N D"]:
        """Mixes the frames of each video; X counts videos times `steps` frames."""
        x_BTND = rearrange(self.norm(x_XND), "(b t) n d -> b t n d", t=self.steps)
        x_BTND = x_BTND + self.position[...].astype(x_BTND.dtype)
        y_YTD = self.attention(rearrange(x_BTND, "b t n d -> (b n) t d"))
        return x_XND + rearrange(y_YTD, "(b n) t d -> (b t) n d", n=x_XND.shape[1])


class TemporalShift(nnx.Module):
    """Takes 1/8 of the channels from the previous frame and 1/8 from the next one.

    Temporal shift (TSM, arXiv 1811.08383) with a learned gate for each channel, which starts at 0.
    """

    def __init__(self, steps: int, width: int):
        self.steps = steps
        self.gate = nnx.Param(jnp.zeros(width // 8 * 2))

    def __call__(self, x_XND: Float[Array, "X N D"]) -> Float[Array, "X N D"]:
        """Shifts between the frames of each video; X counts videos times `steps` frames."""
        x_BTND = rearrange(x_XND, "(b t) n d -> b t n d", t=self.steps)
        part = self.gate.shape[0] // 2
        none_B1NE = jnp.zeros_like(x_BTND[:, :1, :, :part])
        before = jnp.concatenate([none_B1NE, x_BTND[:, :-1, :, :part]], 1)
        after = jnp.concatenate([x_BTND[:, 1:, :, part : 2 * part], none_B1NE], 1)
        moved_BTNE = jnp.concatenate([before, after], -1) - x_BTND[..., : 2 * part]
        change_BTNE = self.gate[...].astype(x_BTND.dtype) * moved_BTNE
        out_BTND = x_BTND.at[..., : 2 * part].add(change_BTNE)
        return rearrange(out_BTND, "b t n d -> (b t) n d")
