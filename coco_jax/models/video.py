"""The video tower: patches of frames, blocks within a frame, blocks across frames, one vector."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from coco_jax.models.transformer import AttentionPool, Blocks

POOLS = ("cls", "map", "mean")


class VideoTower(nnx.Module):
    """A factorised space-time transformer (ViViT's model 2, arXiv 2103.15691).

    Frames are cut into patches, each `tubelet` frames long. `depth` spatial blocks mix the patches
    of one time position, `pool` makes one vector of them, and `temporal_depth` blocks mix the time
    positions, whose mean is the video's. With `tubelet=1` the spatial part is a plain ViT.
    """

    def __init__(
        self,
        *,
        frames: int,
        size: int,
        patch: int,
        tubelet: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        depth: int,
        temporal_depth: int,
        pool: str,
        activation: str,
        dropout: float,
        patch_bias: bool,
        pre_norm: bool,
        remat: bool,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}, not one of {POOLS}")
        if size % patch or frames % tubelet:
            raise ValueError(
                f"{frames} frames of {size} px do not divide into {tubelet} x {patch} x {patch}"
            )
        self.patch, self.tubelet, self.pool = patch, tubelet, pool
        self.width = width
        block = dict(
            width=width, heads=heads, mlp_ratio=mlp_ratio, activation=activation, dropout=dropout,
            remat=remat, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Linear(
            tubelet * patch * patch * 3, width, use_bias=patch_bias, dtype=dtype, rngs=rngs
        )
        tokens = (size // patch) ** 2 + (pool == "cls")
        self.cls = nnx.Param(normal(rngs.params(), (width,))) if pool == "cls" else None
        self.position = nnx.Param(normal(rngs.params(), (tokens, width)))
        self.pre_norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs) if pre_norm else None
        self.spatial = Blocks(depth, **block)
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.map = (
            AttentionPool(width, heads, mlp_ratio, activation=activation, dtype=dtype, rngs=rngs)
            if pool == "map"
            else None
        )
        if temporal_depth:
            steps = frames // tubelet
            self.time_position = nnx.Param(normal(rngs.params(), (steps, width)))
            self.temporal: Blocks | None = Blocks(temporal_depth, **block)
            self.time_norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        else:
            self.temporal = None

    def __call__(
        self, video_BTHWC: Float[Array, "B T H W 3"], key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """Embeds clips whose pixels are normalised; `key` turns dropout on."""
        keys = (None, None) if key is None else jax.random.split(key)
        batch = video_BTHWC.shape[0]
        x_XND = self.embed(
            rearrange(
                video_BTHWC,
                "b (t s) (h p) (w q) c -> (b t) (h w) (s p q c)",
                s=self.tubelet,
                p=self.patch,
                q=self.patch,
            )
        )
        if self.cls is not None:
            cls_X1D = jnp.broadcast_to(
                self.cls[...].astype(x_XND.dtype), (x_XND.shape[0], 1, self.width)
            )
            x_XND = jnp.concatenate([cls_X1D, x_XND], 1)
        x_XND = x_XND + self.position[...].astype(x_XND.dtype)
        if self.pre_norm is not None:
            x_XND = self.pre_norm(x_XND)
        x_XND = self.norm(self.spatial(x_XND, key=keys[0]))
        match self.pool:
            case "cls":
                x_XD = x_XND[:, 0]
            case "map" if self.map is not None:
                x_XD = self.map(x_XND)
            case _:
                x_XD = x_XND.mean(1)
        x_BTD = rearrange(x_XD, "(b t) d -> b t d", b=batch)
        if self.temporal is not None:
            x_BTD = x_BTD + self.time_position[...].astype(x_BTD.dtype)
            x_BTD = self.time_norm(self.temporal(x_BTD, key=keys[1]))
        return x_BTD.mean(1)


class FeatureTower(nnx.Module):
    """An MLP over features that were extracted beforehand, in a video tower's place."""

    def __init__(self, *, features: int, width: int, dropout: float, dtype=None, rngs: nnx.Rngs):
        self.width = width
        self.up = nnx.Linear(features, width, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, x_BF: Float[Array, "B F"], key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """Maps features; `key` turns dropout on."""
        h_BD = jax.nn.gelu(self.norm(self.up(x_BF)))
        return self.down(self.dropout(h_BD, deterministic=key is None, rngs=key))
