"""The closed form from texts to videos: kernel ridge regression on the seen classes.

A class has one text feature for each block (label, definition, captions). From these the regression
predicts the class's vector among the videos:

    v_c = normalise(k_c (G + strength I)^-1 V),    k_c = kernel(c, seen), G = kernel(seen, seen)

V has the vectors of the seen classes. As a layer of a model that is solved, not trained, and
differentiated through, this is the ridge regression of Bertinetto et al., "Meta-learning with
differentiable closed-form solvers", arXiv 1805.08136. The training loop, the pretrained recogniser and
the benchmarks use these functions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coco_jax.models.alignment import normalise

BLOCKS = ("label", "definition", "captions")  # the kinds of texts of an action
# Strength of the linear regression by the number of blocks, chosen on classes held out of the seen ones.
LINEAR_STRENGTH = {1: 4.0, 2: 4.0, 3: 2.0}


def centre(x_KBW: Float[Array, "K *B W"], mean_BW: Float[Array, "*B W"]) -> Float[Array, "K *B W"]:
    """Subtracts the mean over the seen classes; returns unit vectors."""
    return normalise(x_KBW - mean_BW)


def similarity(
    x_KBW: Float[Array, "K B W"], y_SBW: Float[Array, "S B W"], weight_B: Float[Array, " B"]
) -> Float[Array, "K S"]:
    """The weighted sum over the blocks of the dot products of two sets of classes."""
    dot_BKS = jnp.einsum("kbw,sbw->bks", x_KBW, y_SBW)
    return jnp.einsum("bks,b->ks", dot_BKS, weight_B)


def gaussian_kernel(
    x_KBW: Float[Array, "K B W"],
    y_SBW: Float[Array, "S B W"],
    weight_B: Float[Array, " B"],
    width: Float[Array, ""] | float,
) -> Float[Array, "K S"]:
    """exp(-sum_b weight_b (1 - cosine_b) / width).

    Args:
      x_KBW: text features of K classes, centred, unit length in each block.
      y_SBW: the same of S classes.
      weight_B: of the blocks.
      width: of the kernel.
    """
    return jnp.exp((similarity(x_KBW, y_SBW, weight_B) - weight_B.sum()) / width)


def solve(
    k_KS: Float[Array, "K S"],
    gram_SS: Float[Array, "S S"],
    v_SF: Float[Array, "S F"],
    strength: Float[Array, ""] | float,
) -> Float[Array, "K F"]:
    """normalise(k (G + strength I)^-1 V), float32.

    Args:
      k_KS: the kernel between K classes and the seen ones.
      gram_SS: G, the kernel between the seen classes.
      v_SF: V, the vectors of the seen classes.
      strength: of the regularisation, more than 0.
    """
    factor = jax.scipy.linalg.cho_factor(gram_SS + strength * jnp.eye(len(gram_SS)))
    # There are usually fewer classes to predict (K) than values in a vector (F).
    return normalise(jax.scipy.linalg.cho_solve(factor, k_KS.T).T @ v_SF)


def predict(
    x_KBW: Float[Array, "K B W"],
    seen_SBW: Float[Array, "S B W"],
    v_SF: Float[Array, "S F"],
    weight_B: Float[Array, " B"],
    width: Float[Array, ""] | float,
    strength: Float[Array, ""] | float,
) -> Float[Array, "K F"]:
    """The vectors that K classes have by their texts, with the Gaussian kernel; unit length.

    Args:
      x_KBW: text features of the classes in each block.
      seen_SBW: text features of the seen classes.
      v_SF: vectors of the seen classes, unit length.
      weight_B: of the blocks.
      width: of the kernel.
      strength: of the regularisation.
    """
    mean_BW = seen_SBW.mean(0)
    x_KBW, seen_SBW = centre(x_KBW, mean_BW), centre(seen_SBW, mean_BW)
    gram_SS = gaussian_kernel(seen_SBW, seen_SBW, weight_B, width)
    return solve(gaussian_kernel(x_KBW, seen_SBW, weight_B, width), gram_SS, v_SF, strength)


def predict_linear(
    x_KBW: Float[Array, "K B W"], seen_SBW: Float[Array, "S B W"], v_SF: Float[Array, "S F"]
) -> Float[Array, "K F"]:
    """As `predict`, by linear ridge regression from the concatenated blocks: the usual baseline."""
    mean_BW, weight_B = seen_SBW.mean(0), jnp.ones(seen_SBW.shape[1])
    x_KBW, seen_SBW = centre(x_KBW, mean_BW), centre(seen_SBW, mean_BW)
    gram_SS = similarity(seen_SBW, seen_SBW, weight_B)
    return solve(
        similarity(x_KBW, seen_SBW, weight_B), gram_SS, v_SF, LINEAR_STRENGTH[len(weight_B)]
    )


def hubness(
    v_KF: Float[Array, "K F"], seen_SF: Float[Array, "S F"], neighbours: int
) -> Float[Array, " K"]:
    """The mean cosine of each predicted vector with the `neighbours` seen ones nearest to it.

    A vector that is near to many others is ranked first too often, so this is subtracted from scores.
    """
    nearest_KN, _ = jax.lax.top_k(v_KF @ seen_SF.T, min(neighbours, len(seen_SF)))
    return nearest_KN.mean(1)
