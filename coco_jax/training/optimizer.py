"""AdamW with warm-up and cosine decay, clipping, a rate a group of parameters, and frozen parts."""

import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from coco_jax.sharding import path_of


def schedule(config: ConfigDict) -> optax.Schedule:
    """The learning rate at a step: linear warm-up, then a cosine to `final_rate * rate`."""
    o = config.optimizer
    return optax.warmup_cosine_decay_schedule(
        0.0,
        o.learning_rate,
        min(o.warmup, o.steps - 1),
        o.steps,
        o.learning_rate * o.final_learning_rate_ratio,
    )


def trainable_mask(config: ConfigDict, tree: Any) -> Any:
    """For each parameter whether it learns, by `video_tower.trainable` and `text_tower.trainable`.

    Of a tower: "all" of it, "lora" its low-rank corrections, or "none". What was added to see time
    (models/temporal.py) always learns, and so does all that comes after the towers.
    """
    trains = {"video": config.video_tower.trainable, "text": config.text_tower.trainable}

    def one(path, _) -> bool:
        name = path_of(path)
        how = trains.get(name.split("/")[0], "all")
        if how == "all" or (how == "lora" and "/lora_" in name):
            return True
        added = config.video_tower.temporal in ("transformer", "divided", "shift")
        return added and bool(re.fullmatch(r"video/(temporal/.*|.*/mixer/.*)", name))

    return jax.tree.map_with_path(one, tree)


def all_trainable(config: ConfigDict) -> bool:
    """Whether no part is frozen."""
    return config.video_tower.trainable == config.text_tower.trainable == "all"


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`. Weights decay; biases, norms and scalars do not.

    What does not learn has no moments.
    """
    o = config.optimizer
    groups = [
        (re.compile(expression), factor) for expression, factor in o.learning_rate_multipliers
    ]

    def factors(tree: Any) -> Any:
        def one(path, _) -> float:
            name = path_of(path)
            return next((f for expression, f in groups if expression.fullmatch(name)), 1.0)

        return jax.tree.map_with_path(one, tree)

    def decays(tree: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: path_of(path).endswith("/kernel"), tree)

    def labels(tree: Any) -> Any:
        return jax.tree.map(lambda one: "learns" if one else "frozen", trainable_mask(config, tree))

    learning = optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.scale_by_adam(o.b1, o.b2),
        optax.add_decayed_weights(o.weight_decay, decays),
        optax.scale_by_learning_rate(schedule(config)),
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors(updates))
        ),
    )
    if all_trainable(config):
        return learning
    return optax.partition({"learns": learning, "frozen": optax.set_to_zero()}, labels)
