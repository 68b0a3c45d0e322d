"""AdamW with warm-up and cosine decay, clipping, and a rate for each group of parameters."""

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
        0.0, o.rate, min(o.warmup, o.steps - 1), o.steps, o.rate * o.final_rate
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`. Weights decay; biases, norms and scalars do not."""
    o = config.optimizer
    groups = [(re.compile(expression), factor) for expression, factor in o.groups]
    if config.text.frozen:
        groups.insert(0, (re.compile("text/.*"), 0.0))

    def factors(tree: Any) -> Any:
        def one(path, _) -> float:
            name = path_of(path)
            return next((f for expression, f in groups if expression.fullmatch(name)), 1.0)

        return jax.tree.map_with_path(one, tree)

    def decays(tree: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: path_of(path).endswith("/kernel"), tree)

    return optax.chain(
        optax.clip_by_global_norm(o.clip),
        optax.scale_by_adam(o.b1, o.b2),
        optax.add_decayed_weights(o.weight_decay, decays),
        optax.scale_by_learning_rate(schedule(config)),
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors(updates))
        ),
    )
