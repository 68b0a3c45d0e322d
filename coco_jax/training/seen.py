"""What the closed form, centring and a start from ridge regression take from the training data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from coco_jax.config import text_blocks
from coco_jax.data.loader import stored_features
from coco_jax.data.task import Task
from coco_jax.errors import UserError
from coco_jax.models import ridge
from coco_jax.training.step import Params
from coco_jax.training.text_features import class_features


def class_means(task: Task) -> Float[np.ndarray, "S F"]:
    """The mean feature of each seen class over its training videos.

    Raises:
      UserError: a seen class has no training video.
    """
    label_N, seen = task.seen_label[task.plan.train], task.plan.seen
    by_class = [task.plan.train[label_N == label] for label in range(len(seen))]
    if missing := [name for name, indices in zip(seen, by_class, strict=True) if not len(indices)]:
        raise UserError(
            f"dataset {task.dataset.name!r} has no training video of {missing[0]!r}; add one, or, in "
            "videos.csv of your own data, put one of its videos into the split train"
        )
    records = task.dataset.records
    return np.stack([stored_features(records, i_N, task.config).mean(0) for i_N in by_class])


def set_from_data(task: Task, params: Params) -> Params:
    """Sets the parameters under "seen", and the projections of `config.model.start="ridge"`.

    Args:
      task: a result of `with_features`.
      params: newly initialised ones.
    """
    if "seen" not in params:
        return params
    config, videos_SF = task.config, class_means(task)
    texts_SNW = class_features(task, "seen")
    if config.alignment != "learned":
        return params | {
            "seen": _replace(params["seen"], {"texts": texts_SNW, "videos": videos_SF})
        }
    places = [ridge.BLOCKS.index(block) for block in text_blocks(config)]
    means = np.zeros((len(ridge.BLOCKS), texts_SNW.shape[2]), np.float32)
    means[places] = texts_SNW.mean(0)
    params = params | {
        "seen": _replace(params["seen"], {"texts": means, "video": videos_SF.mean(0)})
    }
    if config.model.start == "ridge":
        start = {
            "text_out": {"kernel": _linear_map(texts_SNW, videos_SF)},
            "video_out": {"kernel": np.eye(videos_SF.shape[1])},
        }
        params = params | {name: _replace(params[name], value) for name, value in start.items()}
    return params


def _linear_map(
    texts_SNW: Float[np.ndarray, "S N W"], videos_SF: Float[np.ndarray, "S F"]
) -> Float[np.ndarray, "W F"]:
    """Ridge regression from the texts of every kind, each a row, to the vector of their class."""
    x_SNW = ridge.centre(jnp.asarray(texts_SNW), jnp.asarray(texts_SNW.mean(0)))
    v_SF = ridge.centre(jnp.asarray(videos_SF), jnp.asarray(videos_SF.mean(0)))
    strength = ridge.LINEAR_STRENGTH[texts_SNW.shape[1]]
    gram_WW = jnp.einsum("snw,snv->wv", x_SNW, x_SNW) + strength * jnp.eye(texts_SNW.shape[2])
    return np.asarray(jnp.linalg.solve(gram_WW, jnp.einsum("snw,sf->wf", x_SNW, v_SF)))


def _replace(params: Params, values: Any) -> Params:
    """The same tree with other values, in the shardings and dtypes of `params`."""

    def put(old: jax.Array, new: np.ndarray) -> jax.Array:
        new = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    return params | jax.tree.map(put, {name: params[name] for name in values}, values)
