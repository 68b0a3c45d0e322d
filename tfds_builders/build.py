"""Builds a dataset: python -m tfds_builders.build motion_zsar --data_dir=data.

`tfds build tfds_builders/NAME --file_format=array_record` does the same with more options, and
needs Apache Beam installed even for builders that do not use it.
"""

import importlib
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets everyone who imports it

from absl import app, flags

from coco_jax.errors import UserError, reported

_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where built datasets go (config.data.dir).")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Where files placed by hand lie.")


def names() -> list[str]:
    """The datasets that have a builder here."""
    here = pathlib.Path(__file__).parent
    return sorted(path.parent.name for path in here.glob("*/*_dataset_builder.py"))


def build(name: str, data_dir: str, manual_dir: str | None = None) -> pathlib.Path:
    """Builds `name` or `name/config` into `data_dir` as array_record; returns its folder.

    A dataset that is there already is left as it is.

    Raises:
      UserError: there is no such builder, or the builder met data it cannot use.
    """
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    if dataset not in names():
        raise UserError(f"no builder for {dataset!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"tfds_builders.{dataset}.{dataset}_dataset_builder")
    try:
        builder = module.Builder(
            data_dir=data_dir, config=config or None, file_format="array_record"
        )
    except ValueError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
        )
    except (NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"--data_dir={data_dir}: {error.strerror}; choose another folder"
        ) from error
    return pathlib.Path(builder.data_dir)


def main(argv: list[str]) -> None:
    """The command."""
    with reported("tfds_builders.build"):
        if len(argv) < 2:
            raise UserError(f"name a dataset to build: {', '.join(names())}")
        for name in argv[1:]:
            print(build(name, _DATA_DIR.value, _MANUAL_DIR.value))


if __name__ == "__main__":
    app.run(main)
