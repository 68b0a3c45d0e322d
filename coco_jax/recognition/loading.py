"""Finds out what a place has, and loads the recogniser there; `coco_jax.load` calls it."""

import pathlib

from coco_jax.errors import UserError
from coco_jax.recognition import folder as folders
from coco_jax.recognition.pretrained import PretrainedRecognizer
from coco_jax.recognition.ranking import Path
from coco_jax.recognition.recognizer import Recognizer
from coco_jax.recognition.towers import is_hugging_face, load_towers
from coco_jax.weights import files

WEIGHTS = (".safetensors", ".npz", *files.PICKLES)  # of pickles, the error says how to convert them


def load(where: Path, towers: str | None) -> Recognizer | PretrainedRecognizer:
    """Loads the recogniser that `where` names; see `coco_jax.load`."""
    text = str(where)
    if towers is not None or text.startswith(("hf:", "package:")):
        return load_towers(text, towers)
    path = pathlib.Path(where).expanduser()
    if path.is_file():
        return load_towers(str(path))
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; give the folder of a model or of a run, weights of published "
            "towers, or hf:org/name"
        )
    if (path / "checkpoints").is_dir():  # of a run
        return Recognizer.load(path)
    config = path / folders.CONFIG
    stored = folders.read_json(config, folders.CONFIG_LIMIT) if config.is_file() else {}
    if folders.is_model(stored):
        kind, settings = folders.read_settings(path, stored)
        if kind == "pretrained":
            return PretrainedRecognizer.of_saved(path, settings)
        return Recognizer.of_saved(path, settings)
    is_run = bool({"video_tower", "video"} & stored.keys())
    has_weights = any(file.suffix in WEIGHTS for file in path.iterdir())
    if not is_run and (has_weights or is_hugging_face(stored)):
        return load_towers(str(path))
    return Recognizer.load(path)
