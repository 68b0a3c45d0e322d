"""Tables from a checkpoint's tensors to our parameters, and the check that nothing is left over.

A family lists rows (names in the checkpoint, path of ours, change); `{i}` is a layer's number.
Where only our path has `{i}`, the tensor's first axis counts the layers; where a path has `a|b|c`,
the tensor is cut into one part for each.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coco_jax.errors import UserError
from coco_jax.weights import transforms as changes

Shape = tuple[int, ...]
# Parameters that no checkpoint has: what `trains` and `temporal` add within a published tower.
NEW = (r".*/lora_(down|up)", r".*/mixer/.*")


class Row(NamedTuple):
    """One line of a table."""

    names: str | tuple[str, ...]  # () where the parameter is a constant
    path: str
    change: Callable[..., Any] = changes.same  # of the tensors and the parameter's shape

    @property
    def sources(self) -> tuple[str, ...]:
        """The names as a tuple."""
        return (self.names,) if isinstance(self.names, str) else self.names


class Family(NamedTuple):
    """How one kind of checkpoint fills our towers."""

    name: str
    mark: str  # a tensor that only this kind has
    video: Sequence[Row] = ()
    text: Sequence[Row] = ()
    both: Sequence[Row] = ()  # used where both towers come from this one checkpoint
    dropped: Sequence[tuple[str, str]] = ()  # (name, why it is not needed)
    new: Sequence[str] = ()  # expressions of parameters that this family leaves as they are
    prefixes: Sequence[str] = ()  # that some files put before every name

    def plain(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors without the prefix that some files have."""
        for prefix in self.prefixes:
            if any(name.startswith(prefix) for name in tensors):
                return {name.removeprefix(prefix): x for name, x in tensors.items()}
        return dict(tensors)


def expression(pattern: str) -> re.Pattern[str]:
    """What a pattern with `{i}`, a number, or `*`, anything, matches."""
    escaped = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)")
    return re.compile(escaped.replace(r"\*", ".*"))


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for one line."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def family_of(tensors: Mapping[str, Any], families: Sequence[Family], where: str) -> Family:
    """The family whose mark the checkpoint has.

    Raises:
      UserError: none has.
    """
    for family in families:
        if any(
            family.mark in (name, *(name.removeprefix(p) for p in family.prefixes))
            for name in tensors
        ):
            return family
    known = ", ".join(family.name for family in families)
    raise UserError(
        f"{where}: no tower of a known family (it holds {listed(list(tensors), 4)}); known are {known}"
    )


def fill(
    family: Family,
    part: str,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
    where: str,
    with_both: bool,
) -> dict[str, np.ndarray]:
    """Our parameters of one tower, `part` "video" or "text", from a checkpoint.

    Args:
      family: its tables.
      part: the tower.
      tensors: the checkpoint.
      shapes: of all our parameters, by path.
      where: the checkpoint's name, for messages.
      with_both: the other tower comes from here too.

    Raises:
      UserError: a tensor is neither used nor knowingly dropped, a parameter stays unfilled, or one
        has another size.
    """
    rows = {"video": family.video, "text": family.text}
    tensors = family.plain(tensors)
    if not rows[part]:
        other = "video" if part == "text" else "text"
        raise UserError(
            f"{where}: a {family.name} checkpoint, which has no {part} tower; name it as "
            f"config.{other}_tower.weights"
        )
    filled, placeless, misfits, used = {}, [], [], set[str]()
    for row in (*rows[part], *(family.both if with_both else ())):
        for names, values in _sources(row, tensors, shapes, used):
            for path, value in values:
                if path not in shapes:
                    placeless.append(names or path)
                    continue
                try:
                    if callable(value):
                        value = value(shapes[path])
                    if value is None:
                        continue
                    if value.shape != shapes[path]:
                        raise ValueError(
                            f"is {_size(value.shape)} here, {_size(shapes[path])} ours"
                        )
                    filled[path] = value
                except ValueError as error:
                    misfits.append(f"{names or path} ({path}) {error}")
    known = [expression(source) for row in _all_rows(family) for source in row.sources]
    known += [expression(name) for name, _ in family.dropped]
    unknown = [n for n in tensors if n not in used and not any(k.fullmatch(n) for k in known)]
    new = [re.compile(one) for one in (*NEW, *family.new)]
    mine = (f"{part}/", f"{part}_out/")
    bare = [
        path
        for path in shapes
        if path.startswith(mine) and path not in filled and not any(n.fullmatch(path) for n in new)
    ]
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("of another size", misfits),
            ("tensors without a place in ours", placeless + unknown),
            ("ours without a tensor", bare),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{where}: this {family.name} checkpoint does not fit the {part} tower of the config "
            f"({'; '.join(problems)}); take the preset of its family and size (coco_jax/presets.py)"
        )
    return filled


def _all_rows(family: Family) -> tuple[Row, ...]:
    return (*family.video, *family.text, *family.both)


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _sources(
    row: Row, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], used: set[str]
) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """For each place a row speaks of: the tensor's name, and a function of the shape for each path."""
    sources = row.sources
    if not sources:
        yield "", [(row.path, row.change)]
        return
    if "{i}" in sources[0]:
        found = (expression(sources[0]).fullmatch(name) for name in tensors)
        layers: list[str | None] = [match["i"] for match in found if match]
    else:
        layers = [None] if sources[0] in tensors else []
    for i in layers:
        names = [source.replace("{i}", i or "") for source in sources]
        if not all(name in tensors for name in names):
            continue  # it stays unfilled, which is said
        used.update(names)
        values = [tensors[name] for name in names]
        if i is None and "{i}" in row.path:
            for layer in range(len(values[0])):
                parts = [value[layer] for value in values]
                yield names[0], _parts(row, row.path.replace("{i}", str(layer)), parts)
        else:
            yield names[0], _parts(row, row.path.replace("{i}", i or ""), values)


def _parts(row: Row, path: str, values: list[np.ndarray]) -> list[tuple[str, Any]]:
    match = re.fullmatch(r"(.*/)?([^/]*\|[^/]*)(/.*)?", path)
    if not match:
        return [(path, lambda shape: row.change(*values, shape))]
    before, names, after = match[1] or "", match[2].split("|"), match[3] or ""

    def cut(shape: Shape, k: int) -> np.ndarray:
        if len(values[0]) % len(names):
            raise ValueError(f"does not divide into {len(names)} parts")
        return row.change(np.split(values[0], len(names))[k], shape)

    return [
        (f"{before}{name}{after}", lambda shape, k=k: cut(shape, k)) for k, name in enumerate(names)
    ]
