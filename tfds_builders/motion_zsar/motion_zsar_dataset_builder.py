"""motion_zsar: a small zero-shot action recognition benchmark with rendered clips; see README.md."""

import numpy as np
import tensorflow_datasets as tfds

from coco_jax.data import video as videos
from tfds_builders.motion_zsar import language, render

TEST_CLIPS = 8  # per action, of 40 clips; the other 32 are in split train


class Builder(tfds.core.GeneratorBasedBuilder):
    """Renders 40 clips for each of 32 actions and encodes them as H.264; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "32 actions, 40 clips each, three class splits."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(shape=(), dtype=np.object_),  # mp4 bytes
                    "video_id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=[a.name for a in language.ACTIONS]),
                }
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(class_splits=language.class_splits()),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        test = language.CLIPS_PER_ACTION - TEST_CLIPS
        return {
            "train": self._generate_examples(range(test)),
            "test": self._generate_examples(range(test, language.CLIPS_PER_ACTION)),
        }

    def _generate_examples(self, clips: range):
        for action in language.ACTIONS:
            for clip in clips:
                name = language.video_id(action, clip)
                video = videos.encode(render.clip(action, clip), fps=render.FPS)
                yield name, {"video": video, "video_id": name, "label": action.name}
