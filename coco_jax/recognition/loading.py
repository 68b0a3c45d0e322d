"""Finds out what a place has, and loads the recogniser there; `coco_jax.load` calls it."""

import pathlib
from typing import Any

from coco_jax.errors import UserError
from coco_jax.recognition import folder as folders
from coco_jax.recognition.feature_recognizer import FeatureRecognizer
from coco_jax.recognition.pretrained import PretrainedRecognizer
from coco_jax.recognition.ranking import Path
from coco_jax.recognition.recognizer import Recognizer
from coco_jax.recognition.towers import is_hugging_face, load_towers
from coco_jax.training.checkpoint import read_json
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
    config = path / folders.CONFIG
    if (path / "checkpoints").is_dir():  # of a run
        return _class_of(read_json(config) if config.is_file() else {}).load(path)
    stored = folders.read_json(config, folders.CONFIG_LIMIT) if config.is_file() else {}
    if folders.is_model(stored):
        kind, settings = folders.read_settings(path, stored)
        if kind == "pretrained":
            return PretrainedRecognizer.of_saved(path, settings)
        return _class_of(settings.get("config")).of_saved(path, settings)
    is_run = bool({"video_tower", "video"} & stored.keys())
    has_weights = any(file.suffix in WEIGHTS for file in path.iterdir())
    if not is_run and (has_weights or is_hugging_face(stored)):
        return load_towers(str(path))
    return _class_of(stored).load(path)


def _class_of(config: Any) -> type[Recognizer]:
    """The class that runs the model of a stored config, which is checked later."""
    tower = config.get("video_tower") if isinstance(config, dict) else None
    has_features = isinstance(tower, dict) and tower.get("kind") == "features"
    return FeatureRecognizer if has_features else Recognizer
