"""What a sweep found: results.json and the table on the terminal."""

import json
import os
import pathlib
from typing import Any

import numpy as np

from coco_jax.evaluation import metrics

GENERALISED = ("seen", "unseen", "harmonic", "auc")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def summarise(runs: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """results.json of finished runs, each `{"ablation", "split", "seed", **evaluate's figures}`.

    `runs` of a figure are ordered by split, then seed; `std` is over all of them.
    """
    ablations: dict[str, Any] = {}
    for name in dict.fromkeys(run["ablation"] for run in runs):
        mine = [run for run in runs if run["ablation"] == name]
        general = [run["generalised"] for run in mine if run["generalised"]]
        ablations[name] = {
            "top1": metrics.mean_std(_values(mine, "top1")),
            "top5": metrics.mean_std(_values(mine, "top5")),
            "generalised": {
                field: float(np.mean([run[field] for run in general])) if general else None
                for field in GENERALISED
            },
        }
    unseen = {len(run["unseen_classes"]) for run in runs}
    return {
        "dataset": config["data"]["name"],
        "tested": config["data"]["test_name"],
        "protocol": config["protocol"],
        "pool": config["cycle"]["pool"],
        "chance": float(np.mean([1 / count for count in unseen])),
        "splits": list(dict.fromkeys(run["split"] for run in runs)),
        "seeds": list(dict.fromkeys(run["seed"] for run in runs)),
        "config": config,
        "ablations": ablations,
    }


def _values(runs: list[dict[str, Any]], figure: str) -> list[float]:
    """A figure of every run, or, of cross-dataset runs, of every test set of their first group."""
    found: list[float] = []
    for run in runs:
        found += next(iter(run["cross"].values()))[figure] if "cross" in run else [run[figure]]
    return found


def table(results: dict[str, Any]) -> str:
    """The figures as a Markdown table, in percent; generalised ones are means over classes."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def spread(figure: dict[str, Any]) -> str:
        several = len(figure["runs"]) > 1
        return percent(figure["mean"]) + (f" ± {percent(figure['std'])}" if several else "")

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
