"""Cross-action Invariance Mining: unseen classes rebuilt from seen ones, and seen ones again.

METHOD's section 2 (docs/method.md). The squared error and the optional terms are our choice.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from coco_jax.models.alignment import normalise

FORMS = ("squared", "contrastive")


class Attend(nnx.Module):
    """attend(q, kv) = softmax(norm(q Wq) norm(kv Wk)^T / tau_r) (kv Wv) Wo, from the identity on."""

    def __init__(self, width: int, heads: int, tau_r: float, learned: bool):
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads, self.tau_r = heads, tau_r
        self.learned = learned
        if learned:
            self.query, self.key, self.value, self.out = (
                nnx.Param(jnp.eye(width)) for _ in range(4)
            )

    def __call__(
        self, q_QD: Float[Array, "Q D"], kv_KD: Float[Array, "K D"]
    ) -> Float[Array, "Q D"]:
        """Rebuilds each of Q from the K; not normalised."""
        q_HQE, k_HKE = self._heads(q_QD, "query"), self._heads(kv_KD, "key")
        logits_HQK = jnp.einsum("hqe,hke->hqk", normalise(q_HQE), normalise(k_HKE)) / self.tau_r
        mixed_HQE = jax.nn.softmax(logits_HQK) @ self._heads(kv_KD, "value")
        mixed_QD = rearrange(mixed_HQE, "h q e -> q (h e)")
        return mixed_QD @ self.out[...] if self.learned else mixed_QD

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
        """S~_s: the seen classes, rebuilt from the unseen ones that were rebuilt from them."""
        rebuilt_UD = normalise(self.to_unseen(s_UD, s_SD))
        return normalise(self.to_seen(s_SD, rebuilt_UD))


def cycle_loss(
    rebuilt_SD: Float[Array, "S D"], s_SD: Float[Array, "S D"], form: str, tau: Float[Array, ""]
) -> Float[Array, ""]:
    """L_cycle: `squared` error of the reconstruction, or `contrastive`: find it among the classes."""
    match form:
        case "squared":
            return jnp.square(rebuilt_SD - s_SD).sum(-1).mean()
        case "contrastive":
            log_p_SS = jax.nn.log_softmax(rebuilt_SD @ s_SD.T / tau)
            return -jnp.diagonal(log_p_SS).mean()
        case _:
            raise ValueError(f"cycle form is {form!r}, not one of {FORMS}")
