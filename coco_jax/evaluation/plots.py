"""Plots of results: confusion matrices of the unseen classes, and example clips."""

import pathlib
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from coco_jax.data import dataset as datasets
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import stored
from coco_jax.errors import UserError
from coco_jax.printing import printable

STRIP_FRAMES = 6
MAX_CLIPS = 16  # at most so many clips, one for each unseen class
MAX_NAMES = 40  # the axes of a larger confusion matrix have no class names


def draw(
    runs: list[dict[str, Any]], config: ConfigDict, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Draws the first run of every ablation; returns the paths of the plots.

    If the dataset is absent (finished runs can be copied to another machine), no clips are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = {run["ablation"]: run for run in reversed(runs)}
    first = {name: first[name] for name in dict.fromkeys(run["ablation"] for run in runs)}
    written = [confusion(list(first.values()), folder / "confusion.png")]
    best = list(first.values())[-1]
    if config.video_tower.kind == "features":
        return written  # features have no frames to show
    try:
        written.append(strip(best, config, folder / "clips.png"))
    except UserError as error:
        print(printable(f"{folder}/clips.png is not drawn: {error}"), file=sys.stderr)
    return written


def _plain(name: str) -> str:
    """A name as matplotlib draws it: without control characters, and `$` begins no formula."""
    return printable(name).replace("$", r"\$")


def confusion(runs: list[dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
    """Draws confusion matrices of the unseen classes side by side, in percent of the true class."""
    figure = Figure(figsize=(5 * len(runs), 5), layout="constrained")
    for i, run in enumerate(runs):
        counts = np.array(run["confusion"])
        axes = figure.add_subplot(1, len(runs), i + 1)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        names = list(map(_plain, run["unseen_classes"]))
        if len(names) <= MAX_NAMES:
            axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
            axes.set_yticks(range(len(names)), names if i == 0 else [], fontsize=8)
        if len(names) <= 20:
            for (y, x), share in np.ndenumerate(shares):
                color = "white" if share > 50 else "black"
                axes.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
        title = f"{run['ablation']}: top-1 {100 * run['top1']:.1f}%"
        axes.set(
            title=f"{title} (split {run['split']}, seed {run['seed']})", xlabel="predicted action"
        )
    figure.axes[0].set_ylabel("true unseen action")
    figure.savefig(path, dpi=110)
    return path


def strip(run: dict[str, Any], config: ConfigDict, path: pathlib.Path) -> pathlib.Path:
    """Draws one clip of each unseen class with its top-3 predictions, the true action in green."""
    records = datasets.open_dataset(config).records
    examples = run["examples"][:MAX_CLIPS]
    figure = Figure(figsize=(12, 1.5 * len(examples)), layout="constrained")
    for row, example in enumerate(examples):
        frames = videos.decode(
            stored(records[example["record"]]),
            lambda info: videos.sample_times(STRIP_FRAMES, info.duration, "uniform"),
            short_side=128,
        )
        axes = figure.add_subplot(len(examples), 2, 2 * row + 1)
        axes.imshow(np.concatenate(frames, axis=1))
        axes.set_title(_plain(example["action"]), fontsize=9, loc="left")
        axes.axis("off")
        bars = figure.add_subplot(len(examples), 2, 2 * row + 2)
        top = example["top"][::-1]
        names = [guess["action"] for guess in top]
        colors = ["tab:green" if name == example["action"] else "tab:gray" for name in names]
        bars.barh(
            list(map(_plain, names)), [100 * guess.get("share", 0) for guess in top], color=colors
        )
        bars.set_xlim(0, 100)
        bars.tick_params(labelsize=8)
        if row == len(examples) - 1:
            bars.set_xlabel("share of the unseen actions' softmax, percent", fontsize=8)
    figure.suptitle(
        f"{run['ablation']}: a clip of each unseen action and the three best predictions"
    )
    figure.savefig(path, dpi=80)
    return path
