"""I3D on a CPU: a window of 64 frames, float32, against torch's conv3d with the same weights.

python -m benchmarks.i3d

Calls of the two alternate. torch has the layout channels_last_3d, and batch norm is folded in both.
A product of two matrices of 2,048 x 2,048 values is timed between them.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
import torch
from absl import app, flags
from flax import nnx
from torch.nn import functional

from benchmarks import timing
from coco_jax.models.i3d import I3D, Mixed, Unit

REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls of each.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 1, "Windows in a call.", lower_bound=1)
LAYOUT = torch.channels_last_3d


def _pad(x: torch.Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], value: float):
    """TensorFlow's SAME padding."""
    padding: list[int] = []
    for size, kernel, stride in reversed(list(zip(x.shape[2:], sizes, strides, strict=True))):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return functional.pad(x, padding, value=value) if any(padding) else x


class TorchI3D:
    """The same network, with the parameters of ours."""

    def __init__(self, tower: I3D):
        """Copies the parameters."""
        self.tower, self.units = tower, {}
        for _, unit in nnx.iter_graph(tower):
            if isinstance(unit, Unit):
                kernel = torch.tensor(np.asarray(unit.kernel[...])).permute(4, 3, 0, 1, 2)
                bias = torch.tensor(np.asarray(unit.bias[...]))
                self.units[id(unit)] = kernel.contiguous(memory_format=LAYOUT), bias

    def unit(self, x: torch.Tensor, unit: Unit) -> torch.Tensor:
        """Convolution, bias, ReLU."""
        kernel, bias = self.units[id(unit)]
        x = _pad(x, kernel.shape[2:], (unit.stride,) * 3, 0.0)
        return functional.relu_(functional.conv3d(x, kernel, bias, stride=unit.stride))

    def pool(self, x: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        """Max pooling."""
        return functional.max_pool3d(_pad(x, size, stride, float("-inf")), size, stride)

    def mixed(self, x: torch.Tensor, module: Mixed) -> torch.Tensor:
        """An Inception module."""
        parts = (
            self.unit(x, module.direct),
            self.unit(self.unit(x, module.reduce_b), module.b),
            self.unit(self.unit(x, module.reduce_c), module.c),
            self.unit(self.pool(x, (3, 3, 3), (1, 1, 1)), module.pooled),
        )
        return torch.cat(parts, 1)

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> np.ndarray:
        """Features `B 1024` of videos `B 3 T H W`."""
        tower, spatial = self.tower, ((1, 3, 3), (1, 2, 2))
        x = self.pool(self.unit(x, tower.stem), *spatial)
        x = self.pool(self.unit(self.unit(x, tower.conv2b), tower.conv2c), *spatial)
        for name, module in tower.mixed.items():
            if name == "4b":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            x = self.mixed(x, module)
        return x.mean((2, 3, 4)).numpy()


def gflop(params: nnx.State, video: np.ndarray) -> float:
    """Operations of the direct convolutions, which are used in bfloat16, by XLA's count."""
    graph = nnx.graphdef(I3D(dtype=jax.numpy.bfloat16, rngs=nnx.Rngs(0)))
    lowered = jax.jit(lambda params, video: nnx.merge(graph, params)(video)).lower(params, video)
    return lowered.cost_analysis()["flops"] / 1e9


def main(argv: list[str]) -> None:
    """Prints the times, their ratios, and the largest difference of the features."""
    del argv
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (BATCH.value, 64, 224, 224, 3)).astype(np.float32)
    tower = I3D(rngs=nnx.Rngs(0))
    graph, params = nnx.split(tower)
    ours = (
        jax.jit(lambda params, video: nnx.merge(graph, params)(video))
        .lower(params, video)
        .compile()
    )
    theirs = TorchI3D(tower)
    channels_first = torch.tensor(video).permute(0, 4, 1, 2, 3).contiguous(memory_format=LAYOUT)
    calls: dict[str, Callable[[], np.ndarray]] = {
        "coco_jax": lambda: np.asarray(ours(params, video)),
        "torch": functools.partial(theirs, channels_first),
    }
    first = {name: call() for name, call in calls.items()}
    difference = np.abs(first["coco_jax"] - first["torch"]).max()
    calls[timing.PRODUCT] = timing.matrix_product()
    times = timing.measure(calls, REPEATS.value)
    timing.show("a window", times)
    own, other = times["coco_jax"], times["torch"]
    rate = timing.rate(times[timing.PRODUCT])
    ours_rate = gflop(params, video) / own.best
    print(
        f"time / torch's time: {own.best / other.best:.2f} (best), {own.median / other.median:.2f} "
        f"(median); CPU time {own.cpu / other.cpu:.2f}\n"
        f"matrix product {rate:.0f} GFLOP/s; I3D {ours_rate:.0f}, counted as direct convolutions: "
        f"{ours_rate / rate:.2f} of it\n"
        f"largest difference of features {difference:.1e}, of values up to {first['torch'].max():.1f}\n"
        f"temporary memory {ours.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB; torch "
        f"{torch.__version__}, jax {jax.__version__}"
    )


if __name__ == "__main__":
    app.run(main)
