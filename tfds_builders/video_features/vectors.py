"""One vector from the features of a video."""

import numpy as np

from coco_jax.arrays import NUMBERS, to_float32


def vector(x: np.ndarray) -> np.ndarray:
    """Converts features [D], or [T, D] by their mean, to float32 [D].

    The result is a scalar if `x` is one, and empty if it has no values.

    Raises:
      ValueError: they are not real numbers.
    """
    if x.dtype.kind not in NUMBERS:
        x = to_float32(x)
    if x.ndim > 1 and x.size:  # the sum is in float64, without a copy of all values
        x = x.reshape(-1, x.shape[-1]).mean(0, dtype=np.float64)
    return to_float32(x if x.size else x.reshape(-1))
