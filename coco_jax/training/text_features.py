"""Features of a frozen text tower: each text is embedded once and cached on disk."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from coco_jax.config import uses_descriptions
from coco_jax.data import text_feature_cache
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import Task
from coco_jax.training import multihost
from coco_jax.training.step import Params, Program

BATCH = 1024  # texts in each call of the tower


def with_features(task: Task, program: Program, params: Params) -> Task:
    """Replaces token ids by text features, if the text tower is frozen.

    A task with a trainable text tower is returned unchanged. All texts of the corpus are cached, also
    those of classes that this run does not use, so that other runs find them.

    Raises:
      UserError: the cache cannot be read or written, e.g. because the disk is full.
    """
    config = task.config
    if config.text_tower.trainable != "none":
        return task
    templates = config.text.templates
    labels = {
        group: [template.format(name) for name in names for template in templates]
        for group, names in task.classes.items()
    }
    texts = [text for prompts in labels.values() for text in prompts]
    with_descriptions = uses_descriptions(config)
    if with_descriptions:
        texts += [text for descriptions in task.corpus.texts.values() for text in descriptions]

    width = config.text_tower.width

    def encode(batch: Sequence[str]) -> np.ndarray:
        # Always the same shape, so that the tower is compiled once.
        ids_XL = np.zeros((BATCH, task.tokenizer.length), np.int32)
        ids_XL[: len(batch)] = task.tokenizer(batch)
        features_XW = np.asarray(program.text_features(params, ids_XL))
        return multihost.from_first_process(features_XW)[: len(batch)]

    folder = pathlib.Path(config.data.dir) / "text_features" / cache_key(task, params)
    cache = text_feature_cache.fill(
        folder, texts, encode, width, batch=BATCH, about={"corpus": config.text.corpus},
        processes=text_feature_cache.Processes(jax.process_index(), multihost.gather_json),
    )  # fmt: skip
    features = {
        group: cache.features(prompts).reshape(-1, len(templates), width)
        for group, prompts in labels.items()
    }
    samplers: dict[str, DescriptionSampler | None] = {
        group: cache.sampler(task.corpus.texts, names) if with_descriptions else None
        for group, names in task.classes.items()
    }
    return dataclasses.replace(task, label_ids=features, descriptions=samplers)


def cache_key(task: Task, params: Params) -> str:
    """The name of a cache: a hash of the tower's parameters and architecture, tokenizer, text length."""
    tower = {**task.config.text_tower.to_dict(), "dtype": task.config.model.dtype}
    tower["style"] = task.config.text.tokenizer_style
    parts = [json.dumps(tower, sort_keys=True).encode(), task.tokenizer.model]
    parts.append(str(task.tokenizer.length).encode())
    for path, leaf in jax.tree.leaves_with_path(params["text"]):
        parts += [jax.tree_util.keystr(path).encode(), _gather(leaf).tobytes()]
    return text_feature_cache.key(parts)


def _gather(leaf: jax.Array) -> np.ndarray:
    """Gathers a parameter from all processes."""
    from jax.experimental import multihost_utils

    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
