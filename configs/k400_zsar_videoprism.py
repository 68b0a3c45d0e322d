"""Kinetics-ZSAR with VideoPrism-LvT base, a video tower of its own: 16 frames of 288 pixels."""

from configs import k400_zsar, towers


def get_config():
    c = k400_zsar.get_config()
    towers.videoprism_base(c)
    c.data.batch = 128
    c.optimizer.groups = ((r"video/.*", 0.05), (r".*", 1.0))
    return c
