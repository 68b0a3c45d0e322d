"""AdamW: warm-up and cosine decay, gradient clipping, learning rate multipliers, frozen parameters."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from coco_jax.sharding import path_of

# Labels of optax.partition. They are part of the paths in stored checkpoints: do not change them.
TRAINABLE, FROZEN = "learns", "frozen"


def schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate: linear warm-up, then cosine decay to `final_learning_rate_ratio`."""
    o = config.optimizer
    if not o.steps:
        return optax.constant_schedule(0.0)
    return optax.warmup_cosine_decay_schedule(
        0.0,
        o.learning_rate,
        min(o.warmup, o.steps - 1),
        o.steps,
        o.learning_rate * o.final_learning_rate_ratio,
    )


def trainable_mask(config: ConfigDict, tree: Any) -> Any:
    """Whether each parameter is trained, by `trainable` of its tower in the config.

    "all": all parameters of the tower; "lora": its LoRA parameters; "none": no parameter. Temporal
    modules that were added to a published tower, and everything after the towers, are always trained,
    except the parameters under "seen": they are computed from the training data.
    """
    towers = {"video": config.video_tower.trainable, "text": config.text_tower.trainable}
    trainable = towers | {"seen": "none"}
    has_added_module = config.video_tower.temporal in ("transformer", "divided", "shift")

    def is_trainable(path: Any, _: Any) -> bool:
        name = path_of(path)
        part = trainable.get(name.split("/")[0], "all")
        if part == "all" or (part == "lora" and "/lora_" in name):
            return True
        return has_added_module and bool(re.fullmatch(r"video/(temporal/.*|.*/mixer/.*)", name))

    return jax.tree.map_with_path(is_trainable, tree)


def all_trainable(config: ConfigDict) -> bool:
    """Whether no parameter is frozen."""
    return config.video_tower.trainable == config.text_tower.trainable == "all"


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`.

    Weight decay applies to `kernel` parameters only: not to biases, norms, embeddings, positions,
    LoRA, the temperature, or the cycle. Frozen parameters have no optimizer state.
    """
    o = config.optimizer
    if not o.steps:  # nothing is trained: no state
        return optax.set_to_zero()
    multipliers = [(re.compile(pattern), factor) for pattern, factor in o.learning_rate_multipliers]

    def multiplier(path: Any, _: Any) -> float:
        name = path_of(path)
        return next((factor for pattern, factor in multipliers if pattern.fullmatch(name)), 1.0)

    def scale_by_multiplier(updates: Any, _: Any) -> Any:
        factors = jax.tree.map_with_path(multiplier, updates)
        return jax.tree.map(jnp.multiply, updates, factors)

    def decay_mask(tree: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: path_of(path).endswith("/kernel"), tree)

    def labels(tree: Any) -> Any:
        mask = trainable_mask(config, tree)
        return jax.tree.map(lambda trains: TRAINABLE if trains else FROZEN, mask)

    adamw = optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.scale_by_adam(o.b1, o.b2),
        optax.add_decayed_weights(o.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule(config)),
        optax.stateless(scale_by_multiplier),
    )
    if all_trainable(config):
        return adamw
    return optax.partition({TRAINABLE: adamw, FROZEN: optax.set_to_zero()}, labels)
