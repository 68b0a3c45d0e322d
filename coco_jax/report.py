"""Writes a report of finished runs: one HTML file that needs no network.

coco-jax report runs/motion --output=report.html

The arguments are folders of experiments (with results.json) or of single runs (with result.json).
"""

import pathlib

from absl import flags

from coco_jax.command import run_command, writable_folder
from coco_jax.errors import UserError


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("output", "report.html", "The file to write: FILE.html.")
    flags.DEFINE_bool("clips", True, "Show frames of videos, if the dataset is there.")


def command(argv: list[str]) -> None:
    """Reads the runs and writes the page."""
    from coco_jax import files
    from coco_jax.evaluation import report

    output, folders = pathlib.Path(flags.FLAGS.output), [pathlib.Path(word) for word in argv[1:]]
    if not folders:
        raise UserError("no runs; name the folder of an experiment, e.g. coco-jax report runs/demo")
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise UserError(f"--output={output}: give a file name that ends in .html")
    writable_folder(output.parent, "--output")
    page = report.draw(folders, flags.FLAGS.clips).encode()
    files.write_bytes(output, page)
    print(f"{output} ({len(page) / 1e6:.1f} MB)")


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.report", accepts_words=True)


if __name__ == "__main__":
    main()
