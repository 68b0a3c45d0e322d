"""Names the actions in your own videos.

python -m coco_jax.predict --video=a.mp4 --actions="juggling, rope skipping"

Without --checkpoint it uses the pretrained recogniser (docs/pretrained.md).

Exit codes: 0: all videos were ranked; 2: the command could not start; 3: some videos could not be read,
and the output gives the reason for each.
"""

import json
import sys
from typing import Any

from absl import flags

import coco_jax
from coco_jax.command import run_command
from coco_jax.errors import UserError
from coco_jax.printing import printable

SOME_FAILED = 3
RENDERED = "motion_zsar"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "checkpoint",
        None,
        "The folder of a run (it has config.json); without it, the pretrained model.",
    )
    flags.DEFINE_integer(
        "windows", 3, "Of the pretrained model: at most so many windows of 2.56 s of each video."
    )
    flags.DEFINE_multi_string("video", [], "A video file; may be given several times.")
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


def command(argv: list[str]) -> None:
    """Prints the ranked actions of each video as soon as it is read."""
    del argv
    from coco_jax.recognition.inputs import read_actions, read_descriptions

    values = flags.FLAGS
    if not values.video:
        raise UserError("--video is missing; name one or more video files")
    actions = read_actions(values.actions, values.actions_file)
    descriptions = read_descriptions(values.descriptions) if values.descriptions else None

    recognizer: Any
    if values.checkpoint:
        recognizer = coco_jax.load(values.checkpoint)
    else:
        recognizer = coco_jax.PretrainedRecognizer(values.windows)
    _print_training_data(recognizer.training_data)
    candidates = recognizer.embed_actions(actions, descriptions)
    rows: list[dict[str, Any]] = []
    failed = 0
    for path, ranked in recognizer.rank_each(values.video, candidates):
        if isinstance(ranked, UserError):
            failed += 1
            rows.append({"video": path, "error": str(ranked)})
        else:
            shares = [{"action": name, "score": score} for name, score in ranked]
            rows.append({"video": path, "actions": shares})
        if not values.json:
            _print_row(rows[-1])
    if values.json:
        print(json.dumps(rows, indent=2))
    if failed:
        print(f"{failed} of {len(rows)} videos could not be read", file=sys.stderr)
        sys.exit(SOME_FAILED)


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
