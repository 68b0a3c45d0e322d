"""Compares two runs or sweeps: first what differs in how they were made, then their numbers."""

import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coco_jax.errors import UserError
from coco_jax.evaluation import bootstrap, evidence, metrics, predictions
from coco_jax.evaluation.predictions import Prediction
from coco_jax.printing import printable

SHOWN = 5  # names in a line, at most
WIDTH = 200  # characters of a value in a line, at most
KEYS = ("ablation", "split", "seed")


class Run(NamedTuple):
    """The evidence of a run, and its predictions if they lie beside it."""

    name: str
    evidence: Mapping[str, Any]
    rows: Sequence[Prediction] | None


def open_runs(where: pathlib.Path) -> list[Run]:
    """The runs of an evidence.json: that of a run has one, that of a workdir has several.

    Args:
      where: the file, the folder of a run, or a workdir.

    Raises:
      UserError: there is no evidence.json, it is damaged, or its predictions have another checksum.
    """
    path = where / evidence.FILE if where.is_dir() else where
    if not path.is_file():
        raise UserError(
            f"{path}: does not exist; `coco-jax evaluate` writes it, and for a run that is evaluated "
            "already `coco-jax certify RUN`"
        )
    found = evidence.load(path)
    if found["kind"] == "run":
        return [Run(str(where), found, _rows(path.parent, found))]
    runs = [Run(name, run, _rows(path.parent / name, run)) for name, run in found["runs"].items()]
    if not runs:
        raise UserError(f"{path}: has no runs; evaluate them first")
    return runs


def _rows(folder: pathlib.Path, run: Mapping[str, Any]) -> Sequence[Prediction] | None:
    path = folder / predictions.FILE
    if not path.is_file():
        return None
    if evidence.file_sha256(path) != run["predictions"].get("sha256"):
        raise UserError(
            f"{path}: is not the file of {folder / evidence.FILE}; evaluate the run again"
        )
    return predictions.read(path)


def compare(a: Sequence[Run], b: Sequence[Run]) -> dict[str, Any]:
    """What differs between runs, and their accuracies; ready for JSON.

    Single runs are compared as they are. Of sweeps, runs with the same ablation, split and seed are.

    Raises:
      UserError: two sweeps have no run in common.
    """
    if len(a) == len(b) == 1:
        pairs = [(a[0], b[0])]
    else:
        of_b = {_key(run): run for run in b}
        pairs = [(run, of_b[_key(run)]) for run in a if _key(run) in of_b]
    if not pairs:
        raise UserError(
            "the two have no run with the same ablation, split and seed; compare single runs instead"
        )
    compared: list[dict[str, Any]] = [
        {
            "a": one.name,
            "b": other.name,
            "differences": differences(one, other),
            "top1": _numbers(one, other),
        }
        for one, other in pairs
    ]
    in_a, in_b = {one.name for one, _ in pairs}, {other.name for _, other in pairs}
    return {
        "pairs": compared,
        "only_in_a": [run.name for run in a if run.name not in in_a],
        "only_in_b": [run.name for run in b if run.name not in in_b],
        "top1": {
            side: metrics.mean_std([pair["top1"][side] for pair in compared])
            for side in ("a", "b", "difference")
        },
    }


def _key(run: Run) -> tuple[str, ...]:
    return tuple(str(run.evidence.get(field)) for field in KEYS)


def differences(a: Run, b: Run) -> dict[str, list[str]]:
    """What differs between two runs, as sentences by section; sections without any are left out."""
    special: dict[str, Callable[[Run, Run], list[str]]] = {
        "data": _data,
        "classes": _classes,
        "prompts": _prompts,
        "descriptions": _descriptions,
        "weights": _weights,
        "training": _training,
        "code": _code,
    }
    found = {}
    for section in evidence.SECTIONS:
        lines = special[section](a, b) if section in special else []
        lines += _settings(a, b, section)
        if lines:
            found[section] = lines
    return found


def _settings(a: Run, b: Run, section: str) -> list[str]:
    """The config fields of a section that differ."""
    fields = [_fields(run, section) for run in (a, b)]
    return [
        f"config.{field}: {_shown(fields[0].get(field))} in A, {_shown(fields[1].get(field))} in B"
        for field in sorted({*fields[0], *fields[1]})
        if fields[0].get(field) != fields[1].get(field) and field != "text.templates"
    ]


def _fields(run: Run, section: str) -> Mapping[str, Any]:
    return _mapping(run, f"{section}.config")


def _mapping(run: Run, path: str) -> Mapping[str, Any]:
    value = _get(run, path)
    return value if isinstance(value, dict) else {}


def _data(a: Run, b: Run) -> list[str]:
    lines: list[str] = []
    for what, path in (("dataset", "data.dataset"), ("built from", "data.sources")):
        lines += _differ(what, *_both(a, b, path))
    if _differ("", *_both(a, b, "data.records_sha256")):
        one, other = (_shown(count) for count in _both(a, b, "data.records"))
        lines.append(
            f"records of the dataset (ids, classes, TFDS splits): {one} and {other}, not the same"
        )
    elif None not in (hashes := _both(a, b, "data.content_sha256")) and hashes[0] != hashes[1]:
        lines.append("videos or features: the same ids, but other content")
    for group in ("tested", "tested_of_seen_classes", "trained"):
        if not _differ("", *_both(a, b, f"data.{group}.ids_sha256")):
            continue
        counts = _both(a, b, f"data.{group}.videos")
        line = (
            f"{group.replace('_', ' ')}: {_shown(counts[0])} videos in A, {_shown(counts[1])} in B"
        )
        lines.append(line + (_missing_videos(a, b) if group == "tested" else ""))
    lines += _differ("test sets", *(sorted(_mapping(run, "data.test_sets")) for run in (a, b)))
    return lines


def _missing_videos(a: Run, b: Run) -> str:
    if a.rows is None or b.rows is None:
        return ""
    ids = [{row.video_id for row in run.rows or ()} for run in (a, b)]
    if ids[0] == ids[1]:
        return "; the same videos in another order"
    return _only(ids[0], ids[1])


def _classes(a: Run, b: Run) -> list[str]:
    lines = []
    for group in ("seen", "unseen"):
        one, other = (_names(run, group) for run in (a, b))
        if one == other:
            continue
        if sorted(one) == sorted(other):
            lines.append(f"{group}: the same {len(one)} classes in another order")
        elif _equal(a, b, f"classes.{group}.normal_sha256"):
            lines.append(
                f"{group}: the same {len(one)} classes, spelled differently{_only(set(one), set(other))}"
            )
        else:
            lists = [_list_name(run, group) for run in (a, b)]
            lines.append(
                f"{group}: {len(one)} classes in A{lists[0]}, {len(other)} in B{lists[1]}"
                + _only(set(one), set(other))
            )
    return lines


def _names(run: Run, group: str) -> list[str]:
    names = _get(run, f"classes.{group}.names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _list_name(run: Run, group: str) -> str:
    published = _get(run, f"classes.{group}.published")
    return (
        f" ({', '.join(map(str, published))})" if isinstance(published, list) and published else ""
    )


def _prompts(a: Run, b: Run) -> list[str]:
    one, other = (_fields(run, "prompts").get("text.templates") for run in (a, b))
    if one == other:
        return []
    if not (isinstance(one, list) and isinstance(other, list)):
        return _differ("templates", one, other)
    if sorted(map(str, one)) == sorted(map(str, other)):
        return ["templates: the same in another order, which changes a result by rounding only"]
    only = _only({str(x) for x in one}, {str(x) for x in other})
    return [f"templates: {len(one)} in A, {len(other)} in B{only}"]


def _descriptions(a: Run, b: Run) -> list[str]:
    if not any(_both(a, b, "descriptions.used")):
        return []  # definitions are used only if a prompt field says so, and then the corpus matters
    lines = []
    if _differ("", *_both(a, b, "descriptions.sha256")):
        one, other = (_shown(count) for count in _both(a, b, "descriptions.count"))
        lines.append(f"corpus: other texts ({one} in A, {other} in B)")
    return lines + _differ("removed, of tested videos", *_both(a, b, "descriptions.removed"))


def _weights(a: Run, b: Run) -> list[str]:
    lines = []
    for tower in ("video", "text"):
        one, other = (_mapping(run, f"weights.{tower}") for run in (a, b))
        if one.get("sha256") == other.get("sha256") and (one.get("sha256") or one == other):
            continue
        lines.append(f"{tower} tower: {_checkpoint(one)} in A, {_checkpoint(other)} in B")
    if not _equal(a, b, "weights.tokenizer_sha256"):
        lines.append("tokenizer: not the same")
    if not _equal(a, b, "weights.evaluated_parameters_sha256"):
        lines.append("evaluated parameters: not the same")
    return lines


def _checkpoint(tower: Mapping[str, Any]) -> str:
    if not tower:
        return "no published weights"
    return f"{_shown(tower.get('where'))} (SHA-256 {str(tower.get('sha256'))[:12]})"


def _training(a: Run, b: Run) -> list[str]:
    return _differ("evaluated step", *_both(a, b, "training.evaluated_step"))


def _code(a: Run, b: Run) -> list[str]:
    lines = []
    for name in ("coco_jax", "jax", "numpy", "python", "devices"):
        lines += _differ(name, *_both(a, b, f"code.{name}"))
    one, other = _both(a, b, "code.git")
    if one != other:
        lines += _differ("commit", *(_commit(x) for x in (one, other)))
    return lines


def _commit(git: Any) -> str:
    if not isinstance(git, dict):
        return "unknown"
    return f"{str(git.get('commit'))[:12]}{' with changes' * bool(git.get('changed'))}"


def _numbers(a: Run, b: Run) -> dict[str, Any]:
    """Top-1 of two runs and their difference; with an interval if the tested videos are the same."""
    top_a, top_b = (_number(_get(run, "numbers.top1")) for run in (a, b))
    if top_a is None or top_b is None:
        raise UserError(f"{a.name} or {b.name}: has no top-1; evaluate the run again")
    return {
        "a": top_a,
        "b": top_b,
        "a_interval": _interval(a),
        "b_interval": _interval(b),
        "difference": top_b - top_a,
        "difference_interval": _paired(a, b),
        "candidates": [len(_names(run, "unseen")) for run in (a, b)],
    }


def _interval(run: Run) -> list[float] | None:
    found = _get(run, "bootstrap.top1")
    ends = [_number(x) for x in found] if isinstance(found, list) else []
    return [x for x in ends if x is not None] if len(ends) == 2 and None not in ends else None


def _number(value: Any) -> float | None:
    """A number from 0 to 1, as accuracies are; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None


def _paired(a: Run, b: Run) -> list[float] | None:
    """A bootstrap interval of the difference of top-1 on the same videos; None if they differ."""
    if a.rows is None or b.rows is None:
        return None
    videos, sets, hits_NS = predictions.hits(a.rows, 1)
    others, other_sets, others_NS = predictions.hits(b.rows, 1)
    if set(videos) != set(others) or sets != other_sets:
        return None
    place = {video: n for n, video in enumerate(others)}
    difference_NS = others_NS[[place[video] for video in videos]] - hits_NS
    if (np.isnan(difference_NS) != np.isnan(hits_NS)).any():
        return None
    first = _first_group(a, sets)
    means_RS = bootstrap.resample(difference_NS)
    return list(bootstrap.interval(np.nanmean(means_RS[:, first], axis=1)))


def _first_group(run: Run, sets: Sequence[str]) -> list[int]:
    """The columns of the test sets over which the run's accuracy is a mean."""
    members = _get(run, "numbers.first_group")
    chosen = [n for n, name in enumerate(sets) if isinstance(members, list) and name in members]
    return chosen or list(range(len(sets)))


def report(result: Mapping[str, Any], names: tuple[str, str]) -> str:
    """The comparison as text for people, in lines without control characters."""
    lines = [f"A: {names[0]}", f"B: {names[1]}", ""]
    for side in "ab":
        if only := result[f"only_in_{side}"]:
            lines.append(f"only in {side.upper()}: {_listed(only)}")
    lines += _difference_lines(result["pairs"])
    lines += ["", "Top-1 in percent, with 95 % bootstrap intervals over videos:"]
    for pair in result["pairs"]:
        name = pair["a"] if len(result["pairs"]) > 1 else ""
        lines.append(f"  {name}{': ' * bool(name)}{_accuracies(pair['top1'])}")
    if len(result["pairs"]) > 1:
        a, b, difference = (result["top1"][side] for side in ("a", "b", "difference"))
        error = difference["std"] / len(difference["runs"]) ** 0.5
        lines.append(
            f"  mean of {len(result['pairs'])} pairs: A {100 * a['mean']:.1f} ± {100 * a['std']:.1f}, "
            f"B {100 * b['mean']:.1f} ± {100 * b['std']:.1f}; B - A "
            f"{100 * difference['mean']:+.1f} ± {100 * error:.1f} (standard error)"
        )
    return "\n".join(printable(line) for line in lines)


def _difference_lines(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sections that differ, with their sentences, and the sections that do not."""
    lines = []
    for section in evidence.SECTIONS:
        found: dict[str, int] = {}
        for pair in pairs:
            for text in pair["differences"].get(section, ()):
                found[text] = found.get(text, 0) + 1
        if found:
            lines.append(f"{section} differ:" if section[-1] == "s" else f"{section} differs:")
        for text, count in found.items():
            where = f" (in {count} of {len(pairs)} pairs)" * (count < len(pairs))
            lines += textwrap.wrap(
                f"- {text}{where}", 105, initial_indent="  ", subsequent_indent="    "
            )
    equal = [s for s in evidence.SECTIONS if not any(s in pair["differences"] for pair in pairs)]
    if len(equal) == len(evidence.SECTIONS):
        return [f"Nothing differs that a result depends on: {', '.join(equal)} are the same."]
    return [*lines, f"The same in both: {', '.join(equal) or 'nothing'}."]


def _accuracies(top1: Mapping[str, Any]) -> str:
    def one(side: str) -> str:
        interval = top1[f"{side}_interval"]
        shown = ""
        if interval is not None:
            shown = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        return f"{side.upper()} {100 * top1[side]:.1f}{shown}"

    difference = f"B - A {100 * top1['difference']:+.1f}"
    if top1["difference_interval"] is not None:
        low, high = top1["difference_interval"]
        difference += f" [{100 * low:+.1f}, {100 * high:+.1f}], paired by video"
    else:
        difference += ", not paired: the tested videos differ or are not stored"
    a, b = top1["candidates"]
    chance = f"; {a} candidates in A, {b} in B" * (a != b)
    return f"{one('a')}; {one('b')}; {difference}{chance}"


def _get(run: Run, path: str) -> Any:
    value: Any = run.evidence
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _both(a: Run, b: Run, path: str) -> tuple[Any, Any]:
    return _get(a, path), _get(b, path)


def _equal(a: Run, b: Run, path: str) -> bool:
    one, other = _both(a, b, path)
    return one == other


def _differ(what: str, one: Any, other: Any) -> list[str]:
    return [] if one == other else [f"{what}: {_shown(one)} in A, {_shown(other)} in B"]


def _only(one: set[str], other: set[str]) -> str:
    parts = [
        f"; only in {side}: {_listed(sorted(names))}"
        for side, names in (("A", one - other), ("B", other - one))
        if names
    ]
    return "".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
    return ", ".join(names[:SHOWN]) + more


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
