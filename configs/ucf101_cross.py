"""UCF101, cross-dataset: train on Kinetics-400, test on all of UCF101's classes and on random halves.

The first figure is the mean over the three official test splits; `half` in result.json is over ten
random halves of the classes, all their videos.
"""

from coco_jax.configs import k400_zsar


def get_config():
    c = k400_zsar.get_config()
    c.sweep.split = ()
    c.protocol = "cross"
    c.data.test_name = "ucf101_zsar/cross"
    c.data.test_splits = ("1", "2", "3", *(f"half{trial}" for trial in range(1, 11)))
    c.text.corpus = "actionhub/manual"  # descriptions of both benchmarks' classes
    return c
