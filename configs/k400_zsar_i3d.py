"""Kinetics-ZSAR with I3D, whose weights come with pip, and frozen MiniLM texts.

I3D was trained on the 400 seen classes and on no unseen one. Its clips are 64 frames at 25 frames a
second (2.56 s); 16 frames at the same rate are four times faster. Nothing here has been tuned, and
nobody has run it on Kinetics yet. Data: docs/datasets.md.
"""

from coco_jax import config, presets


def get_config():
    c = config.default()
    c.sweep.split = ("1", "2", "3")

    c.data.name = "kinetics_zsar/video"
    c.data.batch = 64
    c.data.workers = 16
    c.data.sampling = "dense"
    c.data.stride = 0.04
    c.data.crop = 0.875  # 224 of a short side of 256 pixels
    c.data.views = 4
    c.text.corpus = "actionhub/kinetics_zsar"
    c.text.templates = ("{}", "a video of {}")

    presets.apply(c, "minilm_package")
    presets.apply(c, "i3d")
    c.video_tower.trainable = "none"  # "all" trains it, with its batch statistics as published
    c.text_tower.trainable = "none"
    c.model.dtype = "bfloat16"
    c.model.remat = True

    c.optimizer.steps = 10_000
    c.optimizer.warmup = 500
    c.optimizer.learning_rate = 1e-3
    return c
