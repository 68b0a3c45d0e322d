"""SigLIP B/16 without training: --config=zero_shot_siglip:DATASET (see configs/zero_shot.py)."""

from coco_jax.configs import zero_shot


def get_config(dataset="k400_zsar"):
    return zero_shot.get_config(f"siglip_b16,{dataset}")
