"""A report of runs as one HTML page that needs no network; `coco-jax report` calls it."""

import importlib.util
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from coco_jax.config import load_stored
from coco_jax.data import dataset as datasets
from coco_jax.data.clip_reader import stored
from coco_jax.errors import UserError
from coco_jax.evaluation import html, results
from coco_jax.evaluation.html import Element, Number, decimal, element, percent
from coco_jax.evaluation.stored_runs import Experiment, Run, load
from coco_jax.training.checkpoint import read_json

MAX_CLIPS = 16  # videos with frames, one for each unseen class
MAX_MISTAKES = 12


def draw(folders: Sequence[pathlib.Path], clips: bool = True) -> str:
    """The page.

    Args:
      folders: of experiments or of runs.
      clips: also show frames of videos, if the dataset is there.

    Raises:
      UserError: see `stored_runs.load`.
    """
    experiments = [load(folder) for folder in folders]
    sections = [_experiment(i, each, clips) for i, each in enumerate(experiments)]
    links = [
        element("li", element("a", title, href=f"#{name}"))
        for section in sections
        for name, title in _anchors(section)
    ]
    names = ", ".join(dict.fromkeys(each.summary["dataset"] for each in experiments))
    contents = element("nav", element("ul", *links), aria_label="Contents")
    return html.page(f"Zero-shot action recognition: {names}", contents, *sections)


def _anchors(section: Element) -> Iterator[tuple[str, str]]:
    for head in section.iter("h2"):
        yield head.get("id", ""), "".join(head.itertext())


def _experiment(number: int, experiment: Experiment, clips: bool) -> Element:
    """All sections of an experiment; their anchors have its number."""
    first = experiment.first_runs
    last = first[-1]

    def part(name: str, title: str, *content: Element | None) -> Element:
        return element("section", element("h2", title, id=f"{name}-{number}"), *content)

    return element(
        "section",
        part("results", f"Results of {experiment.folder}", *_ablations(experiment.summary)),
        part("classes", "Accuracy of each unseen class", _classes(experiment.runs)),
        part("confusion", "Confusion of unseen classes", *map(_confusion, first)),
        part("texts", "Seen actions behind unseen ones", *_each(first, _neighbours)),
        part("captions", "Captions that videos attend to", *_each(first, _captions)),
        part("curves", "Calibration, seen against unseen accuracy", *_each(first, _curves)),
        part("clips", f"Videos ({last.name})", *_clips(last, clips)),
        aria_label=str(experiment.folder),
    )


def _ablations(summary: dict[str, Any]) -> list[Element]:
    ablations = summary["ablations"]
    shown = [
        field
        for field in results.GENERALISED
        if any(got["generalised"][field] is not None for got in ablations.values())
    ]
    ridge = [kind for kind in results.RIDGE if all(got["ridge"] for got in ablations.values())]
    head = ["ablation", "top-1", "std", "runs", "top-5", *shown]
    for kind in ridge:
        head += [f"{kind} ridge", "difference"]
    rows = []
    for name, got in ablations.items():
        top1, top5 = got["top1"], got["top5"]
        count = len(top1["runs"])
        row: list[html.Cell] = [name, percent(top1["mean"])]
        row += [percent(top1["std"] if count > 1 else None), Number(count, str(count))]
        row += [percent(top5 and top5["mean"])]
        row += [percent(got["generalised"][field]) for field in shown]
        for kind in ridge:
            row += [percent(got["ridge"][kind][field]["mean"]) for field in ("top1", "difference")]
        rows.append(row)
    caption = (
        "In percent; std is the standard deviation over the runs. seen, unseen, harmonic and auc: with "
        "seen and unseen candidates together (generalised zero-shot), means over classes."
    )
    values = {name: got["top1"]["runs"] for name, got in ablations.items()}
    drawing = html.dots("Top-1 accuracy of every run", values, summary["chance"])
    return [
        element("p", results.heading(summary)),
        html.table(caption, head, rows),
        html.figure(
            drawing,
            "Top-1 accuracy in percent: a dot for each run, a bar at the mean; the dashed line is "
            "chance.",
        ),
    ]


def _classes(runs: Sequence[Run]) -> Element:
    """Accuracy of each class in each ablation, over the runs in which it is unseen."""
    ablations = list(dict.fromkeys(run.result["ablation"] for run in runs))
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, accuracy in run.result["per_class"].items():
            if accuracy is not None:
                of_class = found.setdefault(name, {})
                of_class.setdefault(run.result["ablation"], []).append(accuracy)
    rows: list[list[html.Cell]] = []
    for name in sorted(found):
        cells = [_mean(found[name].get(ablation, [])) for ablation in ablations]
        rows.append([name, *cells])
    caption = (
        "Accuracy in percent: mean ± standard deviation over the runs in which the class is unseen, and "
        "their number. Press the name of a column to sort by it."
    )
    return html.table(caption, ["action", *ablations], rows)


def _mean(values: Sequence[float]) -> Number:
    if not values:
        return Number(None, "-")
    mean = float(np.mean(values))
    if len(values) == 1:
        return percent(mean)
    return Number(mean, f"{100 * mean:.1f} ± {100 * np.std(values, ddof=1):.1f} ({len(values)})")


def _confusion(run: Run) -> Element:
    names = run.result["unseen_classes"]
    counts_KK = np.array(run.result["confusion"])
    total_K = counts_KK.sum(1)
    title = f"{run.name}: top-1 {100 * run.result['top1']:.1f}"
    drawing = html.confusion(counts_KK, names, f"Confusion matrix of {title}")
    mistakes = counts_KK - np.diag(np.diag(counts_KK))
    worst = np.argsort(-mistakes, axis=None, kind="stable")[:MAX_MISTAKES]
    rows: list[list[html.Cell]] = []
    for true, guess in zip(*np.unravel_index(worst, mistakes.shape), strict=True):
        if count := int(mistakes[true, guess]):
            share = percent(count / total_K[true])
            rows.append([names[true], names[guess], Number(count, str(count)), share])
    head = ("action", "predicted as", "videos", "percent of its videos")
    return element(
        "details",
        element("summary", title),
        html.figure(
            drawing, "Rows: the true action; columns: the predicted one; darker: a larger share."
        ),
        html.table("The most frequent mistakes", head, rows) if rows else None,
        open="",
    )


def _each(runs: Sequence[Run], describe: Any) -> list[Element]:
    """A part for each run that has details; at the end what is missing and why."""
    parts, without = [], []
    for run in runs:
        if run.details is None:
            without.append(run.name)
        elif content := describe(run.result, run.details):
            parts.append(element("h3", run.name))
            parts += content
    if without:
        parts.append(
            element(
                "p",
                f"Missing for {'; '.join(without)}: the folder has no {results.DETAILS}, because an "
                "older version evaluated the run. Remove its result.json and run `coco-jax evaluate`.",
                class_="soft",
            )
        )
    return parts or [element("p", "None of these runs has any.", class_="soft")]


def _neighbours(result: dict[str, Any], details: dict[str, Any]) -> list[Element]:
    """Nearest seen actions, and seen actions that rebuild an unseen one."""

    def listed(entries: Iterable[dict[str, Any]], field: str) -> str:
        return ", ".join(f"{entry['action']} {entry[field]:.2f}" for entry in entries)

    rebuilt = details["rebuilt"]
    rows = []
    for name in result["unseen_classes"]:
        row: list[html.Cell] = [name, percent(result["per_class"].get(name))]
        row.append(listed(details["nearest"].get(name, ()), "cosine"))
        if rebuilt:
            row.append(listed(rebuilt.get(name, ()), "weight"))
        rows.append(row)
    head = ["unseen action", "accuracy", "nearest seen actions (cosine)"]
    caption = "Nearest: by the cosine of the text features that the model compares with videos."
    if rebuilt:
        head.append("rebuilt from (weight)")
        caption += (
            " Rebuilt from: the seen actions with the highest weights when the model rebuilds the "
            "action: the attention of the cycle, or the coefficients of the regression."
        )
    return [html.table(caption, head, rows)]


def _captions(result: dict[str, Any], details: dict[str, Any]) -> list[Element]:
    """The captions with the highest attention of one video of each unseen class."""
    parts = []
    for entry in details["captions"] or ():
        is_right = entry["action"] == entry["predicted"]
        verdict = "recognised" if is_right else f"predicted as {entry['predicted']}"
        rows = [
            [caption["text"], name, decimal(caption["weight"])]
            for name, captions in entry["of"].items()
            for caption in captions
        ]
        head = ("caption", "of the action", "weight")
        parts.append(
            element(
                "details",
                element("summary", f"{entry['action']} ({verdict})"),
                html.table(f"Video {entry['video_id']}: highest attention weights", head, rows),
            )
        )
    return parts


def _curves(result: dict[str, Any], details: dict[str, Any]) -> list[Element]:
    """The reliability diagram and the curve of seen against unseen accuracy."""
    calibration, curve = details["calibration"], details["curve"]
    chart = html.Chart("Reliability diagram", "confidence, percent", "accuracy, percent")
    filled = [entry for entry in calibration["bins"] if entry["videos"]]
    for entry in filled:
        about = f"{entry['videos']} videos: accuracy {100 * entry['accuracy']:.1f}"
        chart.bar(entry["low"], entry["high"], entry["accuracy"], about)
    chart.line([(0, 0), (1, 1)], "dashed")
    error = 100 * calibration["error"]
    temperature = calibration["temperature"]
    figures = [
        html.figure(
            chart.svg,
            "Accuracy by confidence, the highest share of the softmax over the unseen actions "
            f"(temperature {temperature:.3g}). On the dashed line both are equal. Expected calibration "
            f"error: {error:.1f}.",
        )
    ]
    if curve:
        chart = html.Chart("Seen against unseen accuracy", "unseen, percent", "seen, percent")
        chart.line(zip(curve["unseen"], curve["seen"], strict=False))
        about = ""
        if general := result.get("generalised"):
            chart.dot(general["unseen"], general["seen"], "without an offset")
            about = f" The dot is without an offset; the area is {100 * general['auc']:.1f}."
        figures.append(
            html.figure(
                chart.svg,
                "Accuracies with seen and unseen candidates, for every offset on the scores of the seen "
                f"ones.{about}",
            )
        )
    rows = [
        [Number(e["low"], f"{100 * e['low']:.0f} to {100 * e['high']:.0f}"),
         Number(e["videos"], str(e["videos"])), percent(e["confidence"]), percent(e["accuracy"])]
        for e in filled
    ]  # fmt: skip
    head = ("confidence", "videos", "mean confidence", "accuracy")
    numbers = html.table("The bars of the reliability diagram, in percent", head, rows)
    shown = element("details", element("summary", "Numbers"), numbers)
    return [element("div", *figures, class_="row"), shown]


def _clips(run: Run, wanted: bool) -> list[Element]:
    """A video of each unseen class with the actions that the model finds in it."""
    records: datasets.Records | None = None
    missing = "Frames were not asked for."
    if wanted:
        try:
            config = load_stored(read_json(run.folder / "config.json"), str(run.folder))
            records, missing = _records(config)
        except UserError as error:
            missing = f"No frames: {error.args[0]}"
    parts = [] if records else [element("p", missing, class_="soft")]
    for example in run.result["examples"][:MAX_CLIPS]:
        guesses = [(guess["action"], guess.get("share")) for guess in example["top"]]
        strip = _frames(records, example) if records else None
        parts.append(
            element(
                "div",
                element("h3", example["action"]),
                strip,
                _guesses(guesses, example),
                class_="clip",
            )
        )
    return parts


def _guesses(guesses: Sequence[tuple[str, float | None]], example: dict[str, Any]) -> Element:
    """Bars of the best guesses; their names alone for version 0.1, which stored no shares."""
    title = f"The best guesses for video {example['video_id']}"
    shares = [(name, share) for name, share in guesses if share is not None]
    if len(shares) < len(guesses):
        return element("p", f"{title}: {', '.join(name for name, _ in guesses)}")
    return html.bars(
        shares,
        example["action"],
        f"{title} and their shares of the softmax (blue: the true action)",
    )


def _records(config: ConfigDict) -> tuple[datasets.Records | None, str]:
    """The videos of a run; or None, and the reason.

    Raises:
      UserError: the dataset is not there.
    """
    if config.video_tower.kind == "features":
        return None, "No frames: the model was trained on stored features, not on videos."
    if not importlib.util.find_spec("tensorflow_datasets"):
        return None, 'No frames: opening the dataset needs pip install "coco_jax[train]".'
    return datasets.open_dataset(config).records, ""


def _frames(records: datasets.Records, example: dict[str, Any]) -> Element:
    index = example["record"]
    if not 0 <= index < len(records) or records.video_ids[index] != example["video_id"]:
        return element("p", "No frames: the dataset has changed since.", class_="soft")
    try:
        return html.frames(stored(records[index]), example["video_id"])
    except UserError as error:
        return element("p", f"No frames: {error.args[0]}", class_="soft")
