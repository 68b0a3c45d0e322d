"""CoCo with a closed form in place of its trained projections (docs/method.md, "Closed form")."""

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict, FrozenConfigDict

from coco_jax.config import text_blocks, uses_cycle, uses_descriptions
from coco_jax.models import ridge
from coco_jax.models.alignment import cross_entropy, normalise
from coco_jax.models.invariance import cycle_loss


class EpisodeBatch(TypedDict):
    """Input of one training step: videos of seen classes, and the texts of the cycle's pool."""

    video: Array  # float32 B F features
    label: Array  # int32 B, an index into the seen classes
    pool: Array  # float32 U N W, the text features of the pool in each block; U is 0 without a pool


class SeenClasses(nnx.Module):
    """What the closed form is solved on; set from the training data, never trained."""

    def __init__(self, classes: int, blocks: int, width: int, features: int):
        self.texts = nnx.Param(jnp.zeros((classes, blocks, width)))  # unit length in each block
        self.videos = nnx.Param(jnp.zeros((classes, features)))  # mean feature of each class


class Constants(nnx.Module):
    """The constants of the closed form; of the positive ones, the logarithm."""

    def __init__(self, config: ConfigDict):
        self.log_weight = nnx.Param(_log_weights(config))  # of the blocks
        self.log_width = nnx.Param(jnp.log(jnp.float32(config.ridge.width)))
        self.log_strength = nnx.Param(jnp.log(jnp.float32(config.ridge.strength)))
        self.hubness = nnx.Param(jnp.float32(config.ridge.hubness))


class BackAttention(nnx.Module):
    """The constants of the attention from seen classes back to the pool."""

    def __init__(self, config: ConfigDict):
        self.log_weight = nnx.Param(_log_weights(config))
        self.log_tau_r = nnx.Param(jnp.log(jnp.float32(config.cycle.tau_r)))


def _log_weights(config: ConfigDict) -> Float[Array, " N"]:
    weights = dict(zip(ridge.BLOCKS, config.ridge.weights, strict=True))
    return jnp.log(jnp.array([weights[block] for block in text_blocks(config)], jnp.float32))


class ClosedForm(nnx.Module):
    """CoCo whose map from texts to videos is the kernel ridge regression of models/ridge.py.

    It is solved on the seen classes whenever it is used. With `alignment="episodic"` its few constants
    are trained: each step holds out some seen classes, solves the regression on the others, and
    contrasts the videos of the held-out classes with the predicted vectors of these classes.
    """

    def __init__(self, config: ConfigDict):
        """Builds the model; `config.ridge.seen_classes` must be set."""
        self.config = FrozenConfigDict(config)
        self.seen = SeenClasses(
            config.ridge.seen_classes,
            len(text_blocks(config)),
            config.text_tower.width,
            config.video_tower.feature_dim,
        )
        self.constants = Constants(config)
        self.log_tau = nnx.Param(jnp.log(jnp.float32(config.model.tau)))
        self.back = nnx.data(None)
        if uses_cycle(config) and config.cycle.learned_attention:
            self.back = BackAttention(config)

    @property
    def tau(self) -> Float[Array, ""]:
        """The temperature, clipped to [tau_min, tau_max]."""
        model = self.config.model
        return jnp.clip(jnp.exp(self.log_tau[...]), model.tau_min, model.tau_max)

    def embed_videos(self, video_BF: Float[Array, "B F"]) -> Float[Array, "B F"]:
        """Features minus their mean over the seen classes, unit length."""
        return ridge.centre(video_BF, self.seen.videos[...].mean(0))

    def scores(
        self, v_BF: Float[Array, "B F"], texts_KNW: Float[Array, "K N W"]
    ) -> Float[Array, "B K"]:
        """score(v, c) = v . v_c - hubness weight x hubness of v_c, float32.

        Args:
          v_BF: embedded videos, unit length.
          texts_KNW: text features of the candidates in each block, unit length.
        """
        with jax.default_matmul_precision("float32"):
            seen_SF = self.embed_videos(self.seen.videos[...])
            v_KF = self._predict(texts_KNW, self.seen.texts[...], seen_SF)
            return self._compare(v_BF, v_KF, seen_SF)

    def _predict(
        self,
        texts_KNW: Float[Array, "K N W"],
        seen_SNW: Float[Array, "S N W"],
        seen_SF: Float[Array, "S F"],
    ) -> Float[Array, "K F"]:
        constants = self.constants
        weight_N = jax.nn.softmax(constants.log_weight[...])
        width, strength = jnp.exp(constants.log_width[...]), jnp.exp(constants.log_strength[...])
        return ridge.predict(texts_KNW, seen_SNW, seen_SF, weight_N, width, strength)

    def coefficients(self, texts_KNW: Float[Array, "K N W"]) -> Float[Array, "K S"]:
        """How much the vector of each seen class counts in the predicted vectors of K classes."""
        constants, seen_SNW = self.constants, self.seen.texts[...]
        weight_N = jax.nn.softmax(constants.log_weight[...])
        width = jnp.exp(constants.log_width[...])
        mean_NW = seen_SNW.mean(0)
        x_KNW, y_SNW = ridge.centre(texts_KNW, mean_NW), ridge.centre(seen_SNW, mean_NW)
        return ridge.coefficients(
            ridge.gaussian_kernel(x_KNW, y_SNW, weight_N, width),
            ridge.gaussian_kernel(y_SNW, y_SNW, weight_N, width),
            jnp.exp(constants.log_strength[...]),
        )

    def _compare(
        self, v_BF: Float[Array, "B F"], v_KF: Float[Array, "K F"], seen_SF: Float[Array, "S F"]
    ) -> Float[Array, "B K"]:
        hubness_K = ridge.hubness(v_KF, seen_SF, self.config.ridge.neighbours)
        return v_BF @ v_KF.T - self.constants.hubness[...] * hubness_K

    def losses(self, batch: EpisodeBatch, key: jax.Array) -> dict[str, Float[Array, ""]]:
        """The terms of the objective by name, their weighted sum `loss`, and constants; float32 scalars.

        Args:
          batch: one training batch.
          key: chooses the classes of the episode.
        """
        with jax.default_matmul_precision("float32"):
            return self._losses(batch, key)

    def _losses(self, batch: EpisodeBatch, key: jax.Array) -> dict[str, Float[Array, ""]]:
        classes, texts_SNW = len(self.seen.videos[...]), self.seen.texts[...]
        count = held_out_classes(classes, self.config.ridge.held_out)
        held_out, rest = jnp.split(jax.random.permutation(key, classes), [count])
        mean_F = self.seen.videos[rest].mean(0)
        rest_RF = ridge.centre(self.seen.videos[rest], mean_F)
        v_HF = self._predict(texts_SNW[held_out], texts_SNW[rest], rest_RF)
        v_BF = ridge.centre(batch["video"], mean_F)
        # The place of each video's class among the held-out ones; -1 for the others.
        place_S = jnp.full(classes, -1).at[held_out].set(jnp.arange(count))
        place_B = place_S[batch["label"]]
        logits_BH = self._compare(v_BF, v_HF, rest_RF) / self.tau
        loss = cross_entropy(logits_BH, jnp.maximum(place_B, 0), place_B >= 0)
        terms = {"description" if uses_descriptions(self.config) else "label": loss}
        if uses_cycle(self.config):
            pool_UNW = batch["pool"]
            if self.config.cycle.pool == "episodic":
                pool_UNW = texts_SNW[held_out]
            terms["cycle"] = self._cycle(texts_SNW[rest], rest_RF, pool_UNW)
            loss += self.config.model.lambda_cycle * terms["cycle"]
        constants = {
            "width": jnp.exp(self.constants.log_width[...]),
            "strength": jnp.exp(self.constants.log_strength[...]),
            "hubness": self.constants.hubness[...],
        }
        return terms | constants | {"loss": loss, "tau": self.tau}

    def _cycle(
        self,
        seen_SNW: Float[Array, "S N W"],
        seen_SF: Float[Array, "S F"],
        pool_UNW: Float[Array, "U N W"],
    ) -> Float[Array, ""]:
        """L_cycle: seen classes rebuilt from the pool's predicted vectors, compared with their own."""
        mean_NW = seen_SNW.mean(0)
        weight_N, tau_r = jnp.exp(_log_weights(self.config)), jnp.float32(self.config.cycle.tau_r)
        if self.back is not None:
            weight_N, tau_r = jnp.exp(self.back.log_weight[...]), jnp.exp(self.back.log_tau_r[...])
        logits_SU = ridge.similarity(
            ridge.centre(seen_SNW, mean_NW),
            ridge.centre(pool_UNW, mean_NW),
            weight_N / weight_N.sum() / tau_r,
        )
        pool_UF = self._predict(pool_UNW, seen_SNW, seen_SF)
        rebuilt_SF = normalise(jax.nn.softmax(logits_SU) @ pool_UF)
        return cycle_loss(rebuilt_SF, seen_SF, self.config.cycle.form, self.tau)


def held_out_classes(seen: int, share: float) -> int:
    """How many of the seen classes an episode holds out: at least 1, and not all."""
    return min(max(math.floor(share * seen), 1), seen - 1)
