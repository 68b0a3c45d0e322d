"""Tests that jaxtyping checks shapes while the tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from coco_jax.models import alignment


def test_wrong_argument_shape_raises_type_check_error():
    with pytest.raises(jaxtyping.TypeCheckError, match="label_B"):
        alignment.cross_entropy(jnp.ones((3, 4)), jnp.zeros(5, jnp.int32))
