"""Published class lists: finds the list that a run's classes equal, by SHA-256.

published_lists.json has a row for each list: its name, the number of classes, the SHA-256 of
`normal_sha256`, and where the list comes from.
"""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from coco_jax.data import action_names


class ClassList(NamedTuple):
    """A row of the table."""

    name: str
    classes: int
    sha256: str
    source: str


def ordered_sha256(names: Sequence[str]) -> str:
    """SHA-256 of the names as they are, in their order, one a line (UTF-8)."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def normal_sha256(names: Iterable[str]) -> str:
    """SHA-256 of the sorted normal forms of names (`action_names.normal`), one a line.

    It depends neither on the order nor on the spelling: "PushUps" and "push up" are the same class.
    """
    return ordered_sha256(sorted({action_names.normal(name) or name for name in names}))


@functools.cache
def table() -> tuple[ClassList, ...]:
    """All published lists."""
    text = importlib.resources.files(__package__).joinpath("published_lists.json").read_text()
    return tuple(ClassList(**row) for row in json.loads(text))


def find(names: Sequence[str]) -> list[str]:
    """The names of the published lists that have exactly these classes."""
    digest = normal_sha256(names)
    return [row.name for row in table() if (row.classes, row.sha256) == (len(names), digest)]
