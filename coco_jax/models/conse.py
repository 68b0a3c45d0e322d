"""ConSE (Norouzi et al., arXiv 1312.5650): a video is where the texts of its likely seen classes are."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coco_jax.models.alignment import normalise

CLASSES = 10  # seen classes that describe a video, T of the paper


def scores(
    texts_KW: Float[Array, "K W"],
    seen_SW: Float[Array, "S W"],
    logits_NS: Float[Array, "N S"],
) -> Float[Array, "N K"]:
    """Cosines of texts with the mean text of each video's likely seen classes.

    The mean is over the `CLASSES` most likely seen classes, weighted by their probabilities.

    Args:
      texts_KW: text features of the candidates, unit length.
      seen_SW: text features of the seen classes, unit length.
      logits_NS: of a classifier of the seen classes; their softmax gives the probabilities.
    """
    best_NT, index_NT = jax.lax.top_k(jax.nn.softmax(logits_NS), min(CLASSES, len(seen_SW)))
    mean_NW = jnp.einsum("nt,ntw->nw", best_NT, seen_SW[index_NT])
    return normalise(mean_NW) @ normalise(texts_KW).T
