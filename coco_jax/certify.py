"""Checks the evidence.json of a finished run, or writes it: coco-jax certify RUN."""

import json
import pathlib
import sys

from absl import flags

from coco_jax.command import run_command
from coco_jax.errors import UserError
from coco_jax.printing import printable

PROGRAM = "coco_jax.certify"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("data_dir", None, "Folder of the built datasets; by default the run's.")
    flags.DEFINE_bool("json", False, "Print JSON instead of text.")


def command(argv: list[str]) -> None:
    """Prints what was checked; exit code 1 if something is wrong."""
    from coco_jax.evaluation import certification

    if len(argv) != 2:
        raise UserError(
            "give the folder of one run, e.g. coco-jax certify runs/motion/full/split1/seed0"
        )
    checks = certification.certify(pathlib.Path(argv[1]), flags.FLAGS.data_dir)
    if flags.FLAGS.json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        for check in checks:
            print(
                printable(f"{check.part:14} {check.state}{': ' * bool(check.reason)}{check.reason}")
            )
    if any(check.state == certification.WRONG for check in checks):
        sys.exit(1)


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, PROGRAM, accepts_words=True)


if __name__ == "__main__":
    main()
