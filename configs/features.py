"""Features you extracted (video_features), an MLP over them, and frozen MiniLM texts: minutes on a CPU.

python -m tfds_builders.build video_features actionhub/manual --data_dir=data --manual_dir=FOLDER
"""

from coco_jax import config, presets


def get_config():
    c = config.default()
    c.sweep.ablation = ("label", "label+desc", "label+cycle", "full")
    c.data.name = "video_features"
    c.data.batch = 128
    c.text.corpus = "actionhub/manual"
    c.text.templates = ("{}",)
    c.text.descriptions = 4
    c.text.eval_descriptions = 16
    presets.apply(c, "minilm")
    c.text.length = 32
    c.text_tower.trainable = "none"
    c.video_tower.kind = "features"
    c.video_tower.feature_dim = 2048  # the width of yours
    c.video_tower.width = 512
    c.model.dtype = "float32"
    c.optimizer.steps = 100
    c.optimizer.warmup = 10
    c.checkpoint_every = 100
    return c
