"""Says what differs between two runs or sweeps, then compares their numbers: coco-jax compare A B."""

import json
import pathlib

from absl import flags

from coco_jax.command import run_command
from coco_jax.errors import UserError

PROGRAM = "coco_jax.compare"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("json", False, "Print JSON instead of text.")


def command(argv: list[str]) -> None:
    """Compares the two arguments: evidence.json files, folders of runs, or workdirs."""
    from coco_jax.evaluation import compare

    if len(argv) != 3:
        raise UserError("give two runs, e.g. coco-jax compare runs/a runs/b")
    runs = [compare.open_runs(pathlib.Path(where)) for where in argv[1:]]
    result = compare.compare(*runs)
    if flags.FLAGS.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(compare.report(result, (argv[1], argv[2])))


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, PROGRAM, accepts_words=True)


if __name__ == "__main__":
    main()
