"""Reads the tensors of a PyTorch file (.pt) without PyTorch, and without running code from the file."""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from coco_jax import arrays
from coco_jax.errors import UserError

MAX_PICKLE = 16 << 20  # bytes; it has 200 bytes for each tensor
DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}


class _Storage(NamedTuple):
    """The values of one or more tensors: the name of their type, and of their member of the archive."""

    kind: str
    key: str


class _Tensor(NamedTuple):
    """What the pickle says about a tensor. A pickle could change an array; it cannot change this."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *unused: Any) -> Any:
    return tensor


# The only names that a pickle may use.
ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): name for name in DTYPES},
}


class _TensorUnpickler(pickle.Unpickler):
    """Reads descriptions of tensors; any other name in the pickle is refused, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the pickle names {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return _Storage(kind, key)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `torch.save` wrote from a `state_dict()`, by name.

    The `state_dict()` may be the entry "state_dict" or "weights" of a dict.

    Raises:
      UserError: it is damaged, a decompression bomb, or has anything but float32, float16 and bfloat16
        tensors.
    """
    try:
        with arrays.open_zip(path) as archive, arrays.damage_is_value_error():
            return _read(archive, path.stat().st_size)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: damaged, or contains more than tensors ({reason}); download it again"
        ) from error


def _read(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    if (length := archive.getinfo(pickled).file_size) > MAX_PICKLE:
        raise ValueError(f"a pickle of {length:,} bytes, more than {MAX_PICKLE:,}")
    tree = _plain(_TensorUnpickler(io.BytesIO(archive.read(pickled))).load())
    tensors = _plain(tree.get("state_dict", tree.get("weights", tree)))
    for name, x in tensors.items():
        if not isinstance(name, str) or not isinstance(x, _Tensor):
            raise ValueError(f"{name!r:.99} is a {type(x).__name__}")
    # As float32. Tensors may share values, so that together they may be larger than the file.
    total = 4 * sum(math.prod(x.shape) for x in tensors.values())
    if total > arrays.MAX_BYTES and total > arrays.MAX_RATIO * size:
        raise ValueError(
            f"its tensors have {total:,} bytes, more than {arrays.MAX_RATIO} times its size"
        )
    folder = pickled.removesuffix("data.pkl")
    keys = {x.storage.key for x in tensors.values()}
    data = {key: archive.read(f"{folder}data/{key}") for key in keys}
    return {name: _array(x, data[x.storage.key]) for name, x in tensors.items()}


def _plain(tree: Any) -> dict[Any, Any]:
    """A copy of a dict: a pickle can replace the methods of an OrderedDict."""
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__}, not a dict of tensors")
    return dict(tree)


def _array(x: _Tensor, data: bytes) -> np.ndarray:
    """A view of a storage; offset and strides count values. numpy checks that it lies inside."""
    dtype = DTYPES[x.storage.kind]
    strides = [stride * dtype.itemsize for stride in x.strides]
    return np.ndarray(x.shape, dtype, data, x.offset * dtype.itemsize, strides)
