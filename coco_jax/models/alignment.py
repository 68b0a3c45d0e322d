"""Dual Cross-modality Alignment: videos against action labels and against descriptions.

The formulas are METHOD's (docs/method.md, section 1); what the paper leaves open is marked there.
All features are L2-normalised float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def normalise(x_D: Float[Array, "*B D"], epsilon: float = 1e-6) -> Float[Array, "*B D"]:
    """Scales vectors to unit length, in float32; its gradient at zero is finite."""
    x_D = x_D.astype(jnp.float32)
    return x_D * jax.lax.rsqrt(jnp.sum(x_D * x_D, -1, keepdims=True) + epsilon**2)


def cross_entropy(logits_BK: Float[Array, "B K"], label_B: Int[Array, " B"]) -> Float[Array, ""]:
    """Mean negative log-likelihood (nats) of the labels."""
    log_p_BK = jax.nn.log_softmax(logits_BK)
    return -jnp.take_along_axis(log_p_BK, label_B[:, None], 1).mean()


def class_to_video(logits_BK: Float[Array, "B K"], label_B: Int[Array, " B"]) -> Float[Array, ""]:
    """Each class that the batch shows picks its videos out of the batch; all of them are positives.

    The target of a class is uniform over its videos; classes without a video do not count.
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
    """L_label: class-level alignment in both directions."""
    logits_BK = v_BD @ l_KD.T / tau
    return cross_entropy(logits_BK, label_B) + class_to_video(logits_BK, label_B)


def description_scores(
    v_BD: Float[Array, "B D"],
    d_KMD: Float[Array, "K M D"],
    tau_d: float,
    mask_KM: Bool[Array, "K M"] | None = None,
) -> Float[Array, "B K"]:
    """v . e_c(v), where a video picks among each class's descriptions by attention.

    a_m = softmax_m(v . d_cm / tau_d), e_c(v) = normalise(sum_m a_m d_cm). The B x K x D tensor of
    e_c(v) is never made: its dot product with v and its length need only the similarities and the
    Gram matrix of a class's descriptions. `shown` is False where a class has fewer than M.
    """
    s_BKM = jnp.einsum("bd,kmd->bkm", v_BD, d_KMD)
    logits_BKM = s_BKM / tau_d
    if mask_KM is not None:
        logits_BKM = jnp.where(mask_KM, logits_BKM, -jnp.inf)
    a_BKM = jax.nn.softmax(logits_BKM)
    gram_KMM = jnp.einsum("kmd,knd->kmn", d_KMD, d_KMD)
    length2_BK = jnp.einsum("bkm,kmn,bkn->bk", a_BKM, gram_KMM, a_BKM)
    return (a_BKM * s_BKM).sum(-1) * jax.lax.rsqrt(length2_BK + 1e-12)


def description_loss(
    v_BD: Float[Array, "B D"],
    d_KMD: Float[Array, "K M D"],
    label_B: Int[Array, " B"],
    tau: Float[Array, ""],
    tau_d: float,
) -> Float[Array, ""]:
    """L_desc: instance-level alignment of a video with what it picked of each class."""
    return cross_entropy(description_scores(v_BD, d_KMD, tau_d) / tau, label_B)


def semantic_features(
    l_KD: Float[Array, "K D"],
    d_KMD: Float[Array, "K M D"] | None,
    label_weight: float,
    mask_KM: Bool[Array, "K M"] | None = None,
) -> Float[Array, "K D"]:
    """The class semantic features s_c: label and mean description, no video involved."""
    if d_KMD is None:
        return l_KD
    mask_KM1 = jnp.ones(d_KMD.shape[:2])[..., None] if mask_KM is None else mask_KM[..., None]
    mean_KD = (d_KMD * mask_KM1).sum(1) / mask_KM1.sum(1)
    return normalise(label_weight * l_KD + (1 - label_weight) * normalise(mean_KD))
