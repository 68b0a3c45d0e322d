"""Folders of models that people pass on: writing one, and reading one that a stranger made.

A folder has

- config.json: `format`, `format_version`, the `kind` of model, and its settings;
- model.safetensors: all tensors;
- tokenizer.json, or tokenizer.model if it is a sentencepiece model;
- texts.json: the texts, or the names that belong to text features;
- README.md: a model card, which nothing reads.

All of it is data: no file can make the reader run code. Sizes are compared with those that the settings
need before values are read.
"""

import json
import pathlib
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from coco_jax.errors import UserError
from coco_jax.files import parse_json, read_bytes
from coco_jax.version import __version__
from coco_jax.weights import files

FORMAT = "coco_jax model"
# The kinds of models, and the version of the format in which they are written. Version 2 of "pretrained"
# has `text_encoder`.
VERSIONS = {"coco": 1, "pretrained": 2}
CONFIG, WEIGHTS, TEXTS, CARD = "config.json", "model.safetensors", "texts.json", "README.md"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
CONFIG_LIMIT = 1 << 20  # bytes of config.json
TEXT_LIMIT = 32 << 20  # bytes of texts.json; in memory it takes several times as much
MAX_DEPTH = 20  # of JSON


class Content(NamedTuple):
    """What a folder contains."""

    kind: str  # a key of VERSIONS
    settings: Mapping[str, Any]  # JSON
    arrays: Mapping[str, np.ndarray]
    tokenizer: bytes
    texts: Mapping[str, Any]  # JSON
    card: str  # Markdown


def write(folder: pathlib.Path, content: Content) -> None:
    """Writes a new folder; config.json comes last, so that an incomplete folder cannot be loaded.

    Raises:
      UserError: the folder exists and is not empty, or cannot be written.
    """
    import safetensors.numpy

    head = {
        "format": FORMAT,
        "format_version": VERSIONS[content.kind],
        "kind": content.kind,
        "coco_jax": __version__,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: the folder is not empty; choose a new one")
        arrays = {name: np.asarray(x, order="C") for name, x in content.arrays.items()}
        safetensors.numpy.save_file(arrays, folder / WEIGHTS)
        is_json = content.tokenizer.lstrip()[:1] == b"{"
        (folder / TOKENIZERS[0 if is_json else 1]).write_bytes(content.tokenizer)
        _write_json(folder / TEXTS, content.texts)
        (folder / CARD).write_text(content.card, encoding="utf-8")
        _write_json(folder / CONFIG, head | dict(content.settings))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another"
        ) from error


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def read_json(path: pathlib.Path, limit: int) -> dict[str, Any]:
    """Reads a JSON object of at most `limit` bytes.

    Raises:
      UserError: it is missing, larger, or not a JSON object.
    """
    try:
        value = parse_json(read_bytes(path, limit))
        _check_depth(value)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({reason}); get the folder again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; get the folder again")
    return value


def _check_depth(value: Any) -> None:
    """Checks that values are not nested more than `MAX_DEPTH` times, so that recursion can read them."""
    level = [value]
    for _ in range(MAX_DEPTH):
        lists = [
            x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)
        ]
        level = [child for children in lists for child in children]
    if level:
        raise ValueError("nested too deeply")


def is_model(stored: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model that was saved."""
    return "format" in stored


def read_settings(folder: pathlib.Path, stored: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a model and its settings, from its config.json.

    Raises:
      UserError: it has another format, a later version, or an unknown kind.
    """
    where = folder / CONFIG
    if stored["format"] != FORMAT:
        raise UserError(f"{where}: the format is {reprlib.repr(stored['format'])}, not {FORMAT!r}")
    version = stored.get("format_version")
    if type(version) is not int or version < 1:
        raise UserError(f"{where}: format_version={reprlib.repr(version)} is not a version number")
    kind = stored.get("kind")
    if not isinstance(kind, str) or kind not in VERSIONS:
        raise UserError(f"{where}: kind={reprlib.repr(kind)} is not one of {', '.join(VERSIONS)}")
    if version > VERSIONS[kind]:
        raise UserError(
            f"{where}: the model has format version {reprlib.repr(version)}, and this coco_jax reads up "
            f"to {VERSIONS[kind]}; update coco_jax"
        )
    head = ("format", "format_version", "kind", "coco_jax")
    settings = {name: value for name, value in stored.items() if name not in head}
    if kind == "pretrained" and version == 1:
        settings["text_encoder"] = "minilm"
    return kind, settings


def checked(
    settings: Mapping[str, Any], name: str, check: Callable[[Any], bool], needed: str, where: Any
) -> Any:
    """`settings[name]`.

    Raises:
      UserError: it is missing, or `check` is False for it.
    """
    if name not in settings or not check(settings[name]):
        found = reprlib.repr(settings[name]) if name in settings else "nothing"
        raise UserError(f"{where}: {name} must be {needed}, and is {found}; get the folder again")
    return settings[name]


def is_line(value: Any) -> bool:
    """Whether a value is a short text that can be printed as it is."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 300


def tokenizer_path(folder: pathlib.Path) -> pathlib.Path:
    """The tokenizer of a folder.

    Raises:
      UserError: there is none, or it is too large.
    """
    for name in TOKENIZERS:
        path = folder / name
        if path.is_file():
            if path.stat().st_size > TEXT_LIMIT * 2:
                raise UserError(f"{path}: too large for a tokenizer; get the folder again")
            return path
    raise UserError(f"{folder}: has no {' or '.join(TOKENIZERS)}; get the folder again")


def read_arrays(
    folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Reads exactly these tensors as float32. Their shapes are compared before their values are read.

    Raises:
      UserError: the file is missing or damaged, or has other tensors or shapes.
    """
    import safetensors

    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: is missing; get the folder again")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged or truncated ({reason}); get it again") from error
    for name in sorted(shapes.keys() | found.keys(), key=_natural):
        if found.get(name) != shapes.get(name):
            raise UserError(
                f"{path}: {reprlib.repr(name)} has shape {found.get(name, 'none, it is missing')}, and "
                f"{CONFIG} needs {shapes.get(name, 'no such tensor')}; get the folder again"
            )
    return files.read(path)


def _natural(name: str) -> list[Any]:
    """Sorts `layers/2` before `layers/10`."""
    return [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
