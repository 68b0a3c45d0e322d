"""Zero-shot action recognition in JAX: CoCo and ActionHub (arXiv 2401.11654).

recognizer = coco_jax.load("runs/demo/full/split1/seed0")
recognizer.rank(["a.mp4"], ["juggling", "rope skipping"])
"""

import os
from typing import TYPE_CHECKING, Any

from coco_jax.version import __version__

if TYPE_CHECKING:
    from coco_jax.recognition.recognizer import Recognizer

__all__ = ["Recognizer", "__version__", "load"]


def load(folder: str | os.PathLike[str]) -> "Recognizer":
    """Loads a trained model: the folder of a run, as `coco_jax.main` writes it.

    Raises:
      UserError: the folder has no run, or no usable checkpoint.
    """
    from coco_jax.recognition.recognizer import Recognizer

    return Recognizer.load(folder)


def __getattr__(name: str) -> Any:
    if name == "Recognizer":  # imported on first use: `import coco_jax` stays fast
        from coco_jax.recognition.recognizer import Recognizer

        return Recognizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
