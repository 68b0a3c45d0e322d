"""Test helper that stores a benchmark in the format of the video builders."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds


class _Fake(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    VERSION = tfds.core.Version("1.0.0")
    content: Any = None

    def _info(self):
        classes, class_splits, _ = self.content
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Text(),
                    "video_id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=classes),
                }
            ),
            metadata=tfds.core.MetadataDict(class_splits=class_splits),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(part) for name, part in self.content[2].items()}

    def _generate_examples(self, videos):
        for video, label in videos:
            yield video, {"video": "", "video_id": video, "label": label}


def store(
    data_dir: str | os.PathLike[str],
    name: str,
    classes: Sequence[str],
    class_splits: Mapping[str, Mapping[str, Any]] | None = None,
    videos: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    config: str | None = None,
) -> None:
    """Builds a dataset without video content.

    Args:
      data_dir: folder for built datasets.
      name: name of the dataset.
      classes: class names.
      class_splits: class splits of the metadata.
      videos: id and class of each video, by TFDS split; one train video if None.
      config: name of the configuration; the default one of the real builder if None.
    """
    videos = videos or {"train": [("some_video", classes[0])]}
    attributes: dict[str, Any] = {
        "__module__": __name__,
        "content": (classes, dict(class_splits or {}), videos),
    }
    config = config or {"ucf101_zsar": "intra", "hmdb51_zsar": "intra"}.get(name, "video")
    attributes["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config)]
    builder = type(name, (_Fake,), {**attributes, "name": name}, skip_registration=True)
    made = builder(data_dir=data_dir, file_format="array_record")
    made.download_and_prepare()
