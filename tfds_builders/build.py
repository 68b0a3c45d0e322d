"""Builds a dataset: python -m tfds_builders.build motion_zsar --data_dir=data.

`tfds build tfds_builders/NAME --file_format=array_record` does the same with more options, and
needs Apache Beam installed even for builders that do not use it.
"""

import contextlib
import importlib
import os
import pathlib
import shutil
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets everyone who imports it

from absl import app, flags

from coco_jax.errors import UserError, parser, reported

_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where built datasets go (config.data.dir).")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Where files placed by hand lie.")
_MAX_BROKEN = flags.DEFINE_float(
    "max_broken",
    0.01,
    "Share of a split's videos that may be broken (they are left out, and listed).",
)
_JPEG_SIDE = flags.DEFINE_integer("jpeg_side", 288, "Short side of JPEG frames, in pixels.")
_JPEG_FPS = flags.DEFINE_float("jpeg_fps", 8.0, "JPEG frames a second.")
_CLEANING = flags.DEFINE_string(
    "cleaning", "all", "Steps that descriptions go through (tfds_builders/actionhub/README.md)."
)
_BEAM = flags.DEFINE_string(
    "beam_pipeline_options",
    None,
    'Build with Apache Beam under these options: "runner=DirectRunner", "runner=DataflowRunner,..."',
)


def names() -> list[str]:
    """The datasets that have a builder here."""
    here = pathlib.Path(__file__).parent
    return sorted(path.parent.name for path in here.glob("*/*_dataset_builder.py"))


def needs(name: str) -> Any:
    """What the builder of `name` wants fetched (`base.Needs`); None if nothing, or no builder."""
    dataset = name.partition("/")[0]
    if dataset not in names() or name == "actionhub/motion":
        return None
    return getattr(_module(dataset).Builder, "NEEDS", None)


def _module(dataset: str) -> Any:
    return importlib.import_module(f"tfds_builders.{dataset}.{dataset}_dataset_builder")


def build(
    name: str, data_dir: str, manual_dir: str | None = None, beam: str | None = None, **options: Any
) -> pathlib.Path:
    """Builds `name` or `name/config` into `data_dir` as array_record; returns its folder.

    A dataset that is there already is left as it is; what an interrupted build left is removed.

    Args:
      name: a folder of tfds_builders/, with a configuration if it has several.
      data_dir: where built datasets go.
      manual_dir: where files placed by hand lie.
      beam: Apache Beam's pipeline options, `a=b,c`; without, this process builds alone.
      options: the builder's own: max_broken, jpeg_side, jpeg_fps, cleaning.

    Raises:
      UserError: there is no such builder, or the builder met data it cannot use.
    """
    import filelock
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    if dataset not in names():
        raise UserError(f"no builder for {dataset!r}; there are {', '.join(names())}")
    try:
        builder = _module(dataset).Builder(
            data_dir=data_dir, config=config or None, file_format="array_record"
        )
    except ValueError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    for option, value in options.items():
        if hasattr(builder, option):  # those of videos mean nothing to a builder of texts
            setattr(builder, option, value)
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    if beam is not None:
        builder.beam = True
        download.beam_options = _beam_options(beam)
    folder = pathlib.Path(builder.data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if folder.is_dir():
                return folder
            builder.download_and_prepare(download_config=download)
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


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
    """Holds a dataset's lock, and clears away what a killed build left: TFDS renames when done."""
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


def main(argv: list[str]) -> None:
    """The command."""
    with reported("tfds_builders.build"):
        if len(argv) < 2:
            raise UserError(f"name a dataset to build: {', '.join(names())}")
        if not 0 <= _MAX_BROKEN.value <= 1:
            raise UserError(f"--max_broken={_MAX_BROKEN.value}: a share, from 0 to 1")
        if not 16 <= _JPEG_SIDE.value <= 2160 or not 0 < _JPEG_FPS.value <= 120:
            raise UserError("--jpeg_side: 16 to 2160 pixels; --jpeg_fps: up to 120 a second")
        for name in argv[1:]:
            options = {
                "max_broken": _MAX_BROKEN.value,
                "jpeg_side": _JPEG_SIDE.value,
                "jpeg_fps": _JPEG_FPS.value,
                "cleaning": _CLEANING.value,
            }
            print(build(name, _DATA_DIR.value, _MANUAL_DIR.value, _BEAM.value, **options))


if __name__ == "__main__":
    app.run(main, flags_parser=parser("tfds_builders.build", words=True))
