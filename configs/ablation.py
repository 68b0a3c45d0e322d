"""The four ablations of configs/demo.py on all three splits, three seeds each: 36 runs, one table."""

from coco_jax.configs import demo


def get_config():
    c = demo.get_config()
    c.sweep.ablation = ("label", "label+desc", "label+cycle", "full")
    c.sweep.split = ("1", "2", "3")
    c.sweep.seed = (0, 1, 2)
    return c
