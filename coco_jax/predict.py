"""Names the actions in your own videos.

python -m coco_jax.predict --video=a.mp4 --actions="juggling, rope skipping"

It uses the pretrained recogniser (docs/pretrained.md); with --model, a model that was trained or saved;
with --towers, published towers such as CLIP (docs/towers.md).

Exit codes: 0: all videos were ranked; 2: the command could not start; 3: some videos could not be read,
and the output gives the reason for each.
"""

import importlib.util
import json
import math
import pathlib
import sys
from typing import Any

from absl import flags

import coco_jax
from coco_jax.command import run_command, writable_folder
from coco_jax.errors import UserError
from coco_jax.printing import printable

SOME_FAILED = 3
RENDERED = "motion_zsar"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "model",
        None,
        "The folder of a model that was saved, or of a run; by default the pretrained model.",
    )
    flags.DEFINE_alias("checkpoint", "model")
    flags.DEFINE_string("towers", None, "Published towers as they are: a preset such as clip_b32.")
    flags.DEFINE_string(
        "weights",
        None,
        "Of the published towers: a file, a folder, or hf:org/name; by default those of --towers.",
    )
    flags.DEFINE_integer(
        "windows", 3, "Of the pretrained model: at most so many windows of 2.56 s of each video."
    )
    flags.DEFINE_string(
        "threshold",
        None,
        'Adds the row "none of these", first if all raw scores are below this number; "default" takes '
        "the number that comes with the model.",
    )
    flags.DEFINE_multi_string("video", [], "A video file; may be given several times.")
    flags.DEFINE_bool("samples", False, "Also three sample videos, downloaded once (22 MB).")
    flags.DEFINE_string("actions", None, 'Candidate actions: "juggling, rope skipping".')
    flags.DEFINE_string(
        "actions_file",
        None,
        "File of candidate actions: one per line, or CSV with a column action.",
    )
    flags.DEFINE_string(
        "descriptions",
        None,
        "File of captions: JSON {action: [caption, ...]}, or CSV action,description.",
    )
    flags.DEFINE_bool("json", False, "Print JSON instead of text.")
    flags.DEFINE_integer("top", None, "Print only so many actions of each video.", lower_bound=1)
    flags.DEFINE_string("plot", None, "Draw frames and the best actions of each video: FILE.png.")


def command(argv: list[str]) -> None:
    """Prints the ranked actions of each video as soon as it is read."""
    del argv
    from coco_jax.recognition.inputs import read_actions, read_descriptions

    values = flags.FLAGS
    if not (values.video or values.samples):
        raise UserError("--video is missing; name one or more video files, or give --samples")
    if values.plot:
        _check_plot(pathlib.Path(values.plot))
    actions = read_actions(values.actions, values.actions_file)
    descriptions = read_descriptions(values.descriptions) if values.descriptions else None
    paths = list(values.video)
    if values.samples:
        from coco_jax.data import samples

        paths += map(str, samples.fetch())

    recognizer = _load(values)
    threshold = _threshold(values.threshold, recognizer.default_threshold)
    _print_training_data(recognizer.training_data)
    candidates = recognizer.embed_actions(actions, descriptions)
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[str, list[tuple[str, float]]]] = []
    failed = 0
    for path, ranked in recognizer.rank_each(paths, candidates, threshold):
        if isinstance(ranked, UserError):
            failed += 1
            rows.append({"video": path, "error": str(ranked)})
        else:
            shares = [{"action": name, "score": score} for name, score in ranked[: values.top]]
            rows.append({"video": path, "actions": shares})
            drawn.append((path, ranked))
        if not values.json:
            _print_row(rows[-1])
    if values.json:
        print(json.dumps(rows, indent=2))
    if values.plot and drawn:
        from coco_jax.evaluation import plots

        print(plots.recognised(drawn, pathlib.Path(values.plot)), file=sys.stderr)
    if failed:
        print(f"{failed} of {len(rows)} videos could not be read", file=sys.stderr)
        sys.exit(SOME_FAILED)


def _load(values: flags.FlagValues) -> Any:
    """The recogniser that the flags name."""
    if values.model and (values.towers or values.weights):
        raise UserError("--model and --towers or --weights name two models; give one of them")
    if values.windows < 1:
        raise UserError(f"--windows={values.windows}: must be at least 1")
    where = values.model or values.weights
    recognizer: Any
    if where or values.towers:
        recognizer = coco_jax.load(where, values.towers)
        if isinstance(recognizer, coco_jax.PretrainedRecognizer) and values["windows"].present:
            recognizer.windows = values.windows
    else:
        recognizer = coco_jax.PretrainedRecognizer(values.windows)
    return recognizer


def _threshold(given: str | None, default: float | None) -> float | None:
    """The number that --threshold means.

    Raises:
      UserError: it is no number, or the model has no default.
    """
    if given is None:
        return None
    if given != "default":
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"--threshold={given}: neither a number nor 'default'")
        return number
    if default is None:
        raise UserError(
            "--threshold=default: nobody has measured one for this model; give a number, chosen on "
            "videos that are not those to be ranked"
        )
    return default


def _check_plot(path: pathlib.Path) -> None:
    """Checks what can be checked before the videos are read.

    Raises:
      UserError: the file is not named .png, its folder is not writable, or matplotlib is missing.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"--plot={path}: give a file name that ends in .png")
    if not importlib.util.find_spec("matplotlib"):
        raise UserError("--plot needs matplotlib: pip install matplotlib")
    writable_folder(path.parent, "--plot")


def _print_row(row: dict[str, Any]) -> None:
    print(printable(row["video"]))
    if "error" in row:
        print(f"  error: {printable(row['error'])}")
    for entry in row.get("actions", ()):
        print(f"  {entry['score']:6.1%}  {printable(entry['action'])}", flush=True)


def _print_training_data(name: str) -> None:
    note = f"This model was trained on {name}."
    if name.partition("/")[0] == RENDERED:
        note += " It has seen only rendered shapes: its answers on real videos mean nothing."
    print(printable(note), file=sys.stderr)


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.predict")


if __name__ == "__main__":
    main()
