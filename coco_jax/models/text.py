"""The text tower: token ids to one vector a text."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from coco_jax.models.transformer import AttentionPool, Blocks

POOLS = ("mean", "map", "last")
PAD = 0


class TextTower(nnx.Module):
    """A transformer over token ids; id 0 is padding and is never looked at."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        depth: int,
        pool: str,
        activation: str,
        dropout: float,
        remat: bool,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}, not one of {POOLS}")
        self.pool, self.width = pool, width
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(vocabulary, width, embedding_init=normal, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(normal(rngs.params(), (length, width)))
        self.blocks = Blocks(
            depth, width, heads, mlp_ratio, activation=activation, dropout=dropout, remat=remat,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.map = (
            AttentionPool(width, heads, mlp_ratio, activation=activation, dtype=dtype, rngs=rngs)
            if pool == "map"
            else None
        )

    def __call__(
        self, ids_XL: Int[Array, "X L"], key: jax.Array | None = None
    ) -> Float[Array, "X D"]:
        """Embeds texts of up to `length` tokens; `key` turns dropout on."""
        shown_XL = ids_XL != PAD
        # A text of padding alone would leave softmax nothing to look at.
        shown_XL = shown_XL.at[:, 0].set(True)
        mask_X11L = shown_XL[:, None, None, :]
        x_XLD = self.embed(ids_XL)
        x_XLD = x_XLD + self.position[: ids_XL.shape[1]].astype(x_XLD.dtype)
        x_XLD = self.norm(self.blocks(x_XLD, mask_X11L, key))
        match self.pool:
            case "map" if self.map is not None:
                return self.map(x_XLD, mask_X11L)
            case "last":
                return x_XLD[jnp.arange(len(ids_XL)), shown_XL.sum(1) - 1]
            case _:
                weight_XL1 = shown_XL[:, :, None].astype(x_XLD.dtype)
                return (x_XLD * weight_XL1).sum(1) / weight_XL1.sum(1)
