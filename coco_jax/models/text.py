"""The text tower: a transformer from token ids to one vector per text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from coco_jax.config import CHOICES
from coco_jax.models.transformer import AttentionPool, Blocks
from coco_jax.presets import TextTowerConfig

# mean, map, last: over the tokens that are not padding. eos: the first token with the highest id,
# which is the end of text in CLIP. cls: a learned token after the text, as in VideoPrism.
POOLS = CHOICES["text_tower.pool"]
POSITIONS = CHOICES["text_tower.position"]
PADDING_ID = 0
# MPNet's relative positions (arXiv 2004.09297), which are T5's (arXiv 1910.10683).
BUCKETS, MAX_DISTANCE = 32, 128


def sinusoids(length: int, width: int) -> Float[np.ndarray, "L D"]:
    """Fixed position embeddings: sines, then cosines, with wavelengths from 2 pi to 20,000 pi."""
    half = width // 2
    rate_E = np.exp(-np.log(1e4) * np.arange(half) / max(half - 1, 1))
    angle_LE = np.arange(length)[:, None] * rate_E
    table_LD = np.concatenate([np.sin(angle_LE), np.cos(angle_LE)], 1)
    return np.pad(table_LD, ((0, 0), (0, width - 2 * half))).astype(np.float32)


def relative_buckets(length: int) -> Int[np.ndarray, "L L"]:
    """The bucket, from 0 to `BUCKETS` - 1, of the offset between each query (row) and each key (column).

    As in T5 (arXiv 1910.10683) for both directions: keys after the query have the upper half of the
    buckets. In each direction, half of the buckets are for one distance each, starting at 0. The others
    have ranges that grow logarithmically up to `MAX_DISTANCE`, and the last one all larger distances.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    offset_LL = np.arange(length) - np.arange(length)[:, None]
    far_LL = abs(offset_LL)
    log_LL = np.log(np.maximum(far_LL, exact) / exact) / np.log(MAX_DISTANCE / exact)
    # T5 computes this in float32, which differs at distances where the quotient is a whole number.
    large_LL = exact + np.floor(np.float32(log_LL) * (half - exact)).astype(int)
    bucket_LL = np.where(far_LL < exact, far_LL, np.minimum(large_LL, half - 1))
    return bucket_LL + half * (offset_LL > 0)


class TextTower(nnx.Module):
    """A transformer over token ids; padding is masked in attention and pooling if `mask_padding`."""

    def __init__(
        self,
        tower: TextTowerConfig,
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
          ValueError: `pool` or `position` has an unknown value.
        """
        if tower.pool not in POOLS:
            raise ValueError(f"text_tower.pool is {tower.pool!r}; must be one of {POOLS}")
        if tower.position not in POSITIONS:
            raise ValueError(
                f"text_tower.position is {tower.position!r}; must be one of {POSITIONS}"
            )
        self.tower = tower
        width, epsilon = tower.width, tower.norm_epsilon
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(
            tower.vocabulary, width, embedding_init=normal, dtype=dtype, rngs=rngs
        )
        self.position = nnx.data(None)
        if tower.position in ("learned", "relative"):
            self.position = nnx.Param(normal(rngs.params(), (tower.length, width)))
        # One for all blocks, of each head; zero at initialisation.
        self.relative = nnx.data(None)
        if tower.position == "relative":
            self.relative = nnx.Param(jnp.zeros((BUCKETS, tower.heads)))
        self.blocks = Blocks(
            tower.depth,
            width,
            tower.heads,
            tower.mlp_ratio,
            activation=tower.activation,
            dropout=tower.dropout,
            remat=remat,
            norm=tower.norm,
            epsilon=epsilon,
            attention_logit_cap=tower.attention_logit_cap,
            lora=lora,
            dtype=dtype,
            rngs=rngs,
        )
        # Post-norm blocks expect a normalised input and return a normalised output, so the tower's
        # one LayerNorm comes before them; pre-norm blocks need it after.
        self.post_norm = tower.norm == "post"
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        # BERT adds one of two embeddings to the tokens, for the first and second text of a pair. A
        # single text uses the first. MPNet has relative positions instead.
        has_types = self.post_norm and tower.position != "relative"
        self.token_type = nnx.Param(normal(rngs.params(), (width,))) if has_types else None
        self.cls = nnx.Param(normal(rngs.params(), (width,))) if tower.pool == "cls" else None
        self.map = nnx.data(None)
        if tower.pool == "map":
            self.map = AttentionPool(
                width,
                tower.heads,
                tower.mlp_ratio,
                activation=tower.activation,
                epsilon=epsilon,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self, ids_XL: Int[Array, "X L"], key: jax.Array | None = None
    ) -> Float[Array, "X D"]:
        """Embeds texts of up to `length` int32 token ids; a `key` turns dropout on."""
        mask_XL = self._token_mask(ids_XL)
        x_XLD = self._embed(ids_XL)
        if self.cls is not None:
            mask_XL = jnp.pad(mask_XL, ((0, 0), (0, 1)), constant_values=True)
            cls_X1D = jnp.broadcast_to(
                self.cls[...].astype(x_XLD.dtype), (len(ids_XL), 1, self.tower.width)
            )
            x_XLD = jnp.concatenate([x_XLD, cls_X1D], 1)
        mask_X11L = mask_XL[:, None, None, :]
        mask_X1LL = mask_X11L
        if self.tower.causal:
            count = x_XLD.shape[1]
            mask_X1LL = mask_X11L & jnp.tri(count, dtype=bool)
        mask_XHLL = mask_X1LL
        if self.relative is not None:  # floats, which are added to the attention logits
            bias_LLH = self.relative[...][relative_buckets(x_XLD.shape[1])]
            lowest = jnp.finfo(bias_LLH.dtype).min
            mask_XHLL = jnp.where(mask_X1LL, bias_LLH.transpose(2, 0, 1), lowest)
        x_XLD = self.norm(x_XLD) if self.post_norm else x_XLD
        x_XLD = self.blocks(x_XLD, mask_XHLL, key)
        x_XLD = x_XLD if self.post_norm else self.norm(x_XLD)
        rows_X = jnp.arange(len(ids_XL))
        match self.tower.pool:
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

    def _token_mask(self, ids_XL: Int[Array, "X L"]) -> Bool[Array, "X L"]:
        if not self.tower.mask_padding:
            return jnp.ones(ids_XL.shape, bool)
        # The first token always counts: a softmax over no token at all would be NaN.
        return (ids_XL != PADDING_ID).at[:, 0].set(True)

    def _embed(self, ids_XL: Int[Array, "X L"]) -> Float[Array, "X L D"]:
        x_XLD = self.embed(ids_XL)
        table_LD = (
            jnp.asarray(sinusoids(self.tower.length, self.tower.width))
            if self.position is None
            else self.position[...]
        )
        x_XLD = x_XLD + table_LD[: ids_XL.shape[1]].astype(x_XLD.dtype)
        if self.token_type is not None:
            x_XLD = x_XLD + self.token_type[...].astype(x_XLD.dtype)
        return x_XLD
