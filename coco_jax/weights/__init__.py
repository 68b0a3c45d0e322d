"""Loads published checkpoints into the towers; one module for each family of checkpoints."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from coco_jax.errors import UserError
from coco_jax.sharding import path_of
from coco_jax.weights import bert, clip, files, i3d, mpnet, pe, siglip, videoprism
from coco_jax.weights.table import Family, family_of, fill

FAMILIES: tuple[Family, ...] = (
    pe.META,  # before CLIP, whose tensors it has as well
    pe.OPEN_CLIP,
    clip.HUGGING_FACE,
    clip.OPEN_CLIP,
    siglip.HUGGING_FACE,
    siglip.BIG_VISION,
    videoprism.LVT,
    mpnet.HUGGING_FACE,  # before BERT, whose mark it has as well
    bert.HUGGING_FACE,
    i3d.KINETICS,
)


def wanted(config: ConfigDict) -> dict[str, str]:
    """The `weights` fields of the config that are set, by tower ("video", "text").

    A closed form has no towers; its texts are embedded beforehand.

    Raises:
      UserError: video weights are set, but the config uses precomputed features.
    """
    if config.alignment != "learned":
        return {}
    named = {"video": config.video_tower.weights, "text": config.text_tower.weights}
    if named["video"] and config.video_tower.kind == "features":
        raise UserError(
            "config.video_tower.weights: video_tower.kind='features' has no published weights; set "
            "config.video_tower.weights=''"
        )
    return {part: where for part, where in named.items() if where}


def published(config: ConfigDict, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads the config's checkpoints and converts them to parameters of our towers.

    Args:
      config: of the run.
      shapes: the shape of every model parameter, by path ("video/embed/kernel").

    Returns:
      Float32 parameters by path; {} if the config names no checkpoint.

    Raises:
      UserError: a checkpoint is missing, damaged, a pickle, or does not fit the config's towers.
    """
    towers = wanted(config)
    read = functools.cache(files.read)
    paths = {
        part: files.locate(where, f"{part}_tower.weights", files.NAMES)
        for part, where in towers.items()
    }
    filled: dict[str, np.ndarray] = {}
    for part, path in paths.items():
        tensors, where = read(path), f"config.{part}_tower.weights={towers[part]}"
        family = family_of(tensors, FAMILIES, where)
        with_both = len(set(paths.values())) == 1 and len(paths) == 2
        filled |= fill(family, part, tensors, shapes, where, with_both)
    return filled


def load(config: ConfigDict, params: Any) -> Any:
    """Replaces the parameters that the config's checkpoints contain.

    Args:
      config: of the run.
      params: all parameters of the model, a tree of arrays.

    Returns:
      The same tree with the same dtypes and shardings.

    Raises:
      UserError: a checkpoint is missing, damaged, a pickle, or does not fit the config's towers.
    """
    if not wanted(config):
        return params
    shapes = {path_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    filled = published(config, shapes)

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        value = filled.get(path_of(path))
        if value is None:
            return leaf
        value = np.asarray(value, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree.map_with_path(replace, params)


def interpolate(config: ConfigDict, params: Any, start: Any) -> Any:
    """(1 - share) x trained + share x published weights, with share = `config.eval.interpolate`.

    Weight-space ensembling (WiSE-FT, arXiv 2109.01903). Towers and projections without published
    weights, the temperature and the cycle keep their trained values.

    Args:
      config: of the run.
      params: the trained parameters.
      start: the parameters at step 0: published towers, in which added modules are the identity.
    """
    share = config.eval.interpolate
    parts = {f"{part}{tail}" for part in wanted(config) for tail in ("", "_out")}
    if config.text_tower.norm == "post" and config.text_tower.width != config.model.dim:
        parts -= {"text_out"}  # BERT has no projection; a non-square one is initialised at random

    def mix(path: Any, trained: jax.Array, first: jax.Array) -> jax.Array:
        if path_of(path).split("/")[0] not in parts:
            return trained
        mixed = (1 - share) * trained + share * first
        # Rounding must not change frozen parameters: the text feature cache is keyed by their hash.
        return jnp.where(trained == first, trained, mixed)

    return jax.tree.map_with_path(mix, params, start)
