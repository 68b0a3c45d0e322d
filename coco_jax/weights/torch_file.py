"""Reads the tensors of a PyTorch file (.pt) without PyTorch, and without running code from the file."""

import collections
import io
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from coco_jax.errors import UserError


def _array(
    storage: tuple[np.dtype, bytes],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *unused: Any,
) -> np.ndarray:
    """A view of a storage; offset and strides count values. numpy checks that it lies inside."""
    dtype, data = storage
    size = dtype.itemsize
    return np.ndarray(shape, dtype, data, offset * size, [stride * size for stride in strides])


def _parameter(array: np.ndarray, *unused: Any) -> np.ndarray:
    return array


# The only names that a pickle may use.
ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _array,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "FloatStorage"): np.dtype(np.float32),
    ("torch", "HalfStorage"): np.dtype(np.float16),
    ("torch", "BFloat16Storage"): np.dtype(ml_dtypes.bfloat16),
}


class _TensorUnpickler(pickle.Unpickler):
    """Reads tensors as numpy arrays; any other name in the pickle is refused, so no code can run."""

    def __init__(self, archive: zipfile.ZipFile):
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        super().__init__(io.BytesIO(archive.read(name)))
        self._archive, self._folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the pickle names {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> tuple[np.dtype, bytes]:
        _, dtype, key, *_ = pid
        return dtype, self._archive.read(f"{self._folder}data/{key}")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `torch.save` wrote from a `state_dict()`, by name.

    The `state_dict()` may be the entry "state_dict" or "weights" of a dict.

    Raises:
      UserError: it is damaged, or has anything but float32, float16 and bfloat16 tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = _TensorUnpickler(archive).load()
        tensors = tree.get("state_dict", tree.get("weights", tree))
        for name, x in tensors.items():
            if not isinstance(x, np.ndarray):
                raise ValueError(f"{name} is a {type(x).__name__}")
        return dict(tensors)
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError),
        *(ValueError, TypeError, AttributeError, LookupError),
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: damaged, or contains more than tensors ({reason}); download it again"
        ) from error
