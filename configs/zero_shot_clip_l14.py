"""CLIP L/14 without training: --config=zero_shot_clip_l14:DATASET (see configs/zero_shot.py)."""

from coco_jax.configs import zero_shot


def get_config(dataset="k400_zsar"):
    return zero_shot.get_config(f"clip_l14,{dataset}")
