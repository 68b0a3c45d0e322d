"""The keys of the initial parameters, and layers that are initialised together."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


class ParamKeys(nnx.Rngs):
    """The keys of the parameters: those of `nnx.Rngs(params=key)`, but counted in Python.

    While a function is traced, each update of the count of `nnx.Rngs` builds an error message that is
    not shown, in a time that grows with the size of the model. With 48 layers that takes minutes.
    """

    def __init__(self, key: jax.Array, used: int | jax.Array = 0):
        """The keys that follow the first `used` ones."""
        self.key, self.used = key, used

    def params(self) -> jax.Array:
        """The next key."""
        self.used += 1
        return jax.random.fold_in(self.key, self.used - 1)


def repeat(make: Callable[[nnx.Rngs], Module], count: int, rngs: nnx.Rngs) -> list[Module]:
    """`count` modules with the parameters that `[make(rngs) for _ in range(count)]` would give them.

    If the keys are `ParamKeys`, the modules are initialised in a loop of the compiled program. Their
    initialisation is then traced and compiled once, not `count` times.

    Args:
      make: builds one module; each call must use the same number of keys.
      count: number of modules.
      rngs: the keys.
    """
    if not isinstance(rngs, ParamKeys) or count < 2:
        return [make(rngs) for _ in range(count)]

    def build(first: int | jax.Array) -> tuple[nnx.GraphDef, nnx.State, int | jax.Array]:
        keys = ParamKeys(rngs.key, first)
        return *nnx.split(make(keys)), keys.used

    first = rngs.used
    # The first tracing gives the structure of a module and the number of keys that it uses.
    static: list = []
    jax.eval_shape(lambda: static.extend(build(first)[::2]))
    graph, used = static
    each = used - first
    rngs.used = first + count * each
    state = jax.lax.map(lambda first: build(first)[1], first + each * jnp.arange(count))
    return [nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(count)]
