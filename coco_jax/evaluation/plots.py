"""Plots: confusion matrices of the unseen classes, and videos with the actions found in them."""

import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from coco_jax.data import dataset as datasets
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import stored
from coco_jax.errors import UserError
from coco_jax.printing import printable

MAX_CLIPS = 16  # at most so many clips, one for each unseen class
MAX_VIDEOS, MAX_BARS = 40, 5  # at most so many videos of the user, and so many actions of each
MAX_NAMES = 40  # the axes of a larger confusion matrix have no class names
STRIP = (7.4, 1.1)  # width and height of the frames of a video, in inches
ROW = 1.5  # inches for a video: its frames, its name and a margin
BARS, NAMES = 4.9, 2.3  # inches for names, bars and scores; of these for the names
DPI = 150
MARKED, OTHER = "#0072b2", "#b8b8b8"  # blue and grey: distinct in lightness, for any colour vision


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


def confusion(runs: list[dict[str, Any]], path: pathlib.Path) -> pathlib.Path:
    """Draws confusion matrices of the unseen classes side by side, in percent of the true class."""
    figure = Figure(figsize=(5 * len(runs), 5), layout="constrained")
    for i, run in enumerate(runs):
        counts = np.array(run["confusion"])
        axes = figure.add_subplot(1, len(runs), i + 1)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        names = [printable(name).replace("$", r"\$") for name in run["unseen_classes"]]  # no math
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
    """Draws one clip of each unseen class with its top-3 predictions, the true action in blue."""
    records = datasets.open_dataset(config).records
    rows = []
    for example in run["examples"][:MAX_CLIPS]:
        frames = _frames(stored(records[example["record"]]))
        guesses = [(guess["action"], guess.get("share", 0)) for guess in example["top"]]
        rows.append(Row(example["action"], frames, guesses, example["action"]))
    return _draw_rows(
        rows,
        path,
        f"{run['ablation']}: a clip of each unseen action; the model's three best guesses and their "
        "shares of the softmax (blue: the true action)",
    )


def recognised(
    ranked: Sequence[tuple[str | os.PathLike[str], Sequence[tuple[str, float]]]], path: pathlib.Path
) -> pathlib.Path:
    """Draws videos with their best actions: one row for each, frames left, names and scores right.

    Args:
      ranked: video files, each with its actions and scores in [0, 1], best first; the first
        `MAX_VIDEOS` videos and the first `MAX_BARS` actions are drawn.
      path: of the PNG file.

    Raises:
      VideoError: a video cannot be decoded.
    """
    rows = [
        Row(pathlib.Path(video).name, _frames(video), guesses[:MAX_BARS], guesses[0][0])
        for video, guesses in ranked[:MAX_VIDEOS]
    ]
    if len(ranked) > MAX_VIDEOS:
        print(f"{path} shows the first {MAX_VIDEOS} of {len(ranked)} videos", file=sys.stderr)
    return _draw_rows(rows, path)


class Row(NamedTuple):
    """A video with guessed actions and their scores in [0, 1], best first."""

    title: str
    frames: UInt8[np.ndarray, "T H W 3"]
    guesses: Sequence[tuple[str, float]]
    marked: str  # the action whose bar is blue


def _frames(video: videos.Video) -> UInt8[np.ndarray, "T H W 3"]:
    """Evenly spaced frames: as many as fill the place for them."""

    def times(info: videos.VideoInfo) -> np.ndarray:
        count = round(STRIP[0] / STRIP[1] * info.height / info.width)
        return videos.sample_times(min(max(count, 1), 12), info.duration, "uniform")

    return videos.decode(video, times, short_side=round(STRIP[1] * DPI))


def _draw_rows(rows: Sequence[Row], path: pathlib.Path, title: str = "") -> pathlib.Path:
    with warnings.catch_warnings():  # a name may have characters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        _figure(rows, title).savefig(path)
    return path


def _side_by_side(frames_THWC: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "H V 3"]:
    """One image of all frames, which is much faster to draw, with white gaps of 2 % between them."""
    gap = round(0.02 * frames_THWC.shape[2]) or 1
    frames_THVC = np.pad(frames_THWC, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(frames_THVC), 1)[:, :-gap]


def _figure(rows: Sequence[Row], title: str) -> Figure:
    top = 0.35 if title else 0.1
    width, height = STRIP[0] + BARS + 0.2, top + ROW * len(rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)  # has one renderer; without it each text is measured with a new one
    if title:
        _text(figure, 0.1 / width, 1 - 0.2 / height, title, width - 0.2, fontsize=10)

    def box(left: float, bottom: float, w: float, h: float) -> Axes:  # inches, from the lower left
        return figure.add_axes((left / width, bottom / height, w / width, h / height))

    for number, row in enumerate(rows):
        bottom = height - top - ROW * (number + 1)
        image = _side_by_side(row.frames)
        scale = min(STRIP[0] / image.shape[1], STRIP[1] / image.shape[0])
        size = scale * image.shape[0]  # narrow or short strips are at the upper left
        axes = box(0.1, bottom + ROW - 0.25 - size, scale * image.shape[1], size)
        axes.imshow(image, aspect="auto")
        axes.set_axis_off()
        above = (bottom + ROW - 0.13) / height
        _text(figure, 0.1 / width, above, row.title, STRIP[0], fontsize=9)
        bars = box(0.1 + STRIP[0] + NAMES, bottom + 0.1, BARS - NAMES - 0.6, ROW - 0.2)
        bars.set(xlim=(0, 1), ylim=(MAX_BARS - 0.5, -0.5))
        bars.set_axis_off()
        for y, (name, share) in enumerate(row.guesses):
            color = MARKED if name == row.marked else OTHER
            bars.barh(y, share, height=0.7, color=color)
            _text(bars, -0.03, y, name, NAMES - 0.2, fontsize=9, ha="right")
            _text(bars, share + 0.03, y, f"{share:.1%}", 1, fontsize=9)
    return figure


def _text(where: Figure | Axes, x: float, y: float, text: str, inches: float, **style: Any) -> None:
    """Draws one line; cuts it at a width, and replaces what no font can draw."""
    line = " ".join(text.encode(errors="replace").decode().split())[:150]
    drawn = where.text(x, y, line, parse_math=False, va="center", **style)  # "$" is not math
    while line and (width := drawn.get_window_extent().width / DPI) > inches:
        line = line[: min(len(line) - 1, int(len(line) * inches / width))]
        drawn.set_text(f"{line}\N{HORIZONTAL ELLIPSIS}")
