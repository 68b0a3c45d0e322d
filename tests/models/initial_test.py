import jax
import numpy as np
import pytest
from flax import nnx

from coco_jax.models.initial import ParamKeys, repeat
from coco_jax.models.temporal import DividedAttention
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
    ],
    ids=["plain", "lora", "zero", "divided"],
)
def test_repeated_modules_are_those_that_are_built_one_after_another(options):
    def make(rngs):
        return Block(8, 2, **options, rngs=rngs)

    @jax.jit
    def parameters(key):
        keys = ParamKeys(key)
        before = keys.params()
        blocks = repeat(make, 3, keys)
        return before, [nnx.state(block) for block in blocks], keys.params()

    rngs = nnx.Rngs(params=jax.random.key(5))
    before, blocks, after = rngs.params(), [make(rngs) for _ in range(3)], rngs.params()
    expected = before, [nnx.state(block) for block in blocks], after
    actual = parameters(jax.random.key(5))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)


def test_repeated_modules_are_initialised_by_one_computation():
    def random_draws(count):
        def init(key):
            blocks = repeat(lambda rngs: Block(8, 2, rngs=rngs), count, ParamKeys(key))
            return [nnx.state(block) for block in blocks]

        return str(jax.make_jaxpr(init)(jax.random.key(0))).count("random_bits")

    assert random_draws(2) == random_draws(12) > 0
