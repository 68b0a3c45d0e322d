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


def centre(x_KNW: Float[Array, "K *N W"], mean_NW: Float[Array, "*N W"]) -> Float[Array, "K *N W"]:
    """Subtracts the mean over the seen classes; returns unit vectors."""
    return normalise(x_KNW - mean_NW)


def similarity(
    x_KNW: Float[Array, "K N W"], y_SNW: Float[Array, "S N W"], weight_N: Float[Array, " N"]
) -> Float[Array, "K S"]:
    """The weighted sum over the blocks of the dot products of two sets of classes."""
    dot_NKS = jnp.einsum("knw,snw->nks", x_KNW, y_SNW)
    return jnp.einsum("nks,n->ks", dot_NKS, weight_N)


def gaussian_kernel(
    x_KNW: Float[Array, "K N W"],
    y_SNW: Float[Array, "S N W"],
    weight_N: Float[Array, " N"],
    width: Float[Array, ""] | float,
) -> Float[Array, "K S"]:
    """exp(-sum_n weight_n (1 - cosine_n) / width).

    Args:
      x_KNW: text features of K classes, centred, unit length in each block.
      y_SNW: the same of S classes.
      weight_N: of the blocks.
      width: of the kernel.
    """
    return jnp.exp((similarity(x_KNW, y_SNW, weight_N) - weight_N.sum()) / width)


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
    # There are usually fewer classes to predict (K) than values in a vector (F).
    return normalise(coefficients(k_KS, gram_SS, strength) @ v_SF)


def coefficients(
    k_KS: Float[Array, "K S"], gram_SS: Float[Array, "S S"], strength: Float[Array, ""] | float
) -> Float[Array, "K S"]:
    """k (G + strength I)^-1: the share of each seen class in the vectors of K classes; any sign."""
    factor = jax.scipy.linalg.cho_factor(gram_SS + strength * jnp.eye(len(gram_SS)))
    return jax.scipy.linalg.cho_solve(factor, k_KS.T).T


def predict(
    x_KNW: Float[Array, "K N W"],
    seen_SNW: Float[Array, "S N W"],
    v_SF: Float[Array, "S F"],
    weight_N: Float[Array, " N"],
    width: Float[Array, ""] | float,
    strength: Float[Array, ""] | float,
) -> Float[Array, "K F"]:
    """The vectors that K classes have by their texts, with the Gaussian kernel; unit length.

    Args:
      x_KNW: text features of the classes in each block.
      seen_SNW: text features of the seen classes.
      v_SF: vectors of the seen classes, unit length.
      weight_N: of the blocks.
      width: of the kernel.
      strength: of the regularisation.
    """
    mean_NW = seen_SNW.mean(0)
    x_KNW, seen_SNW = centre(x_KNW, mean_NW), centre(seen_SNW, mean_NW)
    gram_SS = gaussian_kernel(seen_SNW, seen_SNW, weight_N, width)
    return solve(gaussian_kernel(x_KNW, seen_SNW, weight_N, width), gram_SS, v_SF, strength)


def predict_linear(
    x_KNW: Float[Array, "K N W"], seen_SNW: Float[Array, "S N W"], v_SF: Float[Array, "S F"]
) -> Float[Array, "K F"]:
    """As `predict`, by linear ridge regression from the concatenated blocks: the usual baseline."""
    mean_NW, weight_N = seen_SNW.mean(0), jnp.ones(seen_SNW.shape[1])
    x_KNW, seen_SNW = centre(x_KNW, mean_NW), centre(seen_SNW, mean_NW)
    gram_SS = similarity(seen_SNW, seen_SNW, weight_N)
    return solve(
        similarity(x_KNW, seen_SNW, weight_N), gram_SS, v_SF, LINEAR_STRENGTH[len(weight_N)]
    )


def hubness(
    v_KF: Float[Array, "K F"], seen_SF: Float[Array, "S F"], neighbours: int
) -> Float[Array, " K"]:
    """The mean cosine of each predicted vector with the `neighbours` seen ones nearest to it.

    A vector that is near to many others is ranked first too often, so this is subtracted from scores.
    """
    nearest_KN, _ = jax.lax.top_k(v_KF @ seen_SF.T, min(neighbours, len(seen_SF)))
    return nearest_KN.mean(1)
