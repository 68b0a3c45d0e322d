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

    If the keys are `ParamKeys`, the modules are initialised in a compiled loop. Their initialisation is
    then traced twice and compiled once, whatever `count` is.

    Args:
      make: builds one module. It must take all keys from its argument and the same number at each call,
        and must not call `repeat`. All arrays of the module must be in `nnx.Variable`s.
      count: number of modules.
      rngs: the keys.

    Returns:
      The modules.

    Raises:
      ValueError: `make` calls `repeat`.
    """
    if not isinstance(rngs, ParamKeys) or count < 2:
        return [make(rngs) for _ in range(count)]
    first = rngs.used
    if not isinstance(first, int):
        raise ValueError("`repeat` cannot be used in a function that `repeat` calls")

    def build(first: int | jax.Array) -> tuple[nnx.GraphDef, nnx.State, int | jax.Array]:
        keys = ParamKeys(rngs.key, first)
        return *nnx.split(make(keys)), keys.used

    # Not `nnx.vmap`: it splits the key, so all parameters would differ from those of the plain list.
    # The structure of a module and the number of its keys are not arrays, so `eval_shape` cannot return
    # them; the traced function leaves them in a list.
    static: list = []
    jax.eval_shape(lambda: static.extend(build(first)[::2]))
    graph, used = static
    each = used - first
    rngs.used = first + count * each
    state = jax.lax.map(lambda first: build(first)[1], first + each * jnp.arange(count))
    return [nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(count)]
