"""The results of a sweep: results.json and the printed table."""

import json
import pathlib
from typing import Any

import numpy as np

from coco_jax import files
from coco_jax.evaluation import metrics

FORMAT = 2  # version of results.json
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
    """The metrics as a Markdown table, in percent; generalised ones are means over classes."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def spread(metric: dict[str, Any] | None) -> str:
        if metric is None:
            return "-"
        several = len(metric["runs"]) > 1
        return percent(metric["mean"]) + (f" ± {percent(metric['std'])}" if several else "")

    head = ("ablation", "top-1", "top-5", *GENERALISED)
    rows = [
        (name, spread(got["top1"]), spread(got["top5"]),
         *(percent(got["generalised"][field]) for field in GENERALISED))
        for name, got in results["ablations"].items()
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
