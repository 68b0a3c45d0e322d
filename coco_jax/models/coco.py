"""The CoCo model (arXiv 2401.11654): video tower, text tower, projections, and losses."""

from typing import TypedDict

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict, FrozenConfigDict

from coco_jax import presets
from coco_jax.config import uses_cycle, uses_definitions, uses_descriptions
from coco_jax.models import alignment
from coco_jax.models.alignment import normalise
from coco_jax.models.i3d import I3D
from coco_jax.models.invariance import Invariance, cycle_loss
from coco_jax.models.ridge import BLOCKS
from coco_jax.models.text import TextTower
from coco_jax.models.video import FeatureTower, VideoTower
from coco_jax.sharding import BATCH, CLASSES, constrain


class Batch(TypedDict):
    """Input of one training step: videos, and the texts of every seen class and every pool class.

    The pool is empty (length 0) if the cycle does not use it. `episode` is a permutation of the seen
    classes; with `config.cycle.pool='episodic'` the classes in its second half act as unseen classes.
    """

    video: Array  # uint8 B T H W 3, or float32 B F features
    label: Array  # int32 B, an index into the seen classes
    # Texts are int32 token ids, or bfloat16 features (width W instead of length L) of a frozen tower.
    # If the labels include definitions, the last of the P texts is the definition.
    label_ids: Array  # K P L
    description_ids: Array  # K M L
    pool_label_ids: Array  # U P L
    pool_description_ids: Array  # U M L
    episode: Array  # int32 K


class FeatureMeans(nnx.Module):
    """Means over the seen classes, of video features and of text features; set from the data."""

    def __init__(self, features: int, width: int):
        self.video = nnx.Param(jnp.zeros(features))
        self.texts = nnx.Param(jnp.zeros((len(BLOCKS), width)))


class CoCo(nnx.Module):
    """CoCo (docs/method.md); `config.ablation` selects the terms of the objective."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs, mesh: Mesh | None = None):
        """Builds the model.

        Args:
          config: the run's config (coco_jax/config.py).
          rngs: random state for the initial parameters.
          mesh: the device mesh; None for a single device.
        """
        model, video, text = config.model, config.video_tower, config.text_tower
        dtype = jnp.dtype(model.dtype)
        self.config = FrozenConfigDict(config)
        self.mesh = mesh

        def lora(tower: ConfigDict) -> tuple[int, float] | None:
            rank = config.lora.rank
            return (rank, config.lora.alpha / rank) if tower.trainable == "lora" else None

        if video.kind == "features":
            self.video: FeatureTower | I3D | VideoTower = FeatureTower(
                features=video.feature_dim,
                width=video.width,
                dropout=video.dropout,
                linear=video.linear,
                dtype=dtype,
                rngs=rngs,
            )
        elif video.kind == "i3d":
            self.video = I3D(remat=model.remat, dtype=dtype, rngs=rngs)
        else:
            self.video = VideoTower(
                presets.video_tower(config),
                remat=model.remat,
                lora=lora(video),
                dtype=dtype,
                rngs=rngs,
            )
        self.text = TextTower(
            presets.text_tower(config), remat=model.remat, lora=lora(text), dtype=dtype, rngs=rngs
        )
        width = video.width
        if isinstance(self.video, FeatureTower):
            width = self.video.width
        self.video_out = nnx.Linear(width, model.dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.text_out = nnx.Linear(
            text.width, model.dim, use_bias=text.out_bias, dtype=dtype, rngs=rngs
        )
        self.log_tau = nnx.Param(jnp.log(jnp.float32(model.tau)))
        self.seen = nnx.data(None)
        if model.centre:
            self.seen = FeatureMeans(video.feature_dim, text.width)
        self.uses_descriptions = uses_descriptions(config)
        self.uses_definitions = uses_definitions(config)
        self.invariance = nnx.data(None)
        if uses_cycle(config):
            self.invariance = Invariance(
                model.dim,
                heads=config.cycle.heads,
                tau_r=config.cycle.tau_r,
                learned=config.cycle.learned_attention,
            )

    @property
    def tau(self) -> Float[Array, ""]:
        """The learned temperature, clipped to [tau_min, tau_max]."""
        model = self.config.model
        return jnp.clip(jnp.exp(self.log_tau[...]), model.tau_min, model.tau_max)

    def embed_videos(self, video: Array, key: jax.Array | None = None) -> Float[Array, "B D"]:
        """Embeds videos as float32 unit vectors.

        Args:
          video: uint8 clips `B T H W 3`, RGB, or float features `B F` for a `FeatureTower`.
          key: turns dropout on.
        """
        if video.dtype == jnp.uint8:
            dtype = jnp.dtype(self.config.model.dtype)
            mean, std = (
                jnp.array(x, jnp.float32)
                for x in (self.config.video_tower.mean, self.config.video_tower.std)
            )
            video = ((video.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
        if self.seen is not None:
            video = normalise(video - self.seen.video[...])
        if key is not None and self.config.data.feature_noise:
            video = add_noise(video, self.config.data.feature_noise, key)
        return normalise(self.video_out(self.video(video, key)))

    def embed_texts(
        self,
        texts_XYL: Int[Array, "X Y L"] | Float[Array, "X Y W"],
        key: jax.Array | None = None,
    ) -> Float[Array, "X Y D"]:
        """Embeds texts as float32 unit vectors.

        Each device embeds a part of the texts; only the embeddings are gathered.

        Args:
          texts_XYL: token ids, or features of a frozen text tower.
          key: turns dropout on.
        """
        return self._embed_texts(texts_XYL, "captions", key)

    def _embed_texts(
        self, texts_XYL: Array, block: str, key: jax.Array | None
    ) -> Float[Array, "X Y D"]:
        """As `embed_texts`; `block` chooses the mean that is subtracted."""
        count = texts_XYL.shape[0]
        x_ZD = rearrange(texts_XYL, "x y l -> (x y) l")
        if not jnp.issubdtype(x_ZD.dtype, jnp.floating):
            x_ZD = self.text(constrain(x_ZD, self.mesh, BATCH), key)
            x_ZD = constrain(x_ZD, self.mesh, BATCH)
        if self.seen is not None:
            x_ZD = normalise(normalise(x_ZD) - self.seen.texts[BLOCKS.index(block)])
        if key is not None and self.config.text.feature_noise:
            x_ZD = add_noise(x_ZD, self.config.text.feature_noise, key)
        z_XYD = rearrange(normalise(self.text_out(x_ZD)), "(x y) d -> x y d", x=count)
        return constrain(z_XYD, self.mesh, CLASSES)

    def embed_labels(
        self,
        texts_KPL: Int[Array, "K P L"] | Float[Array, "K P W"],
        key: jax.Array | None = None,
    ) -> Float[Array, "K D"]:
        """Label embeddings l_c: the normalised mean over the prompt templates.

        With definitions, the last of the P texts is the definition, and l_c is the normalised sum of its
        embedding and of that mean.
        """
        if not self.uses_definitions:
            return normalise(self._embed_texts(texts_KPL, "label", key).mean(1))
        keys = (None, None) if key is None else jax.random.split(key)
        prompts_KD = normalise(self._embed_texts(texts_KPL[:, :-1], "label", keys[0]).mean(1))
        definition_K1D = self._embed_texts(texts_KPL[:, -1:], "definition", keys[1])
        return normalise(prompts_KD + definition_K1D[:, 0])

    def scores(
        self,
        v_BD: Float[Array, "B D"],
        l_KD: Float[Array, "K D"],
        d_KMD: Float[Array, "K M D"] | None,
        mask_KM: Bool[Array, "K M"] | None = None,
    ) -> Float[Array, "B K"]:
        """score(v, c) = alpha v . l_c + (1 - alpha) v . e_c(v), float32 in [-1, 1].

        Args:
          v_BD: video embeddings, unit length.
          l_KD: label embeddings, unit length.
          d_KMD: description embeddings, unit length; with None the score is v . l_c.
          mask_KM: False for padding, where a class has fewer than M descriptions.
        """
        with jax.default_matmul_precision("float32"):
            return self._scores(v_BD, l_KD, d_KMD, mask_KM)

    def _scores(
        self,
        v_BD: Float[Array, "B D"],
        l_KD: Float[Array, "K D"],
        d_KMD: Float[Array, "K M D"] | None,
        mask_KM: Bool[Array, "K M"] | None,
    ) -> Float[Array, "B K"]:
        by_label_BK = v_BD @ l_KD.T
        if not self.uses_descriptions or d_KMD is None:
            return by_label_BK
        alpha, tau_d = self.config.model.alpha, self.config.model.tau_d
        by_description_BK = alignment.description_scores(v_BD, d_KMD, tau_d, mask_KM)
        return alpha * by_label_BK + (1 - alpha) * by_description_BK

    def losses(self, batch: Batch, key: jax.Array | None = None) -> dict[str, Float[Array, ""]]:
        """The terms of the objective by name, their weighted sum `loss`, and `tau`; float32 scalars.

        Args:
          batch: one training batch.
          key: turns dropout on.
        """
        video_key, text_key = (None, None) if key is None else jax.random.split(key)
        v_BD = self.embed_videos(batch["video"], video_key)
        return self.losses_of_embeddings(v_BD, batch, text_key)

    def losses_of_embeddings(
        self, v_BD: Float[Array, "B D"], batch: Batch, key: jax.Array | None = None
    ) -> dict[str, Float[Array, ""]]:
        """As `losses`, with video embeddings `v_BD` in place of `batch["video"]`."""
        keys = (None, None) if key is None else jax.random.split(key)
        label_ids = jnp.concatenate([batch["label_ids"], batch["pool_label_ids"]])
        l_XD = self.embed_labels(label_ids, keys[0])
        d_XMD = None
        if self.uses_descriptions:
            ids_XML = jnp.concatenate([batch["description_ids"], batch["pool_description_ids"]])
            d_XMD = self.embed_texts(ids_XML, keys[1])
        # By default, TPUs and GPUs compute float32 matrix products with reduced precision. At a
        # temperature of 0.01 that would change logits by tenths.
        with jax.default_matmul_precision("float32"):
            return self._terms(v_BD, l_XD, d_XMD, batch)

    def _terms(
        self,
        v_BD: Float[Array, "B D"],
        l_XD: Float[Array, "X D"],
        d_XMD: Float[Array, "X M D"] | None,
        batch: Batch,
    ) -> dict[str, Float[Array, ""]]:
        model, tau = self.config.model, self.tau
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
            rebuilt_SD, terms["cycle"] = self._cycle(s_XD, seen, batch["episode"])
            loss += model.lambda_cycle * terms["cycle"]
            if model.lambda_invariant:
                terms["invariant"] = alignment.cross_entropy(v_BD @ rebuilt_SD.T / tau, label_B)
                loss += model.lambda_invariant * terms["invariant"]
        return terms | {"loss": loss, "tau": tau}

    def _cycle(
        self, s_XD: Float[Array, "X D"], seen: int, episode: Array
    ) -> tuple[Float[Array, "S D"], Float[Array, ""]]:
        """S~_s, the reconstruction of the (pseudo-)seen classes, and L_cycle."""
        assert self.invariance is not None
        cycle = self.config.cycle
        if cycle.pool == "episodic":
            s_SD, s_UD = jnp.split(s_XD[episode], [seen - seen // 2])
        else:
            s_SD, s_UD = jnp.split(s_XD, [seen])

        def stop_gradient_of(role: str, x_KD: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(x_KD) if role in cycle.stop_gradient else x_KD

        rebuilt_SD = self.invariance(
            stop_gradient_of("seen", s_SD), stop_gradient_of("unseen", s_UD)
        )
        target_SD = stop_gradient_of("target", s_SD)
        return rebuilt_SD, cycle_loss(rebuilt_SD, target_SD, cycle.form, self.tau)


def add_noise(x_NF: Float[Array, "N F"], share: float, key: jax.Array) -> Float[Array, "N F"]:
    """Adds Gaussian noise to each vector; the noise's norm is about `share` of the vector's."""
    scale_N1 = share * jnp.linalg.norm(x_NF, axis=-1, keepdims=True) / x_NF.shape[-1] ** 0.5
    # Another stream than dropout's, which uses the same key.
    return x_NF + scale_N1 * jax.random.normal(jax.random.fold_in(key, 1), x_NF.shape, x_NF.dtype)
