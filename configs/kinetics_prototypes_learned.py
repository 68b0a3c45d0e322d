"""Class prototypes with projections trained by gradient descent, starting from ridge regression.

It shows what training does to the closed form: with one prototype a class the projections overfit
(docs/findings.md). configs/kinetics_prototypes.py, which trains a few constants only, is better.
"""

from coco_jax.configs import kinetics_prototypes


def get_config():
    c = kinetics_prototypes.get_config()
    c.alignment = "learned"
    c.data.feature_noise = 1.0
    c.text.feature_noise = 0.0
    c.text.descriptions = 8
    c.video_tower.linear = True
    c.model.dim = c.video_tower.feature_dim
    c.model.centre = True
    c.model.start = "ridge"
    c.model.tau = 0.1
    c.model.tau_d = 1.0
    c.model.alpha = 0.2
    c.model.label_weight = 0.2
    c.model.lambda_cycle = 3.0
    c.optimizer.learning_rate = 1e-4
    c.optimizer.weight_decay = 0.0
    return c
