"""Extracts features of the videos of a folder, to train CoCo on them.

coco-jax features FOLDER --output=features/i3d.npz --labels

The features are those of I3D, or of the model that a flag names; a video has one vector, the mean over
its clips. FILE is .npz or .h5, in a form that the dataset video_features reads: arrays `features` and
`ids`, where an id is the path below FOLDER. With --labels, videos.csv beside FILE gets the label of each
video: the folder ACTION of ACTION/video.mp4. See docs/datasets.md.

Exit codes: 0: done; 2: the command could not start; 3: some videos could not be read, and stderr gives
the reason for each.
"""

import pathlib

from absl import flags

from coco_jax.command import report_unreadable, run_command, writable_folder
from coco_jax.errors import UserError
from coco_jax.printing import printable
from coco_jax.recognition import model_flags


def define_flags() -> None:
    """Defines the flags of the command."""
    model_flags.define_flags()
    flags.DEFINE_string("output", None, "The file of features: FILE.npz or FILE.h5.")
    flags.DEFINE_bool("labels", False, "Also write videos.csv, with the label of each video.")


def command(argv: list[str]) -> None:
    """Writes the features."""
    from coco_jax.recognition import features, index

    values = flags.FLAGS
    if len(argv) != 2 or not values.output:
        raise UserError("give a folder and a file: features FOLDER --output=FILE.npz")
    output = pathlib.Path(values.output)
    features.check_output(output)
    files = index.find(argv[1])
    labels = features.labels(files) if values.labels else None
    writable_folder(output.parent, "--output")
    found = features.extract(model_flags.loader(values)(), files)
    features.write(output, found.features, labels)
    print(f"{printable(str(output))}: {len(found.features):,} vectors of {found.width} values")
    report_unreadable(found.unreadable, len(files))


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.features", accepts_words=True)


if __name__ == "__main__":
    main()
