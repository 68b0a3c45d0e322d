import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax.models.initial import ParamKeys, repeat
from coco_jax.models.temporal import DividedAttention, TemporalShift
from coco_jax.models.transformer import Block


def test_param_keys_are_the_keys_of_nnx_rngs():
    ours, theirs = ParamKeys(jax.random.key(3)), nnx.Rngs(params=jax.random.key(3))
    for _ in range(5):
        assert (jax.random.key_data(ours.params()) == jax.random.key_data(theirs.params())).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": (2, 0.5)},
        {"zero": True, "norm": "post"},
        {"mixer": lambda rngs: DividedAttention(2, 8, 2, epsilon=1e-6, rngs=rngs)},
        {"mixer": lambda _: TemporalShift(2, 8)},
    ],
    ids=["plain", "lora", "zero", "divided", "shift"],
)
def test_repeated_modules_are_those_that_are_built_one_after_another(options):
    def make(rngs):
        return Block(8, 2, **options, rngs=rngs)

    def build_each(make, count, rngs):
        return [make(rngs) for _ in range(count)]

    def results(build):
        """Parameters and outputs of three blocks, and the keys before and after them."""
        keys = ParamKeys(jax.random.key(5))
        before = keys.params()
        blocks = build(make, 3, keys)
        x_BND = jnp.linspace(-1, 1, 4 * 5 * 8).reshape(4, 5, 8)
        outputs = [block(x_BND) for block in blocks]
        states = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
        return states, outputs, jax.random.key_data(before), jax.random.key_data(keys.params())

    actual = jax.jit(results, static_argnums=0)(repeat)
    expected = jax.jit(results, static_argnums=0)(build_each)
    # XLA may round the last bit of a random value in another way in a loop.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, actual, expected)


def test_repeated_modules_are_initialised_by_one_computation():
    def keys_made(count):
        def init(key):
            blocks = repeat(lambda rngs: Block(8, 2, rngs=rngs), count, ParamKeys(key))
            return [nnx.state(block) for block in blocks]

        return str(jax.make_jaxpr(init)(jax.random.key(0))).count("random_fold_in")

    assert keys_made(2) == keys_made(12) > 0


def test_repeat_inside_repeat_is_an_error():
    def make(rngs):
        return nnx.List(repeat(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 2, rngs))

    with pytest.raises(ValueError, match="`repeat` cannot be used in a function that `repeat`"):
        jax.eval_shape(lambda: nnx.state(repeat(make, 2, ParamKeys(jax.random.key(0)))[0]))
