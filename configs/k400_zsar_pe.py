"""Kinetics-ZSAR with PE-Core B/16 in place of CLIP: rotary positions, attention pooling, 8 frames.

`pe_core_l14` and `pe_core_g14` are larger. As with CLIP, the centre of a frame is used; PE-Core's
authors squash the whole frame instead (docs/towers.md).
"""

from coco_jax.configs import k400_zsar

from coco_jax import presets


def get_config():
    c = k400_zsar.get_config()
    presets.apply(c, "pe_core_b16")
    c.video_tower.temporal = "transformer"
    return c
