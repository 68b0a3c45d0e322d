"""Reads what finished runs have stored, and checks the form of these files; for `coco-jax report`."""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from coco_jax.config import load_stored
from coco_jax.errors import UserError
from coco_jax.evaluation import results
from coco_jax.training.checkpoint import read_json

MAX_RUNS = 2_000  # of one experiment
# The forms of the JSON files, as far as a report draws them: see `conforms`.
_MEAN = {"mean": float, "std": float, "runs": [float, ...]}
_SUMMARY = {
    "dataset": str,
    "pool": str,
    "chance": float,
    "unseen_classes": [int, ...],
    "unseen_videos": [int, ...],
    "splits": [str],
    "seeds": [int],
    "config": dict,
    "ablations": {
        str: {
            "top1": _MEAN,
            "top5": (_MEAN, None),
            "generalised": dict.fromkeys(results.GENERALISED, (float, None)),
            "ridge": ({kind: {"top1": _MEAN, "difference": _MEAN} for kind in results.RIDGE}, None),
        }
    },
}
_RESULT = {
    "ablation": str,
    "split": str,
    "seed": int,
    "top1": float,
    "per_class": {str: (float, None)},
    "confusion": [[int]],
    "unseen_classes": [str, ...],
    "unseen_videos": int,
    "generalised": (dict.fromkeys(results.GENERALISED, float), None),
    "examples": [
        {
            "action": str,
            "record": int,
            "video_id": str,
            "top": [{"action": str, "share": (float, None)}],
        }
    ],
}
_DETAILS = {
    "calibration": {
        "bins": [
            {
                "low": float,
                "high": float,
                "videos": int,
                "confidence": (float, None),
                "accuracy": (float, None),
            }
        ],
        "error": float,
        "temperature": float,
    },
    "curve": ({"seen": [float], "unseen": [float]}, None),
    "nearest": {str: [{"action": str, "cosine": float}]},
    "rebuilt": ({str: [{"action": str, "weight": float}]}, None),
    "captions": (
        [
            {
                "video_id": str,
                "action": str,
                "predicted": str,
                "of": {str: [{"text": str, "weight": float}]},
            }
        ],
        None,
    ),
}


class Run(NamedTuple):
    """An evaluated run."""

    folder: pathlib.Path
    result: dict[str, Any]  # result.json
    details: dict[str, Any] | None  # details.json; runs of older versions have none

    @property
    def name(self) -> str:
        """Its ablation, split and seed."""
        result = self.result
        return f"{result['ablation']}, split {result['split']}, seed {result['seed']}"


class Experiment(NamedTuple):
    """The runs of a folder and their summary."""

    folder: pathlib.Path
    summary: dict[str, Any]  # as in results.json
    runs: list[Run]

    @property
    def first_runs(self) -> list[Run]:
        """The first run of every ablation."""
        first: dict[str, Run] = {}
        for run in self.runs:
            first.setdefault(run.result["ablation"], run)
        return list(first.values())


def load(folder: pathlib.Path) -> Experiment:
    """Reads the results of an experiment (a folder with results.json) or of one of its runs.

    Raises:
      UserError: the folder has neither results.json nor result.json, or one is damaged.
    """
    path = folder / "results.json"
    if path.is_file():
        stored = read_json(path)
        if stored.get("format") != results.FORMAT:  # of an older version: computed from the runs
            return _summarised(folder, list(_found(folder).values()))
        summary = _checked(path, stored, _SUMMARY)
        runs = list(_runs(folder, summary))
        _check_found(folder, runs)
        return Experiment(folder, summary, runs)
    if (folder / "result.json").is_file():
        return _summarised(folder, [_run(folder)])
    found = sorted(str(below.parent) for below in folder.glob("*/results.json"))
    hint = f"such as {', '.join(found[:4])}" if found else "as `coco-jax train` writes it"
    raise UserError(
        f"{folder}: no results.json or result.json here; give the folder of a finished experiment or "
        f"run, {hint}"
    )


def _runs(folder: pathlib.Path, summary: dict[str, Any]) -> Iterator[Run]:
    """The runs that the summary is about, in its order."""
    found = _found(folder)
    for ablation in summary["ablations"]:
        for split in summary["splits"]:
            for seed in summary["seeds"]:
                if (ablation, split, seed) in found:
                    yield found[ablation, split, seed]


def _found(folder: pathlib.Path) -> dict[tuple[str, str, int], Run]:
    """All runs below a folder, by ablation, split and seed."""
    found = {}
    for path in sorted(folder.glob("*/split*/seed*/result.json"))[:MAX_RUNS]:
        run = _run(path.parent)
        found[run.result["ablation"], run.result["split"], run.result["seed"]] = run
    return found


def _check_found(folder: pathlib.Path, runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError(f"{folder}: no folder of a run below it has result.json; train again")


def _summarised(folder: pathlib.Path, runs: list[Run]) -> Experiment:
    """Runs with a summary that is computed from their results."""
    _check_found(folder, runs)
    path = runs[0].folder / "config.json"
    config = load_stored(read_json(path), str(path)).to_dict()
    return Experiment(folder, results.summarise([run.result for run in runs], config), runs)


def _run(folder: pathlib.Path) -> Run:
    path = folder / "result.json"
    result = _checked(path, read_json(path), _RESULT)
    classes = len(result["unseen_classes"])
    if [len(row) for row in result["confusion"]] != [classes] * classes:
        raise UserError(f"{path}: the confusion matrix does not fit the classes; evaluate again")
    path = folder / results.DETAILS
    details = _checked(path, read_json(path), _DETAILS) if path.is_file() else None
    return Run(folder, result, details)


def _checked(path: pathlib.Path, value: dict[str, Any], form: Any) -> dict[str, Any]:
    """The content of a file.

    Raises:
      UserError: it does not have the form.
    """
    if not conforms(value, form):
        raise UserError(
            f"{path}: not as this version of coco_jax writes it; remove result.json and evaluate again "
            "(coco-jax evaluate)"
        )
    return value


def conforms(value: Any, form: Any) -> bool:
    """Whether a JSON value has a form.

    A form is a type (`float` is any finite number), None, a tuple of alternatives, a list with the form
    of all items (and `...` if there must be some), or a dictionary: of the form of each key, or
    `{str: form of all values}`.
    """
    match form:
        case None:
            return value is None
        case tuple():
            return any(conforms(value, option) for option in form)
        case list():
            is_filled = bool(value) or ... not in form
            return (
                isinstance(value, list)
                and is_filled
                and all(conforms(item, form[0]) for item in value)
            )
        case dict():
            if not isinstance(value, dict):
                return False
            if str in form:
                return all(conforms(item, form[str]) for item in value.values())
            return all(conforms(value.get(key), part) for key, part in form.items())
        case _ if form is int:
            return type(value) is int and abs(value) < 1 << 53
        case _ if form is float:
            return type(value) in (int, float) and math.isfinite(value)
    return type(value) is form
