"""Cross-action Invariance Mining (arXiv 2401.11654): the cycle between seen and unseen classes.

The formulas are in docs/method.md, section 2. The squared error and the optional terms are our choice.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from coco_jax.models.alignment import normalise


class Attend(nnx.Module):
    """attend(q, kv) = softmax(norm(q Wq) norm(kv Wk)^T / tau_r) (kv Wv) Wo.

    The weights are initialised as identity matrices. With `learned=False` there are no weights.
    """

    def __init__(self, width: int, heads: int, tau_r: float, learned: bool):
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads, self.tau_r = heads, tau_r
        self.learned = learned
        if learned:
            self.query, self.key, self.value, self.out = (
                nnx.Param(jnp.eye(width)) for _ in range(4)
            )

    def __call__(
        self, q_QD: Float[Array, "Q D"], kv_KD: Float[Array, "K D"]
    ) -> Float[Array, "Q D"]:
        """Reconstructs each of Q queries from K keys and values; the result is not normalised."""
        mixed_HQE = self.weights(q_QD, kv_KD) @ self._heads(kv_KD, "value")
        mixed_QD = rearrange(mixed_HQE, "h q e -> q (h e)")
        return mixed_QD @ self.out[...] if self.learned else mixed_QD

    def weights(
        self, q_QD: Float[Array, "Q D"], kv_KD: Float[Array, "K D"]
    ) -> Float[Array, "H Q K"]:
        """The attention of each head: sums to 1 over the keys."""
        q_HQE, k_HKE = self._heads(q_QD, "query"), self._heads(kv_KD, "key")
        logits_HQK = jnp.einsum("hqe,hke->hqk", normalise(q_HQE), normalise(k_HKE)) / self.tau_r
        return jax.nn.softmax(logits_HQK)

    def _heads(self, x_KD: jax.Array, name: str) -> jax.Array:
        if self.learned:
            x_KD = x_KD @ getattr(self, name)[...]
        return rearrange(x_KD, "k (h e) -> h k e", h=self.heads)


class Invariance(nnx.Module):
    """The cycle between the class semantic spaces of seen and unseen actions."""

    def __init__(self, width: int, *, heads: int, tau_r: float, learned: bool):
        self.to_unseen = Attend(width, heads, tau_r, learned)
        self.to_seen = Attend(width, heads, tau_r, learned)

    def __call__(self, s_SD: Float[Array, "S D"], s_UD: Float[Array, "U D"]) -> Float[Array, "S D"]:
        """S~_s: seen classes rebuilt from unseen ones, which are rebuilt from seen ones; unit length."""
        rebuilt_UD = normalise(self.to_unseen(s_UD, s_SD))
        return normalise(self.to_seen(s_SD, rebuilt_UD))


def cycle_loss(
    rebuilt_SD: Float[Array, "S D"], s_SD: Float[Array, "S D"], form: str, tau: Float[Array, ""]
) -> Float[Array, ""]:
    """L_cycle, the error of the reconstructed seen classes.

    Args:
      rebuilt_SD: reconstructions, unit length.
      s_SD: class semantic features of the seen classes, unit length.
      form: "squared": mean squared distance; "contrastive": cross-entropy of each reconstruction over
        the seen classes.
      tau: temperature of the contrastive form.

    Raises:
      ValueError: `form` is neither of the two.
    """
    match form:
        case "squared":
            return jnp.square(rebuilt_SD - s_SD).sum(-1).mean()
        case "contrastive":
            log_p_SS = jax.nn.log_softmax(rebuilt_SD @ s_SD.T / tau)
            return -jnp.diagonal(log_p_SS).mean()
        case _:
            raise ValueError(f"cycle.form is {form!r}; must be 'squared' or 'contrastive'")
