"""HMDB51, intra-dataset: train on a random half of the classes, test on the other; ten of the 50 trials.

Videos: tfds_builders/hmdb51_zsar/README.md; descriptions: tfds_builders/actionhub/README.md.
"""

from coco_jax.configs import k400_zsar


def get_config():
    c = k400_zsar.get_config()
    c.sweep.split = tuple(str(trial) for trial in range(1, 11))
    c.data.name = "hmdb51_zsar/intra"
    c.text.corpus = "actionhub/hmdb51_zsar"
    c.data.batch = 64
    c.optimizer.steps = 4_000
    c.optimizer.warmup = 400
    return c
