"""I3D, the inflated Inception network for video (arXiv 1705.07750): a video tower."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

WIDTH = 1024  # of the features: the output of Mixed_5c, averaged over time and space


class _Branches(NamedTuple):
    """Output channels of an Inception module: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1."""

    direct: int
    reduce_b: int
    b: int
    reduce_c: int
    c: int
    pooled: int

    @property
    def total(self) -> int:
        return self.direct + self.b + self.c + self.pooled


# Table 1 of GoogLeNet (arXiv 1409.4842), whose 2-D network I3D inflates.
MIXED = {
    "3b": _Branches(64, 96, 128, 16, 32, 32),
    "3c": _Branches(128, 128, 192, 32, 96, 64),
    "4b": _Branches(192, 96, 208, 16, 48, 64),
    "4c": _Branches(160, 112, 224, 24, 64, 64),
    "4d": _Branches(128, 128, 256, 24, 64, 64),
    "4e": _Branches(112, 144, 288, 32, 64, 64),
    "4f": _Branches(256, 160, 320, 32, 128, 128),
    "5b": _Branches(256, 160, 320, 32, 128, 128),
    "5c": _Branches(384, 192, 384, 48, 128, 128),
}


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: the output has ceil(size / stride) values; odd padding goes to the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def conv3d(
    x_BTHWC: Float[Array, "B T H W C"], kernel: Float[Array, "t h w C D"], stride: int = 1
) -> Float[Array, "B U V X D"]:
    """A 3-D convolution with SAME padding, computed as 2-D convolutions over frames.

    On CPUs, XLA's 3-D convolutions are slow and its 2-D convolutions are fast. The result equals that of
    `jax.lax.conv_general_dilated` up to rounding.

    Args:
      x_BTHWC: the input.
      kernel: covers t frames; a kernel of shape `1 1 1 C D` is applied as a matrix product.
      stride: in time, height and width.
    """
    if (*kernel.shape[:3], stride) == (1, 1, 1, 1):
        return x_BTHWC @ kernel[0, 0, 0]
    if kernel.shape[0] == 3 and stride == 1 and x_BTHWC.dtype == jnp.float32:
        return jax.lax.platform_dependent(
            x_BTHWC, kernel, cpu=_convolve_frame_pairs, default=_convolve_frames
        )
    return _convolve_frames(x_BTHWC, kernel, stride)


def _convolve_2d(x_BTHWC: jax.Array, kernel_hwCD: jax.Array, stride: int) -> jax.Array:
    """A 2-D convolution of each frame."""
    sizes = zip(x_BTHWC.shape[2:4], kernel_hwCD.shape[:2], strict=True)
    out_NVXD = jax.lax.conv_general_dilated(
        x_BTHWC.reshape(-1, *x_BTHWC.shape[2:]),
        kernel_hwCD,
        (stride, stride),
        [_same_padding(size, k, stride) for size, k in sizes],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out_NVXD.reshape(*x_BTHWC.shape[:2], *out_NVXD.shape[1:])


def _convolve_frames(x_BTHWC: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The sum of a 2-D convolution for each frame of the kernel."""
    frames, height, width, channels, out_channels = kernel.shape
    steps = -(-x_BTHWC.shape[1] // stride)
    padding = _same_padding(x_BTHWC.shape[1], frames, stride)
    x_BPHWC = jnp.pad(x_BTHWC, ((0, 0), padding, (0, 0), (0, 0), (0, 0)))
    taps = [x_BPHWC[:, t : t + stride * (steps - 1) + 1 : stride] for t in range(frames)]
    if channels * frames <= 64:
        # The stem has few channels: stack the kernel's frames as channels of a single convolution.
        kernel_hwED = jnp.moveaxis(kernel, 0, 2).reshape(height, width, -1, out_channels)
        return _convolve_2d(jnp.concatenate(taps, -1), kernel_hwED, stride)
    products = [_convolve_2d(tap, kernel[t], stride) for t, tap in enumerate(taps)]
    return functools.reduce(jnp.add, products)


@jax.checkpoint  # The gradient needs the input only, not the sums and differences of its frames.
def _convolve_frame_pairs(x_BTHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Four 2-D convolutions for each two frames of the output, in place of six.

    This is Winograd's minimal filtering F(2, 3) along time: for frames d0 to d3 and the kernel's frames
    g0 to g2, the outputs d0 g0 + d1 g1 + d2 g2 and d1 g0 + d2 g1 + d3 g2 are sums of the four products
    below (arXiv 1509.09308, section 4.1).
    """
    steps = x_BTHWC.shape[1]
    x_BPHWC = jnp.pad(x_BTHWC, ((0, 0), (1, 1 + steps % 2), (0, 0), (0, 0), (0, 0)))
    last = x_BPHWC.shape[1] - 4  # where the last four frames start
    d0, d1, d2, d3 = (x_BPHWC[:, t : t + last + 1 : 2] for t in range(4))
    g0, g1, g2 = kernel
    first = _convolve_2d(d0 - d2, g0, 1)
    second = _convolve_2d(d1 + d2, (g0 + g1 + g2) / 2, 1)
    third = _convolve_2d(d2 - d1, (g0 - g1 + g2) / 2, 1)
    fourth = _convolve_2d(d1 - d3, g2, 1)
    pairs_BU2HWD = jnp.concatenate(
        [(first + second + third)[:, :, None], (second - third - fourth)[:, :, None]], 2
    )
    return pairs_BU2HWD.reshape(x_BTHWC.shape[0], -1, *pairs_BU2HWD.shape[3:])[:, :steps]


def max_pool(
    x_BTHWC: Float[Array, "B T H W C"], window: tuple[int, int, int], strides: tuple[int, int, int]
) -> Float[Array, "B U V X C"]:
    """Max pooling with SAME padding over time, height and width.

    It is computed axis by axis: three maxima of 3 values for a window of 3 x 3 x 3, not one of 27.
    """
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True), 1):
        sizes, steps = [1] * 5, [1] * 5
        sizes[axis], steps[axis] = size, stride
        x_BTHWC = jax.lax.reduce_window(x_BTHWC, -jnp.inf, jax.lax.max, sizes, steps, "SAME")
    return x_BTHWC


class Unit(nnx.Module):
    """A convolution, its bias, and ReLU. Batch norm is folded into both (weights/i3d.py)."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: int,
        stride: int = 1,
        *,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, size, channels, out_channels)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x_BTHWC: Float[Array, "B T H W C"]) -> Float[Array, "B U V X D"]:
        """Applies the unit."""
        dtype = self.dtype or x_BTHWC.dtype
        out = conv3d(x_BTHWC.astype(dtype), self.kernel[...].astype(dtype), self.stride)
        return jax.nn.relu(out + self.bias[...].astype(dtype))


class Mixed(nnx.Module):
    """An Inception module: four branches, concatenated."""

    def __init__(self, channels: int, branches: _Branches, *, dtype: Any = None, rngs: nnx.Rngs):
        def unit(channels: int, out_channels: int, size: int) -> Unit:
            return Unit(channels, out_channels, size, dtype=dtype, rngs=rngs)

        self.direct = unit(channels, branches.direct, 1)
        self.reduce_b = unit(channels, branches.reduce_b, 1)
        self.b = unit(branches.reduce_b, branches.b, 3)
        self.reduce_c = unit(channels, branches.reduce_c, 1)
        self.c = unit(branches.reduce_c, branches.c, 3)
        self.pooled = unit(channels, branches.pooled, 1)

    def __call__(self, x_BTHWC: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        """Applies the module."""
        pooled = max_pool(x_BTHWC, (3, 3, 3), (1, 1, 1))
        parts = (
            self.direct(x_BTHWC),
            self.b(self.reduce_b(x_BTHWC)),
            self.c(self.reduce_c(x_BTHWC)),
            self.pooled(pooled),
        )
        return jnp.concatenate(parts, -1)


class I3D(nnx.Module):
    """I3D up to Mixed_5c: from a clip to one vector of 1,024 values.

    The published weights expect RGB in [-1, 1], 64 frames of 224 x 224 pixels at 25 frames per second;
    inputs of at least 9 frames of 32 x 32 pixels also work. Batch norm is folded into the convolutions,
    so its statistics stay as published even if the tower is trained.
    """

    def __init__(self, *, remat: bool = False, dtype: Any = None, rngs: nnx.Rngs):
        """Builds the tower.

        Args:
          remat: recompute activations in the backward pass instead of storing them.
          dtype: of activations.
          rngs: random state for the initial parameters.
        """
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.stem = Unit(3, 64, 7, 2, **settings)
        self.conv2b = Unit(64, 64, 1, **settings)
        self.conv2c = Unit(64, 192, 3, **settings)
        channels, modules = 192, {}
        for name, branches in MIXED.items():
            modules[name] = Mixed(channels, branches, **settings)
            channels = branches.total
        self.mixed = nnx.Dict(modules)
        self.remat = remat

    def __call__(
        self, video_BTHWC: Float[Array, "B T H W 3"], key: jax.Array | None = None
    ) -> Float[Array, "B 1024"]:
        """The mean of Mixed_5c over time and space. `key` is unused: there is no dropout."""
        del key
        apply = nnx.remat(Mixed.__call__) if self.remat else Mixed.__call__

        def mixed(names: Sequence[str], x: jax.Array) -> jax.Array:
            for name in names:
                x = apply(self.mixed[name], x)
            return x

        x = max_pool(self.stem(video_BTHWC), (1, 3, 3), (1, 2, 2))
        x = max_pool(self.conv2c(self.conv2b(x)), (1, 3, 3), (1, 2, 2))
        x = max_pool(mixed(("3b", "3c"), x), (3, 3, 3), (2, 2, 2))
        x = max_pool(mixed(("4b", "4c", "4d", "4e", "4f"), x), (2, 2, 2), (2, 2, 2))
        return mixed(("5b", "5c"), x).astype(jnp.float32).mean((1, 2, 3))
