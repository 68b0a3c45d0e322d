"""Bootstrap intervals over videos: percentile intervals of accuracies and of paired differences."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES, SEED, LEVEL = 2_000, 0, 0.95


class Interval(NamedTuple):
    """A percentile interval of a mean over videos."""

    low: float
    high: float


def resample(
    values_NS: Float[np.ndarray, "N S"], resamples: int = RESAMPLES
) -> Float[np.ndarray, "R S"]:
    """Means of test sets over videos that are drawn with replacement.

    All N videos are drawn from at once (plain, not within each class), so that a video of several test
    sets counts equally often in each of them. A mean is NaN if no video of its test set was drawn.

    Args:
      values_NS: a value of each distinct video in each test set, e.g. 1 for a hit; NaN if the video
        is not in it.
      resamples: R.
    """
    videos = len(values_NS)
    member_NS = ~np.isnan(values_NS)
    values_NS = np.where(member_NS, values_NS, 0.0)
    rng = np.random.default_rng(SEED)
    means_RS = np.empty((resamples, values_NS.shape[1]))
    for mean_S in means_RS:
        times_N = np.bincount(rng.integers(videos, size=videos), minlength=videos)
        with np.errstate(invalid="ignore"):
            mean_S[:] = (times_N @ values_NS) / (times_N @ member_NS)
    return means_RS


def interval(means_R: Float[np.ndarray, " R"]) -> Interval:
    """The percentile interval of resampled means; NaN are left out."""
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(means_R, (tail, 100 - tail))
    return Interval(float(low), float(high))
