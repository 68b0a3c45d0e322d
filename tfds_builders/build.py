"""Command that builds datasets: `python -m tfds_builders.build motion_zsar --data_dir=data`.

`tfds build tfds_builders/NAME --file_format=array_record` builds the same dataset and has more
options, but requires Apache Beam even for builders that do not use it.
"""

import contextlib
import difflib
import importlib
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from absl import flags

from coco_jax.command import beam_options, run_command, writable_folder
from coco_jax.errors import UserError
from tfds_builders.common import user_lists


def names() -> list[str]:
    """Returns the sorted names of the datasets that can be built."""
    here = pathlib.Path(__file__).parent
    return sorted(path.parent.name for path in here.glob("*/*_dataset_builder.py"))


def _module(dataset: str) -> Any:
    return importlib.import_module(f"tfds_builders.{dataset}.{dataset}_dataset_builder")


def build(
    name: str, data_dir: str, manual_dir: str | None = None, beam: str | None = None, **options: Any
) -> pathlib.Path:
    """Builds a dataset as array_record files.

    An existing dataset is not built again, unless the lists in `manual_dir` (videos.csv, splits.json,
    unseen.txt) have changed. It is replaced when the new one is complete. Files of interrupted builds of
    the same dataset are removed.

    Args:
      name: `DATASET` or `DATASET/CONFIG`; DATASET is one of `names()`.
      data_dir: folder for built datasets.
      manual_dir: folder of files that the user downloaded.
      beam: pipeline options of Apache Beam, "a=b,c"; None to build without Beam.
      **options: options of the builder: max_broken, jpeg_side, jpeg_fps, cleaning. Options that the
        builder does not have are ignored.

    Returns:
      The folder of the dataset.

    Raises:
      UserError: there is no such dataset or configuration, its input files are missing or invalid,
        `data_dir` is not writable, or another process is building the dataset.
    """
    import filelock
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    if dataset not in names():
        near = difflib.get_close_matches(dataset, names(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"no dataset is called {dataset!r}; {hint}the datasets are {', '.join(names())}"
        )
    try:
        builder = _module(dataset).Builder(
            data_dir=data_dir, config=config or None, file_format="array_record"
        )
    except ValueError as error:
        configs = getattr(_module(dataset).Builder, "builder_configs", {})
        if config and configs and config not in configs:
            raise UserError(
                f"{dataset} has no config {config!r}; use one of {', '.join(configs)}"
            ) from error
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    _set_options(builder, options, beam)
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    if beam is not None:
        download.beam_options = beam_options(beam)
    folder = pathlib.Path(builder.data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            lists = user_lists.digest(manual_dir)
            if not folder.is_dir():
                _prepare(builder, download, lists)
                return folder
            stored = user_lists.stored_digest(folder)
            if manual_dir is None or stored is None or lists == stored:
                return folder
            print(f"{folder}: the lists in {manual_dir} have changed; rebuilding the dataset")
            # The new dataset is built in another folder: if that fails, the old one is still there.
            with tempfile.TemporaryDirectory(
                dir=folder.parent, prefix="incomplete.", suffix=f"_{folder.name}"
            ) as other:
                builder = _module(dataset).Builder(
                    data_dir=other, config=config or None, file_format="array_record"
                )
                _set_options(builder, options, beam)
                _prepare(builder, download, lists)
                folder.rename(pathlib.Path(other) / "old")
                pathlib.Path(builder.data_dir).rename(folder)
    except filelock.Timeout as error:
        raise UserError(
            f"{folder}: another process is building it; wait until it has finished"
        ) from error
    except (NotADirectoryError, PermissionError, FileExistsError) as error:
        raise UserError(
            f"--data_dir={data_dir}: {error.strerror}; choose another folder"
        ) from error
    return folder


def _prepare(builder: Any, download: Any, lists: str) -> None:
    """Builds a dataset, and stores what later builds and runs need next to it."""
    builder.download_and_prepare(download_config=download)
    folder = pathlib.Path(builder.data_dir)
    if builder.name in user_lists.DATASETS:
        user_lists.store_digest(folder, lists)
    if "label" in builder.info.features:
        from coco_jax.data.dataset import write_index

        write_index(builder)


def _set_options(builder: Any, options: dict[str, Any], beam: str | None) -> None:
    for option, value in options.items():
        if hasattr(builder, option):  # builders of descriptions lack the options of videos
            setattr(builder, option, value)
    if beam is not None:
        builder.beam = True


@contextlib.contextmanager
def _locked(folder: pathlib.Path):
    """Locks the folder of a dataset and removes the files of interrupted builds."""
    import filelock

    with filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
        for incomplete in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(incomplete)
        yield


def define_flags() -> None:
    """Defines the command-line flags."""
    flags.DEFINE_string("data_dir", "data", "Folder for built datasets (config.data.dir).")
    flags.DEFINE_string("manual_dir", None, "Folder of files that you downloaded yourself.")
    flags.DEFINE_float(
        "max_broken",
        0.01,
        "Fraction of a split's videos that may be broken; up to 3 videos may be in any case. They are "
        "left out and listed in report.json.",
    )
    flags.DEFINE_integer(
        "jpeg_side", 288, "Short side of JPEG frames, in pixels (configs with jpeg)."
    )
    flags.DEFINE_float("jpeg_fps", 8.0, "JPEG frames per second (configs with jpeg).")
    flags.DEFINE_string(
        "cleaning",
        "all",
        "Cleaning steps of actionhub: all, none, steps to run, or with a - before each steps to omit "
        "(tfds_builders/actionhub/README.md).",
    )
    flags.DEFINE_string(
        "beam_pipeline_options",
        None,
        "Builds with Apache Beam and these options, separated by commas, such as "
        '"runner=DirectRunner".',
    )


def command(argv: list[str]) -> None:
    """Builds the datasets named on the command line and prints their folders.

    Args:
      argv: the name of the program, then names of datasets.

    Raises:
      UserError: no dataset is named, a flag is out of range, or a build fails.
    """
    values = flags.FLAGS
    if len(argv) < 2:
        raise UserError(f"no dataset is named; name one or more of {', '.join(names())}")
    if not 0 <= values.max_broken <= 1:
        raise UserError(f"--max_broken={values.max_broken}: must be a fraction from 0 to 1")
    if not 16 <= values.jpeg_side <= 2160:
        raise UserError(f"--jpeg_side={values.jpeg_side}: must be from 16 to 2160 pixels")
    if not 0 < values.jpeg_fps <= 120:
        raise UserError(
            f"--jpeg_fps={values.jpeg_fps}: must be above 0 and at most 120 frames per second"
        )
    writable_folder(pathlib.Path(values.data_dir), "--data_dir")
    if not sys.stderr.isatty():  # in a log file each update of a progress bar would be a line
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
    options = {
        "max_broken": values.max_broken,
        "jpeg_side": values.jpeg_side,
        "jpeg_fps": values.jpeg_fps,
        "cleaning": values.cleaning,
    }
    for name in argv[1:]:
        print(
            build(name, values.data_dir, values.manual_dir, values.beam_pipeline_options, **options)
        )


def main() -> None:
    """Parses sys.argv and runs the command."""
    define_flags()
    run_command(command, "tfds_builders.build", accepts_words=True)


if __name__ == "__main__":
    main()
