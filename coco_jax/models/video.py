"""The video tower: a transformer from the frames of a video to one vector, and an MLP on features."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from coco_jax.config import CHOICES
from coco_jax.models.temporal import KINDS, DividedAttention, TemporalShift, TemporalTransformer
from coco_jax.models.transformer import AttentionPool, Blocks
from coco_jax.presets import VideoTowerConfig

POOLS = CHOICES["video_tower.pool"]


class VideoTower(nnx.Module):
    """A factorised space-time transformer (ViViT's model 2, arXiv 2103.15691).

    Frames are cut into patches, each `tubelet` frames long. `depth` spatial blocks mix the patches
    of one time step, `pool` reduces them to one vector, and `temporal` selects how the time steps
    are mixed before their mean is taken. With `tubelet=1` the spatial part is a plain ViT. With
    `rope` its attention has rotary positions, in addition to the learned ones.
    With `temporal="tokens"` (VideoPrism) time is mixed separately at each patch position, then
    `auxiliary_depth` blocks mix all tokens, and `pool` reduces all of them to one vector.
    """

    def __init__(
        self,
        tower: VideoTowerConfig,
        *,
        remat: bool = False,
        lora: tuple[int, float] | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds the tower.

        Args:
          tower: its architecture.
          remat: recompute activations in the backward pass instead of storing them.
          lora: rank and scale of low-rank corrections in the blocks, or None.
          dtype: of activations.
          rngs: random state for the initial parameters.

        Raises:
          ValueError: `pool` or `temporal` is unknown, or patches do not divide the video.
        """
        if tower.pool not in POOLS:
            raise ValueError(f"video_tower.pool is {tower.pool!r}; must be one of {POOLS}")
        if tower.temporal not in KINDS:
            raise ValueError(f"video_tower.temporal is {tower.temporal!r}; must be one of {KINDS}")
        if tower.temporal == "tokens" and tower.pool == "cls":
            raise ValueError("temporal='tokens' pools all tokens of a video; 'cls' pools one frame")
        if tower.size % tower.patch or tower.frames % tower.tubelet:
            raise ValueError(
                f"video_tower: {tower.frames} frames of {tower.size} pixels do not divide into "
                f"{tower.tubelet} x {tower.patch} x {tower.patch}"
            )
        self.tower = tower
        width, steps = tower.width, tower.frames // tower.tubelet
        epsilon = tower.norm_epsilon
        block = dict(
            width=width,
            heads=tower.heads,
            mlp_ratio=tower.mlp_ratio,
            activation=tower.activation,
            dropout=tower.dropout,
            epsilon=epsilon,
            attention_logit_cap=tower.attention_logit_cap,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        norm = functools.partial(nnx.LayerNorm, width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Linear(
            tower.tubelet * tower.patch**2 * 3,
            width,
            use_bias=tower.patch_bias,
            dtype=dtype,
            rngs=rngs,
        )
        has_cls = tower.class_token or tower.pool == "cls"
        side = tower.size // tower.patch
        tokens = side**2 + has_cls
        self.cls = nnx.Param(normal(rngs.params(), (width,))) if has_cls else None
        self.position = nnx.Param(normal(rngs.params(), (tokens, width)))
        self.pre_norm = norm() if tower.pre_norm else None
        mixer = {
            "divided": lambda rngs: DividedAttention(
                steps, width, tower.heads, epsilon=epsilon, dtype=dtype, rngs=rngs
            ),
            "shift": lambda _: TemporalShift(steps, width),
        }.get(tower.temporal)
        self.spatial = Blocks(
            tower.depth,
            **block,
            lora=lora,
            mixer=mixer,
            rope=(side, has_cls) if tower.rope else None,
        )
        self.norm = norm()
        self.map = nnx.data(None)
        if tower.pool in ("map", "wide_map"):
            self.map = AttentionPool(
                width,
                tower.pool_heads or tower.heads,
                tower.pool_mlp_ratio or tower.mlp_ratio,
                activation=tower.activation,
                epsilon=epsilon,
                wide=tower.pool == "wide_map",
                dtype=dtype,
                rngs=rngs,
            )
        # LoRA adapts published blocks only; those of temporal="blocks" are new.
        if tower.temporal == "tokens":
            self.time_position = nnx.Param(normal(rngs.params(), (steps, width)))
            self.temporal: Any = Blocks(tower.temporal_depth, **block, lora=lora)
            self.time_norm = norm()
            self.auxiliary = Blocks(tower.auxiliary_depth, **block, lora=lora)
        elif tower.temporal == "blocks" and tower.temporal_depth:
            self.time_position = nnx.Param(normal(rngs.params(), (steps, width)))
            self.temporal = Blocks(tower.temporal_depth, **block)
            self.time_norm = norm()
        elif tower.temporal == "transformer":
            self.temporal = TemporalTransformer(steps, depth=tower.temporal_depth, **block)
        else:
            self.temporal = None

    def __call__(
        self, video_BTHWC: Float[Array, "B T H W 3"], key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """Embeds clips with normalised pixels; a `key` turns dropout on."""
        tower = self.tower
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        batch = video_BTHWC.shape[0]
        x_XND = self.embed(
            rearrange(
                video_BTHWC,
                "b (t s) (h p) (w q) c -> (b t) (h w) (s p q c)",
                s=tower.tubelet,
                p=tower.patch,
                q=tower.patch,
            )
        )
        if self.cls is not None:
            cls_X1D = jnp.broadcast_to(
                self.cls[...].astype(x_XND.dtype), (x_XND.shape[0], 1, tower.width)
            )
            x_XND = jnp.concatenate([cls_X1D, x_XND], 1)
        x_XND = x_XND + self.position[...].astype(x_XND.dtype)
        if self.pre_norm is not None:
            x_XND = self.pre_norm(x_XND)
        x_XND = self.norm(self.spatial(x_XND, key=keys[0]))
        if tower.temporal == "tokens":
            return self._pool(self._mix_tokens(x_XND, batch, keys))
        x_BTD = rearrange(self._pool(x_XND), "(b t) d -> b t d", b=batch)
        if tower.temporal == "transformer":
            x_BTD = self.temporal(x_BTD, key=keys[1])
        elif self.temporal is not None:
            x_BTD = x_BTD + self.time_position[...].astype(x_BTD.dtype)
            x_BTD = self.time_norm(self.temporal(x_BTD, key=keys[1]))
        return x_BTD.mean(1)

    def _mix_tokens(
        self, x_XND: Float[Array, "X N D"], batch: int, keys: Any
    ) -> Float[Array, "B M D"]:
        """Mixes time at each patch position, then all M = T x N tokens together."""
        x_YTD = rearrange(x_XND, "(b t) n d -> (b n) t d", b=batch)
        x_YTD = x_YTD + self.time_position[...].astype(x_YTD.dtype)
        x_YTD = self.time_norm(self.temporal(x_YTD, key=keys[1]))
        x_BMD = rearrange(x_YTD, "(b n) t d -> b (t n) d", b=batch)
        return self.auxiliary(x_BMD, key=keys[2])

    def _pool(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        if self.map is not None:
            return self.map(x_BND)
        return x_BND[:, 0] if self.tower.pool == "cls" else x_BND.mean(1)


class FeatureTower(nnx.Module):
    """An MLP over precomputed features, in place of a video tower.

    With `linear` it returns the features unchanged, so that only a linear projection follows.
    """

    def __init__(
        self,
        *,
        features: int,
        width: int,
        dropout: float,
        linear: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.linear = linear
        self.width = features if linear else width  # of the result
        if linear:
            return
        self.up = nnx.Linear(features, width, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, x_BF: Float[Array, "B F"], key: jax.Array | None = None
    ) -> Float[Array, "B D"]:
        """Embeds features; a `key` turns dropout on."""
        if self.linear:
            return x_BF
        h_BD = jax.nn.gelu(self.norm(self.up(x_BF)))
        return self.down(self.dropout(h_BD, deterministic=key is None, rngs=key))
