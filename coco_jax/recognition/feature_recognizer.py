"""Names actions in videos with a CoCo that was trained on features of videos."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from coco_jax.data.clip_reader import ClipReader
from coco_jax.errors import UserError
from coco_jax.recognition.pretrained import PretrainedRecognizer
from coco_jax.recognition.ranking import Path
from coco_jax.recognition.recognizer import Recognizer


@dataclasses.dataclass(frozen=True)
class FeatureRecognizer(Recognizer):
    """Runs I3D, and on its features a model that was trained on the output of `coco-jax features`.

    I3D's weights come from the package that the pretrained recogniser needs; a saved model does not
    contain them.
    """

    @classmethod
    def check_kind(cls, config: ConfigDict, folder: Path) -> None:
        """Checks that videos can be turned into the features of a model.

        Raises:
          UserError: the config does not say which network made them, or maps texts in closed form.
        """
        if not config.video_tower.extractor:
            raise UserError(
                f"{folder}: this model was trained on stored features, not on videos. If `coco-jax "
                "features` made them, train with --config.video_tower.extractor=i3d"
            )
        if config.alignment != "learned":
            raise UserError(
                f"{folder}: a model with config.alignment={config.alignment!r} is evaluated on stored "
                "features only; train one with config.alignment='learned'"
            )

    @functools.cached_property
    def source(self) -> PretrainedRecognizer:
        """Reads videos and has the network that makes the features."""
        return PretrainedRecognizer()

    def embed_clips(self, clips_BTHWC: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B D"]:
        """The unit vectors of clips."""
        return super().embed_clips(np.asarray(self.source.clip_features(clips_BTHWC)))

    def embed_video(self, path: Path | bytes) -> Float[np.ndarray, " D"]:
        """The unit vector of a video: of its mean feature, as in training.

        Raises:
          VideoError: the file cannot be decoded.
        """
        return super().embed_clips(self.source.features(path)[None])[0]

    def clip_reader(self, clips: int | None = None) -> ClipReader:
        """Reads windows as I3D needs them."""
        return self.source.clip_reader(clips)

    def clips_of(self, path: Path | bytes) -> int:
        """As of the pretrained recogniser.

        Raises:
          VideoError: the file cannot be read.
        """
        return self.source.clips_of(path)

    def clip_function(self) -> Callable[[ArrayLike], jax.Array]:
        """As `embed_clips`, without a mesh."""
        embed_features = super().clip_function()
        return lambda clips: embed_features(self.source.clip_features(clips))
