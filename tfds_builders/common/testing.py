"""Generates small videos for tests and for running a protocol without its data."""

import functools
import pathlib
from collections.abc import Iterable

import numpy as np

from coco_jax.data import video as videos


@functools.lru_cache(maxsize=256)
def video(seed: int, *, frames: int = 6, size: int = 32, container: str = "mp4") -> bytes:
    """Encodes a video of a square that moves over noise.

    Args:
      seed: determines the content; the same arguments give the same bytes.
      frames: number of frames, at 8 frames per second.
      size: height and width, in pixels.
      container: container format; "avi" is encoded as MPEG-4, any other as H.264.
    """
    rng = np.random.default_rng(seed)
    clip_THWC = np.repeat(rng.integers(0, 128, (1, size, size, 3), np.uint8), frames, 0)
    color = rng.integers(128, 256, 3)
    for t in range(frames):
        at = (seed + 2 * t) % (size - 8)
        clip_THWC[t, at : at + 8, 4:12] = color
    codec = "mpeg4" if container == "avi" else "libx264"
    return videos.encode(clip_THWC, fps=8, codec=codec, container=container)


def write(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Writes a generated video to each path.

    Args:
      folder: the folder that the paths are relative to.
      names: the paths; those that end in .avi become AVI files, all others MP4 files.
    """
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video(seed, container="avi" if name.endswith(".avi") else "mp4"))
