"""Tables that map a checkpoint's tensors to our parameters, and `fill`, which applies them.

A family of checkpoints has rows of (tensor names, parameter path, transform). In names and paths `{i}`
is the number of a layer. If only the path has `{i}`, axis 0 of the tensor is the layer. If the path has
`a|b|c`, the tensor is split along axis 0 into one part for each name.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coco_jax.errors import UserError
from coco_jax.weights import transforms

Shape = tuple[int, ...]
# Parameters that no checkpoint has: what `trainable` "lora" and `temporal` add to the blocks of a tower.
NEW = (r".*/lora_(down|up)", r".*/mixer/.*")


class Row(NamedTuple):
    """One row of a table."""

    names: str | tuple[str, ...]  # tensors of the checkpoint; () if the parameter is a constant
    path: str  # of our parameter
    transform: Callable[..., Any] = transforms.same  # (*tensors, shape of the parameter) -> array

    @property
    def sources(self) -> tuple[str, ...]:
        """The names as a tuple."""
        return (self.names,) if isinstance(self.names, str) else self.names


class Family(NamedTuple):
    """The tables of one kind of checkpoint."""

    name: str
    mark: str  # a tensor that only this kind of checkpoint has
    video: Sequence[Row] = ()
    text: Sequence[Row] = ()
    both: Sequence[Row] = ()  # used only if both towers are loaded from this checkpoint
    dropped: Sequence[tuple[str, str]] = ()  # (tensor, why it is not needed); `*` matches anything
    new: Sequence[str] = ()  # regular expressions of parameters that keep their initial values
    prefixes: Sequence[str] = ()  # prefixes of all names in some files

    def plain(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors by their names without prefix."""
        for prefix in self.prefixes:
            if any(name.startswith(prefix) for name in tensors):
                return {name.removeprefix(prefix): x for name, x in tensors.items()}
        return dict(tensors)


def expression(pattern: str) -> re.Pattern[str]:
    """A regular expression from a pattern in which `{i}` matches a number and `*` anything."""
    escaped = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)")
    return re.compile(escaped.replace(r"\*", ".*"))


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first `most` names in alphabetical order, and the number of the others."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def family_of(tensors: Mapping[str, Any], families: Sequence[Family], where: str) -> Family:
    """Finds the family of a checkpoint by its `mark`.

    Args:
      tensors: the checkpoint, by name.
      families: the families to choose from.
      where: the config field and its value, for error messages.

    Raises:
      UserError: the checkpoint is of none of these families.
    """
    for family in families:
        if any(
            family.mark in (name, *(name.removeprefix(p) for p in family.prefixes))
            for name in tensors
        ):
            return family
    known = ", ".join(family.name for family in families)
    raise UserError(
        f"{where}: unknown kind of checkpoint (its tensors: {listed(list(tensors), 4)}); "
        f"supported are {known}"
    )


def fill(
    family: Family,
    part: str,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
    where: str,
    with_both: bool,
) -> dict[str, np.ndarray]:
    """Converts a checkpoint to the parameters of one tower.

    Args:
      family: the family of the checkpoint.
      part: the tower, "video" or "text".
      tensors: float32 tensors of the checkpoint, by name.
      shapes: shapes of all model parameters, by path.
      where: the config field and its value, for error messages.
      with_both: whether the other tower is loaded from this checkpoint too; then rows of
        `family.both` are used as well.

    Returns:
      Float32 parameters by path.

    Raises:
      UserError: a tensor has the wrong shape or is neither used nor listed as dropped, or a
        parameter gets no value; names the first of these and the config field to set.
    """
    rows = {"video": family.video, "text": family.text}
    tensors = family.plain(tensors)
    if not rows[part]:
        other = "video" if part == "text" else "text"
        raise UserError(
            f"{where}: a {family.name} checkpoint has no {part} tower; set "
            f"config.{other}_tower.weights instead"
        )
    filled: dict[str, np.ndarray] = {}
    used: set[str] = set()
    unplaced: list[str] = []
    problems: list[str] = []
    for row in (*rows[part], *(family.both if with_both else ())):
        for name, values in _sources(row, tensors, shapes, used):
            for path, value in values:
                if path not in shapes:
                    unplaced.append(name or path)
                    continue
                try:
                    if callable(value):
                        value = value(shapes[path])
                    if value is None:
                        continue
                    if value.shape != shapes[path]:
                        raise ValueError(
                            f"has shape {value.shape}, but the config needs {shapes[path]} (set "
                            f"{_field(part, path, value.shape, shapes[path])})"
                        )
                    filled[path] = value
                except ValueError as error:
                    problems.append(f"{name or path} {error}")
                except (
                    IndexError,
                    TypeError,
                    ZeroDivisionError,
                ):  # of transforms: axes are missing
                    problems.append(f"{name} does not have the axes of a {path}")
    known = [expression(source) for row in _all_rows(family) for source in row.sources]
    known += [expression(name) for name, _ in family.dropped]
    unplaced += [n for n in tensors if n not in used and not any(k.fullmatch(n) for k in known)]
    new = [re.compile(pattern) for pattern in (*NEW, *family.new)]
    own = (f"{part}/", f"{part}_out/")
    missing = [
        path
        for path in shapes
        if path.startswith(own) and path not in filled and not any(n.fullmatch(path) for n in new)
    ]
    depth = f"set config.{part}_tower.depth"
    for name in sorted(unplaced):
        hint = f" ({depth})" if re.search(r"\d", name) else ""
        problems.append(f"{name} is not used by the config's tower{hint}")
    if not problems:  # else the tensors of these parameters are among the problems
        for path in sorted(missing):
            hint = f" ({depth})" if "/layers/" in path else ""
            problems.append(f"there is no tensor for the parameter {path}{hint}")
    if problems:
        others = len(problems) - 1
        more = f", and {others} more difference{'s' * (others > 1)}" if others else ""
        raise UserError(
            f"{where}: this {family.name} checkpoint does not fit the {part} tower: {problems[0]}"
            f"{more}; apply the preset of this model (coco_jax/presets.py)"
        )
    return filled


def _field(part: str, path: str, found: Shape, needed: Shape) -> str:
    """The config field that sets the first differing dimension of a parameter."""
    if path == f"{part}/embed/embedding" and found[0] != needed[0]:
        return f"config.text.vocabulary={found[0]}"
    if path.startswith(f"{part}_out/"):
        if found[-1] != needed[-1]:
            return f"config.model.dim={found[-1]}"
    elif path == "video/embed/kernel" and found[0] != needed[0]:
        return "config.video_tower.patch"
    elif "/mlp/" in path and (found[0] == needed[0] or found[-1] == needed[-1]):
        return f"config.{part}_tower.mlp_ratio"
    return f"config.{part}_tower.width"


def _all_rows(family: Family) -> tuple[Row, ...]:
    return (*family.video, *family.text, *family.both)


def _sources(
    row: Row, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], used: set[str]
) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Applies a row to every layer that it matches; adds the names of its tensors to `used`.

    Yields:
      The name of a tensor, and for each parameter that it fills the path and a function from the
      parameter's shape to its value.
    """
    sources = row.sources
    if not sources:
        yield "", [(row.path, row.transform)]
        return
    if "{i}" in sources[0]:
        found = (expression(sources[0]).fullmatch(name) for name in tensors)
        layers: list[str | None] = [match["i"] for match in found if match]
    else:
        layers = [None] if sources[0] in tensors else []
    for i in layers:
        names = [source.replace("{i}", i or "") for source in sources]
        if not all(name in tensors for name in names):
            continue  # the parameter stays without a value, which `fill` reports
        used.update(names)
        values = [tensors[name] for name in names]
        if i is None and "{i}" in row.path:
            for layer in range(min(value.shape[0] if value.ndim else 0 for value in values)):
                parts = [value[layer] for value in values]
                yield names[0], _parts(row, row.path.replace("{i}", str(layer)), parts)
        else:
            yield names[0], _parts(row, row.path.replace("{i}", i or ""), values)


def _parts(row: Row, path: str, values: list[np.ndarray]) -> list[tuple[str, Any]]:
    match = re.fullmatch(r"(.*/)?([^/]*\|[^/]*)(/.*)?", path)
    if not match:
        return [(path, lambda shape: row.transform(*values, shape))]
    before, names, after = match[1] or "", match[2].split("|"), match[3] or ""

    def transform_part(shape: Shape, k: int) -> np.ndarray:
        if len(values[0]) % len(names):
            raise ValueError(f"has {len(values[0])} rows, not a multiple of {len(names)}")
        return row.transform(np.split(values[0], len(names))[k], shape)

    return [
        (f"{before}{name}{after}", lambda shape, k=k: transform_part(shape, k))
        for k, name in enumerate(names)
    ]
