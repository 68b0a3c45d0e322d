"""Zero-shot action recognition in JAX: CoCo and ActionHub (arXiv 2401.11654).

recognizer = coco_jax.load()
recognizer.recognize(["a.mp4"], ["juggling", "rope skipping"])
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from coco_jax.version import __version__

if TYPE_CHECKING:
    from coco_jax.recognition.pretrained import PretrainedRecognizer
    from coco_jax.recognition.ranking import Ranked, Recognition
    from coco_jax.recognition.recognizer import Recognizer
    from coco_jax.recognition.timeline import Segment, Timeline

__all__ = [
    "PretrainedRecognizer",
    "Ranked",
    "Recognition",
    "Recognizer",
    "Segment",
    "Timeline",
    "__version__",
    "load",
]

# The module of each name that is imported on first use: `import coco_jax` stays fast.
_MODULES = {
    "PretrainedRecognizer": "pretrained",
    "Ranked": "ranking",
    "Recognition": "ranking",
    "Recognizer": "recognizer",
    "Segment": "timeline",
    "Timeline": "timeline",
}


def load(
    where: str | os.PathLike[str] | None = None, towers: str | None = None
) -> "Recognizer | PretrainedRecognizer":
    """Loads a recogniser.

    Args:
      where: one of
        - nothing: the pretrained recogniser, which needs packages with weights (docs/pretrained.md);
        - a folder that `save` of a recogniser wrote, also one from somebody else: all of it is data;
        - the folder of a run, as `coco_jax.main` writes it: `WORKDIR/full/split1/seed0`;
        - published towers (docs/towers.md): `hf:org/name`, a folder of a Hugging Face model, or a
          .safetensors or .npz file.
      towers: the preset of published towers, such as "clip_b32". Without `where`, its weights are
        downloaded. It is only needed if the weights do not tell.

    Raises:
      UserError: there is nothing to load, or it is damaged; or the weights are not installed.
    """
    if where is None and towers is None:
        from coco_jax.recognition.pretrained import PretrainedRecognizer

        return PretrainedRecognizer()
    if where is None:
        from coco_jax.recognition.towers import load_towers

        return load_towers(None, towers)
    from coco_jax.recognition import loading

    return loading.load(where, towers)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"coco_jax.recognition.{_MODULES[name]}")
    return getattr(module, name)
