"""Kinetics-ZSAR with SigLIP 2 B/16 in place of CLIP: attention pooling, Gemma's tokenizer."""

from coco_jax.configs import k400_zsar

from coco_jax import presets


def get_config():
    c = k400_zsar.get_config()
    presets.apply(c, "siglip2_b16")
    c.video_tower.temporal = "transformer"
    return c
