"""Features of a frozen text tower: each text is embedded once and cached on disk."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from coco_jax import sharding, weights
from coco_jax.config import default, load_stored, uses_definitions, uses_descriptions
from coco_jax.data import text_feature_cache
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import Task, label_texts
from coco_jax.models.text import PADDING_ID
from coco_jax.training import multihost
from coco_jax.training.step import Params, Program, make_program

BATCH = 1024  # texts in each call of the tower
LENGTH_STEP = 8  # their length in tokens is a multiple of this


def with_features(task: Task, program: Program, params: Params) -> Task:
    """Replaces token ids by text features, if the text tower is frozen.

    A task with a trainable text tower is returned unchanged. All texts of the corpus and of the classes
    of the dataset are cached, also those that this run does not use, so that other runs find them.

    Raises:
      UserError: the cache cannot be read or written, e.g. because the disk is full.
    """
    config = task.config
    if config.text_tower.trainable != "none":
        return task
    is_learned = config.alignment == "learned"
    if is_learned:
        key = cache_key(task, params)
    else:  # the model has no text tower
        tower = json.dumps(_tower_config(config).to_dict())
        program, params = _text_tower(tower)
        key = _text_tower_key(tower, task.tokenizer.model)
    definitions = task.corpus.definitions
    labels = {
        group: label_texts(config, names, definitions) for group, names in task.classes.items()
    }
    every_class = task.dataset.display_names(task.dataset.classes)
    texts = label_texts(config, [*every_class, *task.classes["pool"]], definitions)
    with_descriptions = uses_descriptions(config)
    if with_descriptions:
        texts += [text for descriptions in task.corpus.texts.values() for text in descriptions]

    width = config.text_tower.width

    def encode(batch: Sequence[str]) -> np.ndarray:
        ids_xL = task.tokenizer(batch)
        length = ids_xL.shape[1]
        # The tower ignores padding, so leave out what all texts of the batch have.
        if config.text_tower.mask_padding:
            longest = int(np.flatnonzero((ids_xL != PADDING_ID).any(0)).max(initial=0)) + 1
            length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, length)
        # Few shapes, so that the tower is compiled a few times only.
        ids_XL = np.full((BATCH, length), PADDING_ID, np.int32)
        ids_XL[: len(batch)] = ids_xL[:, :length]
        features_XW = np.asarray(program.text_features(params, ids_XL))
        return multihost.from_first_process(features_XW)[: len(batch)]

    cache = text_feature_cache.fill(
        pathlib.Path(config.data.dir) / "text_features" / key,
        texts,
        encode,
        width,
        batch=BATCH,
        about={"corpus": config.text.corpus},
        processes=text_feature_cache.Processes(jax.process_index(), multihost.gather_json),
    )
    of_each = len(config.text.templates) + uses_definitions(config)
    features = {
        group: cache.features(prompts).reshape(-1, of_each, width)
        for group, prompts in labels.items()
    }
    samplers: dict[str, DescriptionSampler | None] = {
        group: cache.sampler(task.corpus.texts, names) if with_descriptions else None
        for group, names in task.classes.items()
    }
    task = dataclasses.replace(task, label_ids=features, descriptions=samplers)
    return task if is_learned else dataclasses.replace(task, pool=class_features(task, "pool"))


def class_features(task: Task, group: str) -> Float[np.ndarray, "K N W"]:
    """One unit vector for each class of a group and each of its kinds of texts (`config.text_blocks`).

    "label" is the mean over the prompt templates, "captions" over the first `text.eval_descriptions`
    descriptions; each text counts as a unit vector.

    Args:
      task: a result of `with_features`.
      group: "seen", "pool" or "unseen".
    """
    config = task.config
    labels_KPW = _unit(task.label_ids[group])
    prompts = len(config.text.templates)
    blocks = [labels_KPW[:, :prompts].mean(1)]
    if uses_definitions(config):
        blocks.append(labels_KPW[:, prompts])
    if uses_descriptions(config):
        sampler = task.descriptions[group]
        assert sampler is not None
        captions_KMW, mask_KM = sampler.first(config.text.eval_descriptions)
        blocks.append((_unit(captions_KMW) * mask_KM[..., None]).sum(1))
    return _unit(np.stack(blocks, 1))


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _tower_config(config: ConfigDict) -> ConfigDict:
    """The config of a CoCo that is used for its text tower alone; equal for the runs of a sweep."""
    with_tower = config.copy_and_resolve_references()
    tower_only = default()
    for section in ("text", "text_tower", "lora", "model", "mesh"):
        tower_only[section] = with_tower[section]
    tower_only.data.name = config.data.name
    tower_only.seed = 0 if config.text_tower.weights else config.seed
    tower_only.ablation, tower_only.text.definitions = "label", "never"
    tower_only.video_tower.update(kind="features", linear=True, feature_dim=1)
    tower_only.model.update(start="random", centre=False)
    return tower_only


@functools.lru_cache(maxsize=1)
def _text_tower(config_json: str) -> tuple[Program, Params]:
    config = load_stored(json.loads(config_json), "config")
    program = make_program(config, sharding.make_mesh(config))
    return program, weights.load(config, program.init(jax.random.key(config.seed)).params)


@functools.lru_cache(maxsize=4)
def _text_tower_key(config_json: str, tokenizer: bytes) -> str:
    _, params = _text_tower(config_json)
    return _key(load_stored(json.loads(config_json), "config"), tokenizer, params)


def cache_key(task: Task, params: Params) -> str:
    """The name of a cache: a hash of the tower's parameters and architecture, tokenizer, text length."""
    return _key(task.config, task.tokenizer.model, params)


def _key(config: ConfigDict, tokenizer: bytes, params: Params) -> str:
    tower = {**config.text_tower.to_dict(), "dtype": config.model.dtype}
    tower["style"] = config.text.tokenizer_style
    parts = [json.dumps(tower, sort_keys=True).encode(), tokenizer]
    parts.append(str(config.text.length).encode())
    for path, leaf in jax.tree.leaves_with_path(params["text"]):
        parts += [jax.tree_util.keystr(path).encode(), _gather(leaf).tobytes()]
    return text_feature_cache.key(parts)


def _gather(leaf: jax.Array) -> np.ndarray:
    """Gathers a parameter from all processes."""
    from jax.experimental import multihost_utils

    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
