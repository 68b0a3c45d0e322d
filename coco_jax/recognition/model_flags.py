"""Flags that name a model, which several commands have."""

import functools
from collections.abc import Callable
from typing import Any

from absl import flags

import coco_jax
from coco_jax.command import keep_compiled
from coco_jax.errors import UserError


def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "model",
        None,
        "The folder of a model that was saved, or of a run; by default the pretrained model.",
    )
    flags.DEFINE_alias("checkpoint", "model")
    flags.DEFINE_string("towers", None, "Published towers as they are: a preset such as clip_b32.")
    flags.DEFINE_string(
        "weights",
        None,
        "Of the published towers: a file, a folder, or hf:org/name; by default those of --towers.",
    )


def loader(values: flags.FlagValues) -> Callable[[], Any]:
    """Loads the recogniser that the flags name; calling it may raise the errors of `coco_jax.load`.

    Code that it compiles is kept in the user's cache folder, so the next command starts faster.

    Raises:
      UserError: the flags name two.
    """
    if values.model and (values.towers or values.weights):
        raise UserError("--model and --towers or --weights name two models; give one of them")
    keep_compiled()
    return functools.partial(coco_jax.load, values.model or values.weights, values.towers)
