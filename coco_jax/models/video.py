"""The video tower: patches of frames, blocks within a frame, frames that see each other, one vector."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from coco_jax.models.temporal import KINDS, DividedAttention, TemporalShift, TemporalTransformer
from coco_jax.models.transformer import AttentionPool, Blocks

POOLS = ("cls", "map", "wide_map", "mean")


class VideoTower(nnx.Module):
    """A factorised space-time transformer (ViViT's model 2, arXiv 2103.15691).

    Frames are cut into patches, each `tubelet` frames long. `depth` spatial blocks mix the patches
    of one time position, `pool` makes one vector of them, and `temporal` says how the time
    positions mix, whose mean is the video's. With `tubelet=1` the spatial part is a plain ViT.
    With `temporal="tokens"` (VideoPrism) time is mixed at every place of the frame, then
    `auxiliary_depth` blocks mix all tokens, and `pool` makes one vector of all of them.
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
        temporal: str = "blocks",
        auxiliary_depth: int = 0,
        epsilon: float = 1e-6,
        cap: float = 0.0,
        lora: tuple[int, float] | None = None,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}, not one of {POOLS}")
        if temporal not in KINDS:
            raise ValueError(f"temporal is {temporal!r}, not one of {KINDS}")
        if temporal == "tokens" and pool == "cls":
            raise ValueError("temporal='tokens' pools all tokens of a video; 'cls' is of one frame")
        if size % patch or frames % tubelet:
            raise ValueError(
                f"{frames} frames of {size} px do not divide into {tubelet} x {patch} x {patch}"
            )
        self.patch, self.tubelet, self.pool = patch, tubelet, pool
        self.width, self.kind = width, temporal
        steps = frames // tubelet
        plain = dict(
            width=width, heads=heads, mlp_ratio=mlp_ratio, activation=activation, dropout=dropout,
            epsilon=epsilon, cap=cap, remat=remat, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        block = plain | dict(lora=lora)
        norm = functools.partial(nnx.LayerNorm, width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Linear(
            tubelet * patch * patch * 3, width, use_bias=patch_bias, dtype=dtype, rngs=rngs
        )
        tokens = (size // patch) ** 2 + (pool == "cls")
        self.cls = nnx.Param(normal(rngs.params(), (width,))) if pool == "cls" else None
        self.position = nnx.Param(normal(rngs.params(), (tokens, width)))
        self.pre_norm = norm() if pre_norm else None
        mixer = {
            "divided": lambda: DividedAttention(
                steps, width, heads, epsilon=epsilon, dtype=dtype, rngs=rngs
            ),
            "shift": lambda: TemporalShift(steps, width),
        }.get(temporal)
        self.spatial = Blocks(depth, **block, mixer=mixer)
        self.norm = norm()
        self.map = (
            AttentionPool(
                width, heads, mlp_ratio, activation=activation, epsilon=epsilon,
                wide=pool == "wide_map", dtype=dtype, rngs=rngs,
            )
            if pool in ("map", "wide_map")
            else None
        )  # fmt: skip
        if temporal == "tokens" or (temporal == "blocks" and temporal_depth):
            self.time_position = nnx.Param(normal(rngs.params(), (steps, width)))
            how = block if temporal == "tokens" else plain
            self.temporal: Any = Blocks(temporal_depth, **how)
            self.time_norm = norm()
        elif temporal == "transformer":
            self.temporal = TemporalTransformer(steps, depth=temporal_depth, **plain)
        else:
            self.temporal = None
        if temporal == "tokens":
            self.auxiliary = Blocks(auxiliary_depth, **block)

    def __call__(
        self, video_BTHWC: Float[Array, "B T H W 3"], key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """Embeds clips whose pixels are normalised; `key` turns dropout on."""
        keys = (None,) * 3
        if key is not None:
            keys = (*jax.random.split(key), jax.random.fold_in(key, 2))
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
        if self.kind == "tokens":
            return self._pool(self._mix_tokens(x_XND, batch, keys))
        x_BTD = rearrange(self._pool(x_XND), "(b t) d -> b t d", b=batch)
        if self.kind == "transformer":
            x_BTD = self.temporal(x_BTD, key=keys[1])
        elif self.temporal is not None:
            x_BTD = x_BTD + self.time_position[...].astype(x_BTD.dtype)
            x_BTD = self.time_norm(self.temporal(x_BTD, key=keys[1]))
        return x_BTD.mean(1)

    def _mix_tokens(self, x_XND, batch: int, keys) -> Float[Array, "B M D"]:
        """Time at every place, then all tokens together; M counts frames times patches."""
        x_YTD = rearrange(x_XND, "(b t) n d -> (b n) t d", b=batch)
        x_YTD = x_YTD + self.time_position[...].astype(x_YTD.dtype)
        x_YTD = self.time_norm(self.temporal(x_YTD, key=keys[1]))
        x_BMD = rearrange(x_YTD, "(b n) t d -> b (t n) d", b=batch)
        return self.auxiliary(x_BMD, key=keys[2])

    def _pool(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        if self.map is not None:
            return self.map(x_BND)
        return x_BND[:, 0] if self.pool == "cls" else x_BND.mean(1)


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
