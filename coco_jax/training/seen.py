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
        raise UserError(f"dataset {task.dataset.name!r} has no training video of {missing[0]!r}")
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
    texts_SBW = class_features(task, "seen")
    if config.alignment != "learned":
        return params | {
            "seen": _replace(params["seen"], {"texts": texts_SBW, "videos": videos_SF})
        }
    places = [ridge.BLOCKS.index(block) for block in text_blocks(config)]
    means = np.zeros((len(ridge.BLOCKS), texts_SBW.shape[2]), np.float32)
    means[places] = texts_SBW.mean(0)
    params = params | {
        "seen": _replace(params["seen"], {"texts": means, "video": videos_SF.mean(0)})
    }
    if config.model.start == "ridge":
        start = {
            "text_out": {"kernel": _linear_map(texts_SBW, videos_SF)},
            "video_out": {"kernel": np.eye(videos_SF.shape[1])},
        }
        params = params | {name: _replace(params[name], value) for name, value in start.items()}
    return params


def _linear_map(
    texts_SBW: Float[np.ndarray, "S B W"], videos_SF: Float[np.ndarray, "S F"]
) -> Float[np.ndarray, "W F"]:
    """Ridge regression from the texts of every kind, each a row, to the vector of their class."""
    x_SBW = ridge.centre(jnp.asarray(texts_SBW), jnp.asarray(texts_SBW.mean(0)))
    x_NW = x_SBW.reshape(-1, texts_SBW.shape[2])
    v_SF = ridge.centre(jnp.asarray(videos_SF), jnp.asarray(videos_SF.mean(0)))
    v_NF = jnp.repeat(v_SF, texts_SBW.shape[1], 0)
    gram_WW = x_NW.T @ x_NW + ridge.LINEAR_STRENGTH[texts_SBW.shape[1]] * jnp.eye(x_NW.shape[1])
    return np.asarray(jnp.linalg.solve(gram_WW, x_NW.T @ v_NF))


def _replace(params: Params, values: Any) -> Params:
    """The same tree with other values, in the shardings and dtypes of `params`."""

    def put(old: jax.Array, new: np.ndarray) -> jax.Array:
        new = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    return params | jax.tree.map(put, {name: params[name] for name in values}, values)
