"""Writes a recogniser for programs without coco_jax.

coco-jax export pretrained --format=onnx --actions="juggling, rope skipping" --output=FOLDER
coco-jax export runs/mine/full/split1/seed0 --format=stablehlo --actions_file=actions.txt --output=FOLDER

MODEL is `pretrained`, the folder of a model or of a run, or hf:org/name. FOLDER gets a function of
clips, a table of the actions, and what is needed to run them; examples/run_exported.py runs it. With
--only_actions only the table is written, to replace that of an export. See docs/export.md.
"""

import pathlib

from absl import flags

import coco_jax
from coco_jax.command import run_command
from coco_jax.errors import UserError
from coco_jax.printing import printable

FORMATS = ("stablehlo", "onnx")


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_enum(
        "format", "stablehlo", FORMATS, "stablehlo runs in JAX, onnx in ONNX Runtime."
    )
    flags.DEFINE_string("output", None, "A new folder; with --only_actions that of an export.")
    flags.DEFINE_string("towers", None, "Published towers: the preset of MODEL, such as clip_b32.")
    flags.DEFINE_string("actions", None, 'Actions of the table: "juggling, rope skipping".')
    flags.DEFINE_string("actions_file", None, "File of actions: one a line, or CSV.")
    flags.DEFINE_string("descriptions", None, "File of captions, as for predict.")
    flags.DEFINE_bool("only_actions", False, "Write only the table of actions.")


def command(argv: list[str]) -> None:
    """Writes the export."""
    from coco_jax.recognition import export
    from coco_jax.recognition.inputs import read_actions, read_descriptions

    values = flags.FLAGS
    if len(argv) != 2 or not values.output:
        raise UserError('give a model and a folder: export MODEL --output=FOLDER --actions="x,y"')
    actions = read_actions(values.actions, values.actions_file)
    descriptions = read_descriptions(values.descriptions) if values.descriptions else None
    recognizer = coco_jax.load(None if argv[1] == "pretrained" else argv[1], values.towers)
    candidates = recognizer.embed_actions(actions, descriptions)
    folder = pathlib.Path(values.output)
    if values.only_actions:
        export.replace_table(recognizer, candidates, folder)
    else:
        export.export(recognizer, candidates, values.format, folder)
    for path in sorted(folder.iterdir()):
        print(f"{printable(str(path))}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.export", accepts_words=True)


if __name__ == "__main__":
    main()
