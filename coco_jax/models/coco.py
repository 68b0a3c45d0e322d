"""CoCo: two towers, the alignment of their outputs, and the cycle between class semantics."""

from typing import TypedDict

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict, FrozenConfigDict

from coco_jax.models import alignment
from coco_jax.models.alignment import normalise
from coco_jax.models.invariance import Invariance, cycle_loss
from coco_jax.models.text import TextTower
from coco_jax.models.video import FeatureTower, VideoTower
from coco_jax.sharding import BATCH, CLASSES, constrain


class Batch(TypedDict):
    """What one step sees: videos, and the texts of every seen class and of the pool's.

    The pool's texts are absent (length 0) where the cycle needs none; `episode` is a permutation
    of the seen classes whose second half plays "unseen" in the episodic pool.
    """

    video: Array  # uint8 B T H W 3, or float32 B F features
    label: Array  # int32 B, an index into the seen classes
    # Texts are int32 token ids, or bfloat16 features of a frozen text tower, W in place of L.
    label_ids: Array  # K P L
    description_ids: Array  # K M L
    pool_label_ids: Array  # U P L
    pool_description_ids: Array  # U M L
    episode: Array  # int32 K


class CoCo(nnx.Module):
    """The model of METHOD, its terms switched by `config.ablation`."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs, mesh: Mesh | None = None):
        model, video, text = config.model, config.video_tower, config.text_tower
        dtype = jnp.dtype(model.dtype)
        self.config = FrozenConfigDict(config)
        self.mesh = mesh  # None: one device

        def lora(tower: ConfigDict) -> tuple[int, float] | None:
            rank = config.lora.rank
            return (rank, config.lora.alpha / rank) if tower.trainable == "lora" else None

        if video.kind == "features":
            self.video: FeatureTower | VideoTower = FeatureTower(
                features=video.feature_dim, width=video.width, dropout=video.dropout, dtype=dtype,
                rngs=rngs,
            )  # fmt: skip
        else:
            self.video = VideoTower(
                frames=video.frames, size=video.size, patch=video.patch, tubelet=video.tubelet,
                width=video.width, heads=video.heads, mlp_ratio=video.mlp_ratio, depth=video.depth,
                temporal_depth=video.temporal_depth, pool=video.pool, activation=video.activation,
                dropout=video.dropout, patch_bias=video.patch_bias, pre_norm=video.pre_norm,
                remat=model.remat, temporal=video.temporal, auxiliary_depth=video.auxiliary_depth,
                epsilon=video.norm_epsilon, cap=video.attention_logit_cap, lora=lora(video), dtype=dtype, rngs=rngs,
            )  # fmt: skip
        self.text = TextTower(
            vocabulary=config.text.vocabulary, length=config.text.length, width=text.width,
            heads=text.heads, mlp_ratio=text.mlp_ratio, depth=text.depth, pool=text.pool,
            activation=text.activation, dropout=text.dropout, remat=model.remat, norm=text.norm,
            causal=text.causal, mask_padding=text.mask_padding, position=text.position,
            epsilon=text.norm_epsilon, cap=text.attention_logit_cap, lora=lora(text), dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.video_out = nnx.Linear(video.width, model.dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.text_out = nnx.Linear(
            text.width, model.dim, use_bias=text.out_bias, dtype=dtype, rngs=rngs
        )
        self.log_tau = nnx.Param(jnp.log(jnp.float32(model.tau)))
        self.invariance = (
            Invariance(
                model.dim, heads=config.cycle.heads, tau_r=config.cycle.tau_r,
                learned=config.cycle.learned_attention,
            )
            if self.uses_cycle
            else None
        )  # fmt: skip

    @property
    def uses_descriptions(self) -> bool:
        """Whether the ablation has L_desc, and descriptions in s_c and in the score."""
        return self.config.ablation in ("label+desc", "full")

    @property
    def uses_cycle(self) -> bool:
        """Whether the ablation has Cross-action Invariance Mining."""
        return self.config.ablation in ("label+cycle", "full")

    @property
    def tau(self) -> Float[Array, ""]:
        """The learned temperature, clipped."""
        model = self.config.model
        return jnp.clip(jnp.exp(self.log_tau[...]), model.tau_min, model.tau_max)

    def embed_videos(self, video: Array, key: jax.Array | None = None) -> Float[Array, "B D"]:
        """Unit vectors of uint8 clips `B T H W 3` (or of float features `B F`)."""
        if video.dtype == jnp.uint8:
            dtype = jnp.dtype(self.config.model.dtype)
            mean, std = (
                jnp.array(x, jnp.float32)
                for x in (self.config.video_tower.mean, self.config.video_tower.std)
            )
            video = ((video.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
        return normalise(self.video_out(self.video(video, key)))

    def embed_texts(
        self,
        texts_XYL: Int[Array, "X Y L"] | Float[Array, "X Y W"],
        key: jax.Array | None = None,
    ) -> Float[Array, "X Y D"]:
        """Unit vectors of texts: of token ids, or of what a frozen text tower made of them.

        Every device embeds its share of the texts; what is gathered is their embeddings alone.
        """
        count = texts_XYL.shape[0]
        x_ZD = rearrange(texts_XYL, "x y l -> (x y) l")
        if not jnp.issubdtype(x_ZD.dtype, jnp.floating):
            x_ZD = self.text(constrain(x_ZD, self.mesh, BATCH), key)
            x_ZD = constrain(x_ZD, self.mesh, BATCH)
        z_XYD = rearrange(normalise(self.text_out(x_ZD)), "(x y) d -> x y d", x=count)
        return constrain(z_XYD, self.mesh, CLASSES)

    def embed_labels(
        self,
        texts_KPL: Int[Array, "K P L"] | Float[Array, "K P W"],
        key: jax.Array | None = None,
    ) -> Float[Array, "K D"]:
        """l_c: the mean over prompt templates, at unit length."""
        return normalise(self.embed_texts(texts_KPL, key).mean(1))

    def scores(
        self,
        v_BD: Float[Array, "B D"],
        l_KD: Float[Array, "K D"],
        d_KMD: Float[Array, "K M D"] | None,
        mask_KM: Bool[Array, "K M"] | None = None,
    ) -> Float[Array, "B K"]:
        """score(v, c) = alpha v . l_c + (1 - alpha) v . e_c(v), in [-1, 1]."""
        with jax.default_matmul_precision("float32"):
            return self._scores(v_BD, l_KD, d_KMD, mask_KM)

    def _scores(self, v_BD, l_KD, d_KMD, mask_KM):
        by_label_BK = v_BD @ l_KD.T
        if not self.uses_descriptions or d_KMD is None:
            return by_label_BK
        alpha, tau_d = self.config.model.alpha, self.config.model.tau_d
        by_description_BK = alignment.description_scores(v_BD, d_KMD, tau_d, mask_KM)
        return alpha * by_label_BK + (1 - alpha) * by_description_BK

    def losses(self, batch: Batch, key: jax.Array | None = None) -> dict[str, Float[Array, ""]]:
        """Every term of the objective, float32, and their weighted sum `loss`."""
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        v_BD = self.embed_videos(batch["video"], keys[0])
        l_XD = self.embed_labels(
            jnp.concatenate([batch["label_ids"], batch["pool_label_ids"]]), keys[1]
        )
        d_XMD = None
        if self.uses_descriptions:
            ids_XML = jnp.concatenate([batch["description_ids"], batch["pool_description_ids"]])
            d_XMD = self.embed_texts(ids_XML, keys[2])
        # Accelerators round the operands of float32 products unless told not to; at a temperature
        # of 0.01 that would move logits by tenths.
        with jax.default_matmul_precision("float32"):
            return self._terms(v_BD, l_XD, d_XMD, batch)

    def _terms(self, v_BD, l_XD, d_XMD, batch: Batch) -> dict[str, Float[Array, ""]]:
        config, model, tau = self.config, self.config.model, self.tau
        label_B, seen = batch["label"], batch["label_ids"].shape[0]
        terms = {"label": alignment.label_loss(v_BD, l_XD[:seen], label_B, tau)}
        loss = terms["label"]

        if d_XMD is not None:
            terms["description"] = alignment.description_loss(
                v_BD, d_XMD[:seen], label_B, tau, model.tau_d
            )
            loss += model.lambda_desc * terms["description"]

        if self.invariance is not None:
            s_XD = alignment.semantic_features(l_XD, d_XMD, model.label_weight)
            if config.cycle.pool == "episodic":
                s_XD = s_XD[batch["episode"]]
                s_SD, s_UD = jnp.split(s_XD, [seen - seen // 2])
            else:
                s_SD, s_UD = jnp.split(s_XD, [seen])

            def held(who: str, x_KD: jax.Array) -> jax.Array:
                return jax.lax.stop_gradient(x_KD) if who in config.cycle.stop_gradient else x_KD

            rebuilt_SD = self.invariance(held("seen", s_SD), held("unseen", s_UD))
            terms["cycle"] = cycle_loss(rebuilt_SD, held("target", s_SD), config.cycle.form, tau)
            loss += model.lambda_cycle * terms["cycle"]
            if model.lambda_invariant:
                terms["invariant"] = alignment.cross_entropy(v_BD @ rebuilt_SD.T / tau, label_B)
                loss += model.lambda_invariant * terms["invariant"]
        return terms | {"loss": loss, "tau": tau}
