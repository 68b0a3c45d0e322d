"""Published checkpoints into our towers: one file a family, a table of names in each."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from coco_jax.errors import UserError
from coco_jax.sharding import path_of
from coco_jax.weights import bert, clip, files, siglip, videoprism
from coco_jax.weights.table import Family, family_of, fill

FAMILIES: tuple[Family, ...] = (
    clip.HUGGING_FACE,
    clip.OPEN_CLIP,
    siglip.HUGGING_FACE,
    siglip.BIG_VISION,
    videoprism.LVT,
    bert.HUGGING_FACE,
)


def wanted(config: ConfigDict) -> dict[str, str]:
    """The checkpoints that the config names, by tower."""
    named = {"video": config.video_tower.weights, "text": config.text_tower.weights}
    if named["video"] and config.video_tower.kind == "features":
        raise UserError(
            "config.video_tower.weights: config.video_tower.kind='features' has no tower to load; leave it empty"
        )
    return {part: where for part, where in named.items() if where}


def published(config: ConfigDict, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters that the config's checkpoints give, by path; {} if it names none.

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
    """`params` with what the config's checkpoints give in place, laid out as before.

    Raises:
      UserError: as `published`.
    """
    if not wanted(config):
        return params
    shapes = {path_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    filled = published(config, shapes)

    def one(path, leaf: jax.Array) -> jax.Array:
        value = filled.get(path_of(path))
        if value is None:
            return leaf
        value = np.asarray(value, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree.map_with_path(one, params)


def interpolate(config: ConfigDict, params: Any, start: Any) -> Any:
    """`params` of the loaded towers, moved `config.eval.interpolate` of the way back to `start`.

    Weight-space ensembling (WiSE-FT, arXiv 2109.01903). `start` is the state at step 0, whose towers
    are the published ones: what was added to them starts at zero. Towers and projections that no
    checkpoint gave, the temperature and the cycle stay as trained.
    """
    share = config.eval.interpolate
    parts = {f"{part}{tail}" for part in wanted(config) for tail in ("", "_out")}
    if config.text_tower.norm == "post" and config.text_tower.width != config.model.dim:
        parts -= {"text_out"}  # BERT has none, and where it cannot be the identity it starts anyhow

    def one(path, trained: jax.Array, first: jax.Array) -> jax.Array:
        if path_of(path).split("/")[0] not in parts:
            return trained
        mixed = (1 - share) * trained + share * first
        # What did not move stays to the last bit: the description bank knows its tower by it.
        return jnp.where(trained == first, trained, mixed)

    return jax.tree.map_with_path(one, params, start)
