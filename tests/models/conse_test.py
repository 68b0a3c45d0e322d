"""ConSE against its definition, written as a loop."""

import jax.numpy as jnp
import numpy as np

from coco_jax.models import conse


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_scores_equal_the_definition():
    rng = np.random.default_rng(0)
    texts, seen = (unit(rng.normal(size=(n, 6)).astype(np.float32)) for n in (5, 14))
    logits = rng.normal(size=(7, 14)).astype(np.float32) * 3
    want = np.zeros((7, 5))
    for n, row in enumerate(logits.astype(np.float64)):
        probability = np.exp(row) / np.exp(row).sum()
        place = np.zeros(6)
        for s in sorted(range(14), key=lambda s: -probability[s])[:10]:
            place += probability[s] * seen[s]
        want[n] = [place @ text / np.linalg.norm(place) for text in texts]
    np.testing.assert_allclose(
        conse.scores(*map(jnp.asarray, (texts, seen, logits))), want, atol=1e-5
    )


def test_a_video_of_which_one_seen_class_is_certain_is_where_that_class_is():
    seen = np.eye(4, dtype=np.float32)
    logits = np.array([[0, 50, 0, 0]], np.float32)
    np.testing.assert_allclose(
        conse.scores(*map(jnp.asarray, (seen, seen, logits))), [[0, 1, 0, 0]], atol=1e-6
    )
