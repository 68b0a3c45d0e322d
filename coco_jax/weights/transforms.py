"""How a tensor of a checkpoint becomes a parameter of ours: layouts, heads, positions.

Each takes the tensors and the shape of the parameter; a `ValueError` says what does not fit.
"""

import math

import numpy as np

Shape = tuple[int, ...]


def same(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The tensor; axes of length 1 at its front may go."""
    while x.ndim > len(shape) and x.shape[0] == 1:
        x = x[0]
    return x


def flat(x: np.ndarray, shape: Shape) -> np.ndarray:
    """All that the tensor holds, as a vector."""
    return x.reshape(-1)


def turned(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(out, in) of torch's linear layers as our (in, out)."""
    return x.T


def to_heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(heads x each, in) as our (in, heads, each)."""
    return x.T.reshape(x.shape[1], *shape[1:])


def from_heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(out, heads x each) as our (heads, each, out)."""
    return x.T.reshape(*shape[:2], x.shape[0])


def heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(heads x each) as our (heads, each)."""
    return x.reshape(shape)


def convolution(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(out, colour, rows, columns) of torch as our patches (rows x columns x colour, out)."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def patches(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(rows, columns, colour, out) of flax as our patches (rows x columns x colour, out)."""
    return x.reshape(-1, x.shape[-1])


def one_up(x: np.ndarray, shape: Shape) -> np.ndarray:
    """A norm's scale that is stored as its distance from 1."""
    return x + 1


def root_scaled(x: np.ndarray, shape: Shape) -> np.ndarray:
    """An embedding whose model multiplies it with the root of its width."""
    return same(x, shape).reshape(shape) * math.sqrt(x.shape[-1])


def first(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The first row."""
    return x[0]


def identity(shape: Shape) -> np.ndarray:
    """A projection that changes nothing."""
    if shape[0] != shape[1]:
        raise ValueError(
            f"these towers have no projection: config.model.dim must be their width, {shape[0]}"
        )
    return np.eye(shape[0], dtype=np.float32)


def identity_if_square(shape: Shape) -> np.ndarray | None:
    """A projection that changes nothing, where there can be one; None leaves it to chance."""
    return np.eye(shape[0], dtype=np.float32) if shape[0] == shape[1] else None


def zeros_bias(shape: Shape) -> np.ndarray:
    """A bias of a projection that changes nothing."""
    return np.zeros(shape, np.float32)


def log_tau(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The logarithm of a temperature, of a logit scale's."""
    return -x.reshape(shape)


def rows(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The positions of texts: as many as we have tokens."""
    x = same(x, shape)
    if len(x) < shape[0]:
        raise ValueError(f"has {len(x)} positions; config.text.length of {shape[0]} is too long")
    return x[: shape[0]]


def cubic_weights(before: int, after: int) -> np.ndarray:
    """The matrix (after, before) that resizes by cubic convolution with a = -0.75.

    It is torch's `bicubic` without corner alignment or antialiasing, which is what the published
    towers are interpolated with; jax.image has another constant.
    """
    a, matrix = -0.75, np.zeros((after, before))
    for row in range(after):
        center = (row + 0.5) * before / after - 0.5
        for tap in range(math.floor(center) - 1, math.floor(center) + 3):
            t = abs(center - tap)
            weight = (
                (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4)
            )
            matrix[row, min(max(tap, 0), before - 1)] += weight
    return matrix.astype(np.float32)


def linear_weights(before: int, after: int) -> np.ndarray:
    """The matrix (after, before) that resizes linearly, antialiased where it shrinks."""
    stretch = max(before / after, 1.0)
    center = (np.arange(after)[:, None] + 0.5) * before / after - 0.5
    matrix = np.maximum(0, 1 - np.abs(center - np.arange(before)) / stretch)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _grid(x: np.ndarray, count: int, weights) -> np.ndarray:
    """A square grid of positions (N, D) resized to `count` of them."""
    before, after = math.isqrt(len(x)), math.isqrt(count)
    if before**2 != len(x) or after**2 != count:
        raise ValueError(f"is no square grid: {len(x)} positions here, {count} ours")
    if before == after:
        return x
    matrix = weights(before, after)
    grid = x.reshape(before, before, -1)
    return np.einsum("ab,cd,bde->ace", matrix, matrix, grid).reshape(count, -1)


def grid(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Positions of a frame's patches, interpolated to ours."""
    return _grid(same(x, shape), shape[0], cubic_weights)


def grid_after_cls(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The class token's position, then those of the patches, interpolated to ours."""
    return np.concatenate([x[:1], _grid(x[1:], shape[0] - 1, cubic_weights)])


def linear_grid(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Positions of a frame's patches, interpolated as VideoPrism does it."""
    return _grid(same(x, shape), shape[0], linear_weights)


def linear_line(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Positions in time, interpolated as VideoPrism does it."""
    x = same(x, shape)
    return x if len(x) == shape[0] else linear_weights(len(x), shape[0]) @ x
