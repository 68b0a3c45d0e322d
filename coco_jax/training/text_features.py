"""A frozen text tower's side of a run: every text through it once, by way of the description bank."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from coco_jax.data import text_feature_cache as bank
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import Task
from coco_jax.training.step import Params, Program

BATCH = 1024  # texts a call of the tower


def with_features(task: Task, program: Program, params: Params) -> Task:
    """The task with features in place of token ids, where the text tower does not learn.

    Else (`config.text_tower.trainable` is not "none"), and of a task that has them already, as it is.

    All texts of the corpus go into the bank, whichever classes this run uses.

    Raises:
      UserError: the bank is damaged, or there is no room for it.
    """
    config = task.config
    if config.text_tower.trainable != "none":
        return task
    templates = config.text.templates
    labels = {
        which: [template.format(name) for name in names for template in templates]
        for which, names in task.names.items()
    }
    texts = [text for some in labels.values() for text in some]
    uses_descriptions = config.ablation in ("label+desc", "full")
    if uses_descriptions:
        texts += [text for some in task.corpus.texts.values() for text in some]

    width = config.text_tower.width

    def encode(some: Sequence[str]) -> np.ndarray:
        ids_XL = np.zeros((BATCH, task.tokenizer.length), np.int32)  # one shape, compiled once
        ids_XL[: len(some)] = task.tokenizer(some)
        return np.asarray(program.text_features(params, ids_XL))[: len(some)]

    folder = pathlib.Path(config.data.dir) / "banks" / text_feature_cache_key(task, params)
    store = bank.fill(
        folder, texts, encode, width, batch=BATCH, about={"corpus": config.text.corpus}
    )
    features = {
        which: store.features(some).reshape(-1, len(templates), width)
        for which, some in labels.items()
    }
    banks: dict[str, DescriptionSampler | None] = {
        which: store.bank(task.corpus.texts, names) if uses_descriptions else None
        for which, names in task.names.items()
    }
    return dataclasses.replace(task, label_ids=features, banks=banks)


def text_feature_cache_key(task: Task, params: Params) -> str:
    """The bank's name: tower (parameters and shape), tokenizer, and length of the texts."""
    tower = {**task.config.text_tower.to_dict(), "dtype": task.config.model.dtype}
    tower["style"] = task.config.text.tokenizer_style
    parts = [json.dumps(tower, sort_keys=True).encode(), task.tokenizer.model]
    parts.append(str(task.tokenizer.length).encode())
    for path, leaf in jax.tree.leaves_with_path(params["text"]):
        parts += [jax.tree_util.keystr(path).encode(), _whole(leaf).tobytes()]
    return bank.key(parts)


def _whole(leaf: jax.Array) -> np.ndarray:
    """A parameter whole on this process, wherever its pieces are."""
    from jax.experimental import multihost_utils

    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
