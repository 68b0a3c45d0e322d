"""kinetics_prototypes: the columns of I3D's classifier of 400 Kinetics actions; see README.md."""

import pathlib
import sys

import numpy as np
import tensorflow_datasets as tfds

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.weights import files, i3d, packages

WIDTH = 1024  # of a column
SEEN, VALIDATION = 300, 75  # classes in every random split


class Builder(tfds.core.GeneratorBasedBuilder):
    """Stores one vector for each of the 400 actions; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "400 prototypes, random class splits named by numbers."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        classes = list(i3d.kinetics_400())
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "features": tfds.features.Tensor(shape=(WIDTH,), dtype=np.float32),
                    "video_id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=classes),
                }
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(
                class_splits={"all": {"seen": classes, "unseen": []}},
                random_splits={"seen": SEEN, "validation": VALIDATION},
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        path = files.locate(packages.I3D, "video_tower.weights", files.NAMES)
        classifier = i3d.classifier(files.read(path))
        for number, (name, column_F) in enumerate(
            zip(classifier.classes, classifier.kernel.T, strict=True)
        ):
            video_id = f"prototype_{number:03d}"
            yield number, {"features": column_F, "video_id": video_id, "label": name}
