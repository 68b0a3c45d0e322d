"""Functions that convert a checkpoint's tensor to one of our parameters: layout, heads, positions.

Each takes one or more float32 tensors and the shape of the parameter, and returns a float32 array.
They raise a ValueError if the tensor does not fit; its message continues the sentence "TENSOR ...".
"""

import functools
import math
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]


def _reshape(x: np.ndarray, shape: Shape) -> np.ndarray:
    if x.size != math.prod(shape):
        raise ValueError(f"has {x.size} values, but the config needs shape {tuple(shape)}")
    return x.reshape(shape)


def same(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The tensor unchanged, except that leading axes of length 1 are removed if it has too many axes."""
    while x.ndim > len(shape) and x.shape[0] == 1:
        x = x[0]
    return x


def transpose(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(out, in), as in torch, -> (in, out)."""
    return x.T


def to_heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(heads x head_dim, in) -> (in, heads, head_dim)."""
    return _reshape(x.T, (x.shape[1], *shape[1:]))


def from_heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(out, heads x head_dim) -> (heads, head_dim, out)."""
    return _reshape(x.T, (*shape[:2], x.shape[0]))


def heads(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(heads x head_dim) -> (heads, head_dim)."""
    return _reshape(x, shape)


def convolution(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(out, colour, rows, columns), as in torch, -> (rows x columns x colour, out)."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def patches(x: np.ndarray, shape: Shape) -> np.ndarray:
    """(rows, columns, colour, out), as in Flax, -> (rows x columns x colour, out)."""
    return x.reshape(-1, x.shape[-1])


def add_one(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The scale of a norm that is stored minus 1."""
    return x + 1


def root_scaled(x: np.ndarray, shape: Shape) -> np.ndarray:
    """An embedding that the original model multiplies by the square root of its width."""
    return same(x, shape).reshape(shape) * math.sqrt(x.shape[-1])


def first(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Row 0."""
    return x[0]


def identity(shape: Shape) -> np.ndarray:
    """The identity matrix, for towers without a projection."""
    if shape[0] != shape[1]:
        raise ValueError(
            f"is {shape[0]} x {shape[1]} in the config, but the checkpoint has no projection: "
            f"config.model.dim must be the tower's width, {shape[0]}"
        )
    return np.eye(shape[0], dtype=np.float32)


def identity_if_square(shape: Shape) -> np.ndarray | None:
    """The identity matrix, or None (keep the random initial value) if the parameter is not square."""
    return np.eye(shape[0], dtype=np.float32) if shape[0] == shape[1] else None


def log_tau(x: np.ndarray, shape: Shape) -> np.ndarray:
    """log(temperature) from log(logit scale), its negative."""
    return -_reshape(x, shape)


def rows(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Position embeddings of the first `shape[0]` tokens of a text."""
    x = same(x, shape)
    if len(x) < shape[0]:
        raise ValueError(f"has {len(x)} positions; set config.text.length to at most {len(x)}")
    return x[: shape[0]]


def cubic_weights(before: int, after: int) -> np.ndarray:
    """The (after, before) matrix of one-dimensional cubic interpolation with a = -0.75 (Keys 1981).

    It equals torch's `bicubic` without aligned corners or antialiasing, with which the reference
    implementations resize position embeddings. `jax.image.resize` uses a = -0.5.
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


def linear_weights(before: int, after: int, antialias: bool = True) -> np.ndarray:
    """The (after, before) matrix of linear interpolation, by default antialiased if smaller."""
    stretch = max(before / after, 1.0) if antialias else 1.0
    center = (np.arange(after)[:, None] + 0.5) * before / after - 0.5
    matrix = np.maximum(0, 1 - np.abs(center - np.arange(before)) / stretch)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _grid(x: np.ndarray, count: int, weights: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Resizes a square grid of position embeddings (N, D) to (count, D)."""
    before, after = math.isqrt(len(x)), math.isqrt(count)
    if before**2 != len(x) or after**2 != count:
        raise ValueError(f"has {len(x)} positions, the config {count}; both must be square grids")
    if before == after:
        return x
    matrix = weights(before, after)
    grid = x.reshape(before, before, -1)
    return np.einsum("ab,cd,bde->ace", matrix, matrix, grid).reshape(count, -1)


def grid(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Position embeddings of the patches, resized cubically to `shape[0]` patches."""
    return _grid(same(x, shape), shape[0], cubic_weights)


def grid_after_cls(x: np.ndarray, shape: Shape) -> np.ndarray:
    """As `grid`, with the position embedding of a class token first, which is not resized."""
    return np.concatenate([x[:1], _grid(x[1:], shape[0] - 1, cubic_weights)])


def linear_grid(x: np.ndarray, shape: Shape) -> np.ndarray:
    """As `grid`, but resized linearly, as in VideoPrism."""
    return _grid(same(x, shape), shape[0], linear_weights)


def pe_grid(x: np.ndarray, shape: Shape) -> np.ndarray:
    """As `grid` or, with a class token, `grid_after_cls`, but resized linearly without antialiasing.

    As in PE. No square grid has one position more than another, so the number of positions says
    whether there is a class token.
    """
    x = same(x, shape)
    ours, theirs = (count - math.isqrt(count) ** 2 for count in (shape[0], len(x)))
    if ours != theirs:
        raise ValueError(
            f"has {len(x)} positions, the config {shape[0]}, so only one of them has a class token; set "
            f"config.video_tower.class_token={bool(theirs)}"
        )
    weights = functools.partial(linear_weights, antialias=False)
    return np.concatenate([x[:theirs], _grid(x[theirs:], shape[0] - ours, weights)])


def linear_line(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Position embeddings of the time steps, resized linearly, as in VideoPrism."""
    x = same(x, shape)
    return x if len(x) == shape[0] else linear_weights(len(x), shape[0]) @ x
