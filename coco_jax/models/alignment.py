"""Dual Cross-modality Alignment (arXiv 2401.11654): videos with action labels and descriptions.

The formulas, and the choices that the paper leaves open, are in docs/method.md, section 1.
All features are L2-normalised float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def normalise(x_D: Float[Array, "*B D"], epsilon: float = 1e-6) -> Float[Array, "*B D"]:
    """Scales vectors to unit length. Returns float32; the gradient at zero is finite."""
    x_D = x_D.astype(jnp.float32)
    return x_D * jax.lax.rsqrt(jnp.sum(x_D * x_D, -1, keepdims=True) + epsilon**2)


def cross_entropy(
    logits_BK: Float[Array, "B K"],
    label_B: Int[Array, " B"],
    mask_B: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the labels, in nats; labels are in [0, K).

    With a mask, the mean is over the rows where it is True; 0 if there are none.
    """
    log_p_B1 = jnp.take_along_axis(jax.nn.log_softmax(logits_BK), label_B[:, None], 1)
    if mask_B is None:
        return -log_p_B1.mean()
    return -jnp.where(mask_B, log_p_B1[:, 0], 0.0).sum() / jnp.maximum(mask_B.sum(), 1)


def class_to_video(logits_BK: Float[Array, "B K"], label_B: Int[Array, " B"]) -> Float[Array, ""]:
    """Cross-entropy of each class over the videos of the batch, with several positives.

    The target of a class is uniform over its videos. The mean is over classes with at least one.
    """
    positive_BK = jax.nn.one_hot(label_B, logits_BK.shape[1])
    count_K = positive_BK.sum(0)
    log_p_BK = jax.nn.log_softmax(logits_BK, axis=0)
    loss_K = -(positive_BK * log_p_BK).sum(0) / jnp.maximum(count_K, 1)
    return loss_K.sum() / (count_K > 0).sum()


def label_loss(
    v_BD: Float[Array, "B D"],
    l_KD: Float[Array, "K D"],
    label_B: Int[Array, " B"],
    tau: Float[Array, ""],
) -> Float[Array, ""]:
    """L_label: class-level alignment, video to class plus class to video.

    Args:
      v_BD: video embeddings, unit length.
      l_KD: label embeddings, unit length.
      label_B: indices of the videos' classes, in [0, K).
      tau: temperature of the softmax.
    """
    logits_BK = v_BD @ l_KD.T / tau
    return cross_entropy(logits_BK, label_B) + class_to_video(logits_BK, label_B)


def description_scores(
    v_BD: Float[Array, "B D"],
    d_KMD: Float[Array, "K M D"],
    tau_d: float,
    mask_KM: Bool[Array, "K M"] | None = None,
) -> Float[Array, "B K"]:
    """v . e_c(v), where each video attends over the descriptions of each class.

    a_m = softmax_m(v . d_cm / tau_d), e_c(v) = normalise(sum_m a_m d_cm). The `B K D` tensor of
    e_c(v) is not materialised: its dot product with v and its norm need only the similarities and
    the Gram matrix of the descriptions of a class.

    Args:
      v_BD: video embeddings, unit length.
      d_KMD: description embeddings, unit length.
      tau_d: temperature of the attention.
      mask_KM: False for padding, where a class has fewer than M descriptions.

    Returns:
      Scores in [-1, 1], float32.
    """
    s_BKM = jnp.einsum("bd,kmd->bkm", v_BD, d_KMD)
    a_BKM = _attention(s_BKM, tau_d, mask_KM)
    gram_KMM = jnp.einsum("kmd,knd->kmn", d_KMD, d_KMD)
    length2_BK = jnp.einsum("bkm,kmn,bkn->bk", a_BKM, gram_KMM, a_BKM)
    return (a_BKM * s_BKM).sum(-1) * jax.lax.rsqrt(length2_BK + 1e-12)


def description_weights(
    v_BD: Float[Array, "B D"],
    d_KMD: Float[Array, "K M D"],
    tau_d: float,
    mask_KM: Bool[Array, "K M"] | None = None,
) -> Float[Array, "B K M"]:
    """The attention a_m of `description_scores`, whose arguments it has: sums to 1 over descriptions."""
    return _attention(jnp.einsum("bd,kmd->bkm", v_BD, d_KMD), tau_d, mask_KM)


def _attention(
    s_BKM: jax.Array, tau_d: float, mask_KM: Bool[Array, "K M"] | None
) -> Float[Array, "B K M"]:
    logits_BKM = s_BKM / tau_d
    if mask_KM is not None:
        logits_BKM = jnp.where(mask_KM, logits_BKM, -jnp.inf)
    return jax.nn.softmax(logits_BKM)


def description_loss(
    v_BD: Float[Array, "B D"],
    d_KMD: Float[Array, "K M D"],
    label_B: Int[Array, " B"],
    tau: Float[Array, ""],
    tau_d: float,
) -> Float[Array, ""]:
    """L_desc: instance-level alignment with descriptions; arguments as in `description_scores`."""
    return cross_entropy(description_scores(v_BD, d_KMD, tau_d) / tau, label_B)


def semantic_features(
    l_KD: Float[Array, "K D"],
    d_KMD: Float[Array, "K M D"] | None,
    label_weight: float,
) -> Float[Array, "K D"]:
    """The class semantic features s_c, unit length, which do not depend on a video.

    Args:
      l_KD: label embeddings, unit length.
      d_KMD: description embeddings, unit length; None for the labels alone.
      label_weight: w in s_c = normalise(w l_c + (1 - w) normalise(mean_m d_cm)).
    """
    if d_KMD is None:
        return l_KD
    return normalise(label_weight * l_KD + (1 - label_weight) * normalise(d_KMD.mean(1)))
