"""Published towers as they are: --config=zero_shot:PRESET,DATASET, e.g. zero_shot:siglip2_b16,hmdb51.

Nothing is trained and no checkpoint is needed. DATASET is k400_zsar (160 of the 220 new classes, three
class splits), ucf101 or hmdb51 (the test lists of the three official splits, all classes). The vector of
an action is the mean over 28 prompts, that of a video the mean over 8 frames.
"""

from coco_jax import config, presets

DATASETS = {
    "k400_zsar": "kinetics_zsar/video",
    "ucf101": "ucf101_zsar/cross",
    "hmdb51": "hmdb51_zsar/cross",
}
# The templates of CLIP's authors for Kinetics-700 (github.com/openai/CLIP at d05afc4, data/prompts.md),
# with their "a example"; Open-VCLIP, FROSTER and MoTE evaluate with them (docs/protocols.md).
MEDIA = ("a photo of", "a video of", "a example of", "a demonstration of")
PERSONS = (
    "{}", "a person {}", "a person using {}", "a person doing {}", "a person during {}",
    "a person performing {}", "a person practicing {}",
)  # fmt: skip
TEMPLATES = tuple(f"{medium} {person}." for medium in MEDIA for person in PERSONS)


def get_config(which="clip_b16,k400_zsar"):
    preset, _, dataset = which.partition(",")
    if dataset not in DATASETS:
        raise ValueError(f"{dataset!r} is not one of {', '.join(DATASETS)}")
    c = config.default()
    c.protocol = "frozen"
    c.ablation = "label"
    c.data.name = DATASETS[dataset]
    c.data.test_splits = ("1", "2", "3")
    c.data.batch = 64
    c.text.templates = TEMPLATES
    presets.apply(c, preset)
    if c.video_tower.temporal == "mean":  # VideoPrism has its own number of frames
        c.video_tower.frames = 8
    c.video_tower.trainable = "none"
    c.text_tower.trainable = "none"
    c.model.dtype = "float32"
    c.optimizer.steps = 0
    return c
