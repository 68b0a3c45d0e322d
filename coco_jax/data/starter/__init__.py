"""The corpus `starter`: a definition and captions of 1,211 actions, part of the package.

A language model wrote the texts for this project; they are licensed under CC BY 4.0 (LICENSE.md).
tfds_builders/actionhub/README.md describes them. No TensorFlow.
"""

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

from coco_jax.data import action_names


class StarterAction(NamedTuple):
    """The texts of an action.

    Attributes:
      definition: one sentence that says what the action is.
      captions: 9 or 10 texts such as people write under a video of it.
    """

    definition: str
    captions: tuple[str, ...]


def load() -> dict[str, StarterAction]:
    """The texts of every action, in the order of the actions' names."""
    return dict(_actions())  # a copy, which the caller may change


def find(name: str) -> str | None:
    """The action that a name means, however it is spelled: "PushUps" is "push up".

    Args:
      name: the name of an action, or of a class of a benchmark.

    Returns:
      The action by the rules of `action_names.Classes.hits`; None if there is none or several.
    """
    hits = _names().hits(name)
    return hits[0] if len(hits) == 1 else None


@functools.cache
def _actions() -> dict[str, StarterAction]:
    return dict(_rows())


def _rows() -> Iterator[tuple[str, StarterAction]]:
    parts = (part for part in resources.files(__name__).iterdir() if part.name.endswith(".jsonl"))
    for part in sorted(parts, key=lambda part: part.name):
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["action"], StarterAction(row["definition"], tuple(row["captions"]))


@functools.cache
def _names() -> action_names.Classes:
    return action_names.Classes(_actions())
