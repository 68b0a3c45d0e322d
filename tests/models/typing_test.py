"""Shapes in types are checked while tests run: the checking itself is what is tested here."""

import jax.numpy as jnp
import jaxtyping
import pytest

from coco_jax.models import alignment


def test_a_shape_that_does_not_fit_its_type_is_an_error():
    with pytest.raises(jaxtyping.TypeCheckError, match="label_B"):
        alignment.cross_entropy(jnp.ones((3, 4)), jnp.zeros(5, jnp.int32))
