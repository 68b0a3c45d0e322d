"""Builds a dataset: python -m tfds_builders.build motion_zsar --data_dir=data.

`tfds build tfds_builders/NAME --file_format=array_record` does the same with more options, and
needs Apache Beam installed even for builders that do not use it.
"""

import contextlib
import difflib
import importlib
import pathlib
import shutil
from typing import Any

from absl import flags

from coco_jax.command import run_command, writable_folder
from coco_jax.errors import UserError
from tfds_builders.common import user_lists


def names() -> list[str]:
    """The datasets that can be built."""
    here = pathlib.Path(__file__).parent
    return sorted(path.parent.name for path in here.glob("*/*_dataset_builder.py"))


def _module(dataset: str) -> Any:
    return importlib.import_module(f"tfds_builders.{dataset}.{dataset}_dataset_builder")


def build(
    name: str, data_dir: str, manual_dir: str | None = None, beam: str | None = None, **options: Any
) -> pathlib.Path:
    """Builds `name` or `name/config` into `data_dir` as array_record; returns its folder.

    A dataset that exists is left as it is, unless the lists in `manual_dir` have changed. Files that
    an interrupted build left are removed.

    Args:
      name: a folder of tfds_builders/, with a config if it has several.
      data_dir: folder for built datasets.
      manual_dir: folder with files that the user fetched.
      beam: Apache Beam's pipeline options, `a=b,c`; without them this process builds alone.
      options: of the builder: max_broken, jpeg_side, jpeg_fps, cleaning.

    Raises:
      UserError: there is no such builder, or the data cannot be used.
    """
    import filelock
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    if dataset not in names():
        near = difflib.get_close_matches(dataset, names(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"there is no builder for {dataset!r}; {hint}the datasets are {', '.join(names())}"
        )
    try:
        builder = _module(dataset).Builder(
            data_dir=data_dir, config=config or None, file_format="array_record"
        )
    except ValueError as error:
        configs = getattr(_module(dataset).Builder, "builder_configs", {})
        if config and configs and config not in configs:
            raise UserError(
                f"{dataset} has no config {config!r}; it has {', '.join(configs)}"
            ) from error
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    _set_options(builder, options, beam)
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    if beam is not None:
        download.beam_options = _beam_options(beam)
    folder = pathlib.Path(builder.data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            lists = user_lists.digest(manual_dir)
            if folder.is_dir():
                stored = user_lists.stored_digest(folder)
                if manual_dir is None or stored is None or lists == stored:
                    return folder
                print(f"{folder}: the lists in {manual_dir} have changed; building it again")
                shutil.rmtree(folder)
                builder = _module(dataset).Builder(
                    data_dir=data_dir, config=config or None, file_format="array_record"
                )
                _set_options(builder, options, beam)
            builder.download_and_prepare(download_config=download)
            if dataset in user_lists.DATASETS:
                user_lists.store_digest(folder, lists)
            if "label" in builder.info.features:
                from coco_jax.data.dataset import write_index

                write_index(builder)
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is building it; wait for that one") from error
    except (NotADirectoryError, PermissionError, FileExistsError) as error:
        raise UserError(
            f"--data_dir={data_dir}: {error.strerror}; choose another folder"
        ) from error
    return folder


def _set_options(builder: Any, options: dict[str, Any], beam: str | None) -> None:
    for option, value in options.items():
        if hasattr(builder, option):  # builders of texts have no options of videos
            setattr(builder, option, value)
    if beam is not None:
        builder.beam = True


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
    """Locks a dataset, and removes the unfinished files of a build that was killed."""
    import filelock

    with filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
        for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(left)
        yield


def _beam_options(text: str) -> Any:
    try:
        from apache_beam.options import pipeline_options
    except ImportError as error:
        raise UserError(
            "--beam_pipeline_options: Apache Beam is not installed; pip install -r "
            "requirements-beam.txt"
        ) from error
    return pipeline_options.PipelineOptions(
        [f"--{o.strip()}" for o in text.split(",") if o.strip()]
    )


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("data_dir", "data", "Folder for built datasets (config.data.dir).")
    flags.DEFINE_string("manual_dir", None, "Folder with files that you fetched by hand.")
    flags.DEFINE_float(
        "max_broken",
        0.01,
        "Share of a split's videos that may be broken (but at least 3 videos may); they are left "
        "out and listed in report.json.",
    )
    flags.DEFINE_integer("jpeg_side", 288, "Short side of JPEG frames, in pixels.")
    flags.DEFINE_float("jpeg_fps", 8.0, "JPEG frames a second.")
    flags.DEFINE_string(
        "cleaning", "all", "Cleaning steps of descriptions (tfds_builders/actionhub/README.md)."
    )
    flags.DEFINE_string(
        "beam_pipeline_options",
        None,
        'Build with Apache Beam: "runner=DirectRunner", "runner=DataflowRunner,..."',
    )


def command(argv: list[str]) -> None:
    """Builds the datasets that the arguments name."""
    values = flags.FLAGS
    if len(argv) < 2:
        raise UserError(f"name a dataset to build: {', '.join(names())}")
    if not 0 <= values.max_broken <= 1:
        raise UserError(f"--max_broken={values.max_broken}: a share, from 0 to 1")
    if not 16 <= values.jpeg_side <= 2160 or not 0 < values.jpeg_fps <= 120:
        raise UserError("--jpeg_side: 16 to 2160 pixels; --jpeg_fps: up to 120 a second")
    writable_folder(pathlib.Path(values.data_dir), "--data_dir")
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
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "tfds_builders.build", accepts_words=True)


if __name__ == "__main__":
    main()
