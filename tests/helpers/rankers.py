"""A recogniser whose answers are known: its actions are colours, found by the mean of all pixels."""

import types

import numpy as np

from coco_jax.config import default
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.recognition.inputs import check_actions
from coco_jax.recognition.ranking import VideoRanker
from coco_jax.recognition.tables import Table

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourRanker(VideoRanker):
    """The raw score of a colour is its share in the clips; that of any other action is 0.

    `clips` counts the clips that were embedded, and `batches` the calls.
    """

    training_data = "nothing"
    temperature = 0.2
    clip_batch = 1
    vector_width, fingerprint = 3, "colours"

    def __init__(self, views: int = 2):
        self.views, self.clips, self.batches = views, 0, 0

    def embed_actions(self, actions, descriptions=None):
        check_actions(actions)
        return types.SimpleNamespace(names=tuple(actions))

    def embed_clips(self, clips_BTHWC):
        self.clips, self.batches = self.clips + len(clips_BTHWC), self.batches + 1
        return (clips_BTHWC.mean((1, 2, 3)) / 255).astype(np.float32)

    def clip_reader(self, clips=None):
        config = default()
        config.video_tower.update(frames=8, size=32)
        config.data.update(sampling="dense", stride=0.3, views=clips or self.views)
        return ClipReader(config, training=False)

    def clips_of(self, path):
        return self.views

    def pool(self, v_XD):
        return v_XD.mean(0)

    def compare(self, v_XD, candidates):
        return self.table(candidates).scores(v_XD)

    def table(self, candidates):
        colour_KD = np.array([COLOURS.get(name, (0, 0, 0)) for name in candidates.names]) / 255
        return Table(
            candidates.names, colour_KD.astype(np.float32), np.zeros(len(colour_KD), np.float32)
        )

    def clip_function(self):
        return lambda clips: clips.astype(np.float32).mean((1, 2, 3)) / 255


def coloured(*parts: tuple[str, float], fps: int = 10, size: tuple[int, int] = (32, 48)) -> bytes:
    """A video that has each colour for so many seconds."""
    frames = [
        np.full((*size, 3), COLOURS[name], np.uint8)
        for name, s in parts
        for _ in range(round(s * fps))
    ]
    return videos.encode(np.stack(frames), fps)
