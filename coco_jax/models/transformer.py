"""Pre-norm transformer blocks and the ways to pool a sequence into one vector."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class Mlp(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(
        self, width: int, hidden: int, *, activation: str = "gelu", dtype=None, rngs: nnx.Rngs
    ):
        self.up = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x_BND: Float[Array, "*B N D"]) -> Float[Array, "*B N D"]:
        """Maps each token by itself."""
        return self.down(ACTIVATIONS[self.activation](self.up(x_BND)))


class Block(nnx.Module):
    """Pre-norm self-attention and MLP, each with a residual connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, dtype=dtype, decode=False, rngs=rngs, keep_rngs=False
        )
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, int(width * mlp_ratio), activation=activation, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        x_BND: Float[Array, "*B N D"],
        mask_B1NN: Bool[Array, "*B 1 #N N"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "*B N D"]:
        """Mixes the tokens. `mask` is True where a query may look; `key` turns dropout on."""
        keys = (None, None) if key is None else jax.random.split(key)
        y_BND = self.attention(self.norm1(x_BND), mask=mask_B1NN)
        x_BND = x_BND + self._drop(y_BND, keys[0])
        return x_BND + self._drop(self.mlp(self.norm2(x_BND)), keys[1])

    def _drop(self, x_BND, key):
        return self.dropout(x_BND, deterministic=key is None, rngs=key)


class Blocks(nnx.Module):
    """A stack of blocks; `remat` recomputes their activations in the backward pass."""

    def __init__(self, depth: int, *args, remat: bool = False, rngs: nnx.Rngs, **kwargs):
        self.layers = nnx.List([Block(*args, rngs=rngs, **kwargs) for _ in range(depth)])
        self.remat = remat

    def __call__(
        self,
        x_BND: Float[Array, "*B N D"],
        mask_B1NN: Bool[Array, "*B 1 #N N"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "*B N D"]:
        """Applies the blocks in order."""
        apply = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for i, layer in enumerate(self.layers):
            x_BND = apply(
                layer, x_BND, mask_B1NN, None if key is None else jax.random.fold_in(key, i)
            )
        return x_BND


class AttentionPool(nnx.Module):
    """One learned query that attends over the tokens, then an MLP (SigLIP's "map" head)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        activation="gelu",
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, width)))
        self.attention = nnx.MultiHeadAttention(
            heads, width, dtype=dtype, decode=False, rngs=rngs, keep_rngs=False
        )
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, int(width * mlp_ratio), activation=activation, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_BND: Float[Array, "B N D"],
        mask_B11N: Bool[Array, "B 1 1 N"] | None = None,
    ) -> Float[Array, "B D"]:
        """Pools the tokens that `mask` shows."""
        probe = jnp.broadcast_to(self.probe[...], (x_BND.shape[0], 1, x_BND.shape[-1]))
        y_B1D = self.attention(probe.astype(x_BND.dtype), x_BND, mask=mask_B11N)
        return (y_B1D + self.mlp(self.norm(y_B1D)))[:, 0]
