"""Published video-text towers as they are: zero-shot recognition with CLIP, SigLIP or VideoPrism.

The towers were trained on images or videos with their texts. For an image tower, the vector of a video
is the mean over its frames; an action's vector is the mean over its name in prompt templates.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from coco_jax import presets, weights
from coco_jax.config import default, load_stored
from coco_jax.data.tokenizers import STYLES, published_tokenizer
from coco_jax.errors import UserError
from coco_jax.recognition import folder as folders
from coco_jax.recognition.recognizer import Recognizer, make_predictor, params_of, shapes_of
from coco_jax.weights import files, table

# `model_type` in a config.json of Hugging Face, and the preset with the default sizes of that type.
MODEL_TYPES = {"clip": "clip_b32", "siglip": "siglip_b16"}
SIGLIP2_VOCABULARY = 256_000
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
FIELDS = {  # of a tower's section in a config.json of Hugging Face
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_hidden_layers": "depth",
    "layer_norm_eps": "norm_epsilon",
}
# The activation of these cannot be seen in a file of weights, so a preset has to be named.
AMBIGUOUS = (weights.clip.HUGGING_FACE, weights.clip.OPEN_CLIP)


def is_hugging_face(stored: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a Hugging Face model whose sizes are known from it."""
    kind = stored.get("model_type")
    return isinstance(kind, str) and kind in MODEL_TYPES


def names() -> list[str]:
    """The presets that have both towers."""
    return [
        name
        for name, preset in presets.PRESETS.items()
        if preset.video_tower.get("weights") == preset.text_tower.get("weights")
    ]


def load_towers(where: str | None, name: str | None = None) -> Recognizer:
    """A recogniser of published towers.

    Args:
      where: `hf:org/name`, or a folder or file with the weights; by default those of the preset.
      name: the preset of the towers. By default it is that of these weights, is made from the
        config.json next to the weights, or is found by the shapes of the weights.

    Raises:
      UserError: the preset is unknown or does not fit, or files are missing or damaged.
    """
    config = _config(where, name)
    where, text = config.video_tower.weights, config.text
    program = make_predictor(config)
    try:
        tokenizer = published_tokenizer(
            text.tokenizer, text.tokenizer_style, text.length, text.vocabulary
        )
        arrays = weights.published(config, shapes_of(program))
    except UserError as error:
        raise _without_fields(error) from error
    arrays.setdefault("log_tau", np.log(np.float32(config.model.tau)))  # VideoPrism has none
    return Recognizer(
        config,
        tokenizer,
        program,
        params_of(arrays, program),
        f"the image-text or video-text pairs of the published towers {_short_name(where)}",
    )


def _short_name(where: str) -> str:
    """`hf:org/name`, or the last part of a path, with nothing that a terminal would interpret."""
    name = where if where.startswith("hf:") else pathlib.Path(where).name
    return "".join(filter(str.isprintable, name))[:200]


def _without_fields(error: UserError) -> UserError:
    """The error of a function that speaks to the author of a config, for somebody who has none."""
    text = str(error).replace("config.text.tokenizer", "tokenizer")
    text = re.sub(r"config\.\w+_tower\.weights", "weights", text)
    return UserError(
        re.sub(r"and set \w+ to its path", "and give the folder with it as the weights", text)
    )


def _config(where: str | None, name: str | None) -> ConfigDict:
    config = default()
    known = [n for n in names() if presets.PRESETS[n].video_tower["weights"] == where]
    name = name or next(iter(known), None)
    stored = None if name or where is None else _hugging_face_config(where)
    if name is None and where is not None and stored is None:
        name = _preset_of_shapes(where)
    if name is not None:
        presets.apply(config, name)
        if name not in names():
            raise UserError(
                f"towers: {name!r} has only one tower; choose one of {', '.join(names())}"
            )
    fields = config.to_dict() if stored is None else _convert(stored, str(where))
    video, text = fields["video_tower"], fields["text_tower"]
    where = where or video["weights"]
    if where != video["weights"]:
        video["weights"] = text["weights"] = where
        fields["text"]["tokenizer"] = _tokenizer(where, fields["text"])
    fields["ablation"], fields["model"]["dtype"] = "label", "float32"
    fields["data"]["name"] = "none"  # nothing is trained; a config needs one
    return load_stored(fields, where)


def _tokenizer(where: str, text: Mapping[str, Any]) -> str:
    """The place of the tokenizer: next to the weights, or else that of the preset."""
    if where.startswith("hf:"):
        return "/".join(where.split("/")[:2])
    folder = _folder_of(where)
    found = any((folder / file).is_file() for file in STYLES[text["tokenizer_style"]].files)
    return str(folder) if found else text["tokenizer"]


def _folder_of(where: str) -> pathlib.Path:
    path = pathlib.Path(where).expanduser()
    return path if path.is_dir() else path.parent


def _hugging_face_config(where: str) -> dict[str, Any] | None:
    """The config.json next to the weights; None if it is not one that tells the sizes."""
    if where.startswith("hf:"):
        repository = "/".join(where.split("/")[:2])
        path = files.locate(repository, "video_tower.weights", (folders.CONFIG,))
    else:
        path = _folder_of(where) / folders.CONFIG
        if not path.is_file():
            return None
    stored = folders.read_json(path, folders.CONFIG_LIMIT)
    return stored if is_hugging_face(stored) else None


def _convert(stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of our config for a config.json of Hugging Face."""
    kind = stored["model_type"]
    config = default()
    presets.apply(config, MODEL_TYPES[kind])
    fields = config.to_dict()
    sections = {
        part: folders.checked(
            {section: stored.get(section) or {}},
            section,
            lambda x: isinstance(x, dict),
            "{}",
            where,
        )
        for part, section in (("video_tower", "vision_config"), ("text_tower", "text_config"))
    }

    def number(part: str, name: str, default: float) -> Any:
        return folders.checked(
            {name: default} | sections[part],
            name,
            lambda x: type(x) in (int, float) and 0 < x < 1e9,
            "a number above 0",
            where,
        )

    for part, section in sections.items():
        tower = fields[part]
        hidden = number(part, "intermediate_size", round(tower["width"] * tower["mlp_ratio"]))
        for theirs, ours in FIELDS.items():
            tower[ours] = number(part, theirs, tower[ours])
        tower["mlp_ratio"] = hidden / tower["width"]
        if "hidden_act" in section:
            name = folders.checked(
                section,
                "hidden_act",
                lambda x: isinstance(x, str) and x in ACTIVATIONS,
                f"one of {', '.join(ACTIVATIONS)}",
                where,
            )
            tower["activation"] = ACTIVATIONS[name]
    video, text = fields["video_tower"], fields["text"]
    video["size"] = number("video_tower", "image_size", video["size"])
    video["patch"] = number("video_tower", "patch_size", video["patch"])
    text["vocabulary"] = number("text_tower", "vocab_size", text["vocabulary"])
    text["length"] = number("text_tower", "max_position_embeddings", text["length"])
    if kind == "clip":
        fields["model"]["dim"] = stored.get("projection_dim", fields["model"]["dim"])
    else:
        fields["model"]["dim"] = video["width"]
        if text["vocabulary"] == SIGLIP2_VOCABULARY:
            text["tokenizer_style"] = "siglip2"
            text["tokenizer"] = presets.PRESETS["siglip2_b16"].text["tokenizer"]
    return fields


def _preset_of_shapes(where: str) -> str:
    """The preset that has the shapes of the weights.

    Raises:
      UserError: none has, or the weights do not tell which of several models they are.
    """
    tensors = files.read(files.locate(where, "video_tower.weights", files.NAMES))
    family = table.family_of(tensors, weights.FAMILIES, where)
    tensors = family.plain(tensors)
    kernel = _tensor(family.video, "video/embed/kernel", tensors)
    embedding = _tensor(family.text, "text/embed/embedding", tensors)
    fitting = [
        name
        for name in names()
        for video, text, sizes, _ in [presets.PRESETS[name]]
        if kernel.size == 3 * video["patch"] ** 2 * video["width"]
        and embedding.shape == (sizes["vocabulary"], text["width"])
    ]
    if len(fitting) == 1 and family not in AMBIGUOUS:
        return fitting[0]
    likely = f" (its shapes are those of {', '.join(fitting)})" if fitting else ""
    raise UserError(
        f"{where}: has no config.json of a known kind, and a {family.name} file does not say which "
        f"model it is{likely}; name its towers, e.g. towers='clip_b32': one of {', '.join(names())}"
    )


def _tensor(rows: Sequence[table.Row], path: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor that fills the parameter `path`; an empty array if there is none."""
    found = (tensors.get(row.sources[0]) for row in rows if row.path == path)
    return next((x for x in found if x is not None), np.zeros(0))
