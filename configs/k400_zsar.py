"""Kinetics-ZSAR: train on Kinetics-400, test on 160 of Kinetics-600's 220 new classes, three splits.

The protocol is Elaborative Rehearsal's (arXiv 2108.02833); papers report the mean over the splits.
Towers: CLIP ViT-B/16, 8 frames of 224 pixels, bfloat16, a small transformer over the frames; the text
tower stays as published, so descriptions come from the bank. Data: docs/datasets.md. Nothing here has
been tuned: nobody has run it yet.
"""

from coco_jax import config, presets


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

    presets.apply(c, "clip_b16")
    c.video_tower.frames = 8
    c.video_tower.temporal = "transformer"
    c.text_tower.trainable = "none"
    c.model.dtype = "bfloat16"
    c.model.remat = True

    c.optimizer.steps = 30_000
    c.optimizer.warmup = 2_000
    c.optimizer.learning_rate = 1e-4
    c.optimizer.learning_rate_multipliers = (
        (r"video/temporal/.*", 1.0),
        (r"video/.*", 0.05),
        (r".*", 1.0),
    )
    return c
