"""Kinetics-ZSAR: train on Kinetics-400, test on 160 of Kinetics-600's 220 new classes, three splits.

The protocol is Elaborative Rehearsal's (arXiv 2108.02833); the paper's table is its mean over the
splits. Videos: tfds_builders/kinetics_zsar/README.md; descriptions: tfds_builders/actionhub/README.md.
"""

from coco_jax import config


def get_config():
    c = config.default()
    c.sweep.split = ("1", "2", "3")

    c.data.name = "kinetics_zsar/video"
    c.data.batch = 256
    c.data.workers = 16
    c.data.color = 0.4

    c.text.corpus = "actionhub/kinetics_zsar"
    c.text.descriptions = 8
    c.text.eval_descriptions = 64

    c.video.frames = 8
    c.video.size = 224
    c.optimizer.steps = 30_000
    c.optimizer.warmup = 2_000
    return c
