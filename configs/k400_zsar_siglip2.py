"""Kinetics-ZSAR with SigLIP 2 B/16 in place of CLIP: attention pooling, Gemma's tokenizer."""

from configs import k400_zsar, towers


def get_config():
    c = k400_zsar.get_config()
    towers.siglip2_b16(c)
    c.video.temporal = "transformer"
    return c
