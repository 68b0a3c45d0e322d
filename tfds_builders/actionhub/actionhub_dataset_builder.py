"""actionhub: descriptions of actions, one row an example; see README.md."""

import pathlib
import sys
from collections.abc import Iterable

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

# `tfds build FOLDER` imports this file as `actionhub.actionhub_dataset_builder` and puts only
# `tfds_builders/` on the path; the project's own packages are found from the root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.errors import UserError  # noqa: E402
from tfds_builders.actionhub import readers  # noqa: E402

# TFDS shuffles up to 1 GiB of examples in memory before it turns to the disk; this much is enough.
SHUFFLE_BYTES = 128 << 20


class Builder(tfds.core.GeneratorBasedBuilder):
    """Texts that tell what an action looks like; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Action, description, source and video_id."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(
            name="motion", description="The corpus of the embedded benchmark motion_zsar."
        ),
        tfds.core.BuilderConfig(
            name="manual", description="Whatever corpus files lie in manual_dir."
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "motion"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Place *.json, *.jsonl, *.csv, *.tsv or ACTION.txt files (each may be gzipped) there; "
        "tfds_builders/actionhub/README.md shows their forms."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in readers.Row._fields}
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),  # filled while the rows are read
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        tally = readers.Tally()
        rows: Iterable[tuple[int, readers.Row]]
        if self.builder_config.name == "manual":
            rows = readers.read(_manual_dir(dl_manager), tally)
        else:
            from tfds_builders.motion_zsar import language

            corpus = enumerate(readers.Row(**row) for row in language.corpus())
            rows = ((key, row) for key, row in corpus if tally.check(row))
        self.info.metadata.update(tally.metadata)
        return {"train": self._generate_examples(rows)}

    def _generate_examples(self, rows: Iterable[tuple[int, readers.Row]]):
        before, shuffle.MAX_MEM_BUFFER_SIZE = shuffle.MAX_MEM_BUFFER_SIZE, SHUFFLE_BYTES
        try:
            for key, row in rows:
                yield key, row._asdict()
        finally:
            shuffle.MAX_MEM_BUFFER_SIZE = before


def _manual_dir(dl_manager: tfds.download.DownloadManager) -> pathlib.Path:
    try:
        return pathlib.Path(dl_manager.manual_dir)
    except AssertionError as error:  # not there, or empty: several lines of TFDS
        place = " ".join(str(error).split(". ")[0].split())
        raise UserError(f"{place}; {Builder.MANUAL_DOWNLOAD_INSTRUCTIONS}") from None
