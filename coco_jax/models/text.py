"""The text tower: token ids to one vector a text."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from coco_jax.models.transformer import AttentionPool, Blocks

# mean, map, last: of what is not padding. eos: at the first of the highest id, CLIP's end mark.
# cls: a learned token after the text, as VideoPrism has it.
POOLS = ("mean", "map", "last", "eos", "cls")
POSITIONS = ("learned", "sinusoid")
PAD = 0


def sinusoids(length: int, width: int) -> Float[np.ndarray, "L D"]:
    """Fixed positions: sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    half = width // 2
    rate_E = np.exp(-np.log(1e4) * np.arange(half) / max(half - 1, 1))
    angle_LE = np.arange(length)[:, None] * rate_E
    table_LD = np.concatenate([np.sin(angle_LE), np.cos(angle_LE)], 1)
    return np.pad(table_LD, ((0, 0), (0, width - 2 * half))).astype(np.float32)


class TextTower(nnx.Module):
    """A transformer over token ids; id 0 is padding, never looked at if `mask_padding`."""

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
        norm: str = "pre",
        causal: bool = False,
        mask_padding: bool = True,
        position: str = "learned",
        epsilon: float = 1e-6,
        cap: float = 0.0,
        lora: tuple[int, float] | None = None,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}, not one of {POOLS}")
        if position not in POSITIONS:
            raise ValueError(f"position is {position!r}, not one of {POSITIONS}")
        self.pool, self.width, self.length = pool, width, length
        self.causal, self.mask_padding = causal, mask_padding
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(vocabulary, width, embedding_init=normal, dtype=dtype, rngs=rngs)
        self.position = (
            nnx.Param(normal(rngs.params(), (length, width))) if position == "learned" else None
        )
        self.blocks = Blocks(
            depth, width, heads, mlp_ratio, activation=activation, dropout=dropout, remat=remat,
            norm=norm, epsilon=epsilon, cap=cap, lora=lora, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        # Post-norm blocks take normed tokens and give normed ones: the one norm stands before them.
        self.post = norm == "post"
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        # BERT was trained on pairs of texts; a single one is of the first kind throughout.
        self.token_type = nnx.Param(normal(rngs.params(), (width,))) if self.post else None
        self.cls = nnx.Param(normal(rngs.params(), (width,))) if pool == "cls" else None
        self.map = (
            AttentionPool(
                width, heads, mlp_ratio, activation=activation, epsilon=epsilon, dtype=dtype,
                rngs=rngs,
            )
            if pool == "map"
            else None
        )  # fmt: skip

    def __call__(
        self, ids_XL: Int[Array, "X L"], key: jax.Array | None = None
    ) -> Float[Array, "X D"]:
        """Embeds texts of up to `length` tokens; `key` turns dropout on."""
        mask_XL = self._shown(ids_XL)
        x_XLD = self._embed(ids_XL)
        if self.cls is not None:
            mask_XL = jnp.pad(mask_XL, ((0, 0), (0, 1)), constant_values=True)
            cls_X1D = jnp.broadcast_to(
                self.cls[...].astype(x_XLD.dtype), (len(ids_XL), 1, self.width)
            )
            x_XLD = jnp.concatenate([x_XLD, cls_X1D], 1)
        mask_X11L = mask_XL[:, None, None, :]
        mask_X1LL = mask_X11L
        if self.causal:
            count = x_XLD.shape[1]
            mask_X1LL = mask_X11L & jnp.tri(count, dtype=bool)
        x_XLD = self.norm(x_XLD) if self.post else x_XLD
        x_XLD = self.blocks(x_XLD, mask_X1LL, key)
        x_XLD = x_XLD if self.post else self.norm(x_XLD)
        rows_X = jnp.arange(len(ids_XL))
        match self.pool:
            case "map" if self.map is not None:
                return self.map(x_XLD, mask_X11L)
            case "last":
                return x_XLD[rows_X, mask_XL.sum(1) - 1]
            case "eos":
                return x_XLD[rows_X, ids_XL.argmax(1)]
            case "cls":
                return x_XLD[:, -1]
            case _:
                weight_XL1 = mask_XL[:, :, None].astype(x_XLD.dtype)
                return (x_XLD * weight_XL1).sum(1) / weight_XL1.sum(1)

    def _shown(self, ids_XL: Int[Array, "X L"]) -> Bool[Array, "X L"]:
        if not self.mask_padding:
            return jnp.ones(ids_XL.shape, bool)
        # A text of padding alone would leave softmax nothing to look at.
        return (ids_XL != PAD).at[:, 0].set(True)

    def _embed(self, ids_XL: Int[Array, "X L"]) -> Float[Array, "X L D"]:
        x_XLD = self.embed(ids_XL)
        table_LD = (
            jnp.asarray(sinusoids(self.length, self.width))
            if self.position is None
            else self.position[...]
        )
        x_XLD = x_XLD + table_LD[: ids_XL.shape[1]].astype(x_XLD.dtype)
        if self.token_type is not None:
            x_XLD = x_XLD + self.token_type[...].astype(x_XLD.dtype)
        return x_XLD
