"""Kinetics-ZSAR with VideoPrism-LvT base, a video tower of its own: 16 frames of 288 pixels."""

from coco_jax.configs import k400_zsar

from coco_jax import presets


def get_config():
    c = k400_zsar.get_config()
    presets.apply(c, "videoprism_base")
    c.data.batch = 128
    c.optimizer.learning_rate_multipliers = ((r"video/.*", 0.05), (r".*", 1.0))
    return c
