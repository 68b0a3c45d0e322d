"""The results of a sweep: results.json and the printed table."""

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from coco_jax import files
from coco_jax.config import uses_descriptions
from coco_jax.evaluation import metrics

FORMAT = 2  # version of results.json
DETAILS = "details.json"  # of a run; `explanation.explain` makes its content
RIDGE = ("linear", "kernel")
BASELINES = {"label": "linear ridge", "conse": "ConSE"}  # rows below the ablations
GENERALISED = ("seen", "unseen", "harmonic", "auc")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    files.write_bytes(path, text.encode())


def summarise(runs: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json for finished runs, each `{"ablation", "split", "seed", **metrics}`.

    The `runs` of a metric are ordered by split, then seed; `std` is over all of them. A metric is None
    if it was not measured, e.g. top-5 with at most five candidates.
    """
    ablations: dict[str, Any] = {}
    for name in dict.fromkeys(run["ablation"] for run in runs):
        mine = [run for run in runs if run["ablation"] == name]
        general = [run["generalised"] for run in mine if run["generalised"]]
        ablations[name] = {
            "top1": _mean_std(_values(mine, "top1")),
            "top5": _mean_std(_values(mine, "top5")),
            "generalised": {
                field: float(np.mean([run[field] for run in general])) if general else None
                for field in GENERALISED
            },
            "ridge": _ridge(mine),
            "baselines": _baselines(mine),
        }
    return {
        "format": FORMAT,
        "dataset": config["data"]["name"],
        "tested": config["data"]["test_name"],
        "protocol": config["protocol"],
        "pool": config["cycle"]["pool"],
        "chance": float(np.mean([_chance(run) for run in runs])),
        "unseen_classes": sorted({len(run["unseen_classes"]) for run in runs}),
        "unseen_videos": sorted({run["unseen_videos"] for run in runs}),
        "splits": list(dict.fromkeys(run["split"] for run in runs)),
        "seeds": list(dict.fromkeys(run["seed"] for run in runs)),
        "config": config,
        "ablations": ablations,
    }


def _ridge(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Top-1 of the ridge regressions (`config.eval.ridge`), and the run's top-1 minus theirs, paired."""
    if not all(run.get("ridge") for run in runs):
        return None
    summary = {}
    for kind in RIDGE:
        top1 = [run["ridge"][kind]["top1"] for run in runs]
        gain = [run["top1"] - other for run, other in zip(runs, top1, strict=True)]
        summary[kind] = {"top1": metrics.mean_std(top1), "difference": metrics.mean_std(gain)}
    return summary


def _baselines(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Top-1 and top-5 of the simpler methods (`config.eval.ridge`); None for results without them."""
    if not all(run.get("baselines") for run in runs):
        return None
    return {
        kind: {
            name: _mean_std([run["baselines"][kind][name] for run in runs])
            for name in ("top1", "top5")
        }
        for kind in BASELINES
    }


def _values(runs: list[dict[str, Any]], metric: str) -> list[float | None]:
    """A metric of every run; for cross-dataset runs, of every test set in the first group."""
    values: list[float | None] = []
    for run in runs:
        values += next(iter(run["cross"].values()))[metric] if "cross" in run else [run[metric]]
    return values


def _mean_std(values: list[float | None]) -> dict[str, Any] | None:
    numbers = [value for value in values if value is not None]
    return metrics.mean_std(numbers) if len(numbers) == len(values) else None


def _chance(run: dict[str, Any]) -> float:
    """The chance level. Results of 0.1 do not have it; all unseen classes were candidates there."""
    return run.get("chance") or 1 / len(run["unseen_classes"])


def heading(results: dict[str, Any]) -> str:
    """A line above the table: what was tested, and the accuracy of a random guess."""

    def counts(numbers: list[int]) -> str:
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

    chance = 100 * results["chance"]
    several = ", ".join(map(str, results["seeds"]))
    return (
        f"{results['dataset']}: {counts(results['unseen_videos'])} videos of "
        f"{counts(results['unseen_classes'])} unseen classes (chance: top-1 {chance:.1f}, top-5 "
        f"{min(5 * chance, 100):.1f}), pool {results['pool']!r}, splits "
        f"{', '.join(results['splits'])}, seeds {several}; in percent"
    )


def table(results: dict[str, Any]) -> str:
    """The metrics as a Markdown table, in percent.

    Of several runs: mean ± standard deviation. Generalised metrics are means over classes; their columns
    are left out if no run has them. With the results of ridge regression, the standard error of the mean
    follows in brackets, and there are two columns for each regression: its top-1, and how much higher
    that of the run is, with the standard error of the paired difference.
    """
    ablations = results["ablations"]
    general = [got["generalised"] for got in ablations.values()]
    shown = [field for field in GENERALISED if any(got[field] is not None for got in general)]
    baselines = [kind for kind in RIDGE if all(got.get("ridge") for got in ablations.values())]
    head = ["ablation", "top-1", "top-5", *shown]
    for kind in baselines:
        head += [f"{kind} ridge", "difference"]
    rows = []
    for name, got in ablations.items():
        row = [name, *(_spread(got[field], bool(baselines)) for field in ("top1", "top5"))]
        row += [_percent(got["generalised"][field]) for field in shown]
        for kind in baselines:
            row.append(_spread(got["ridge"][kind]["top1"], True))
            row.append(_signed(got["ridge"][kind]["difference"]))
        rows.append(row)
    rows += [[*row, *["-"] * (len(head) - len(row))] for row in _baseline_rows(ablations)]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def _baseline_rows(ablations: dict[str, Any]) -> list[list[str]]:
    """The rows of `BASELINES`, once for each kind of texts."""
    rows: dict[str, list[str]] = {}
    for kind, title in BASELINES.items():
        for name, got in ablations.items():
            if found := got.get("baselines"):
                has_more = kind != "label" and uses_descriptions(ConfigDict({"ablation": name}))
                texts = "names and descriptions" if has_more else "names"
                metrics = (_spread(found[kind][field], True) for field in ("top1", "top5"))
                rows.setdefault(f"{title}, {texts}", list(metrics))
    return [[title, *metrics] for title, metrics in rows.items()]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(metric: dict[str, Any] | None, with_error: bool) -> str:
    """Mean ± standard deviation (standard error)."""
    if metric is None:
        return "-"
    if len(metric["runs"]) == 1:
        return _percent(metric["mean"])
    error = f" ({_percent(_error(metric))})" * with_error
    return f"{_percent(metric['mean'])} ± {_percent(metric['std'])}{error}"


def _signed(metric: dict[str, Any]) -> str:
    """Mean, with its sign, ± standard error."""
    several = f" ± {_percent(_error(metric))}" * (len(metric["runs"]) > 1)
    return f"{100 * metric['mean']:+.1f}{several}"


def _error(metric: dict[str, Any]) -> float:
    """The standard error of the mean; the runs count as independent."""
    return metric["std"] / len(metric["runs"]) ** 0.5
