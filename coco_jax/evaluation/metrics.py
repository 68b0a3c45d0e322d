"""Metrics: top-k, per class, generalised zero-shot. Accuracies are fractions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


def top_k(scores_NK: Float[np.ndarray, "N K"], label_N: Int[np.ndarray, " N"], k: int) -> float:
    """Share of videos whose class is among the k best scores. A tie counts as a miss.

    A model that gives all classes the same score therefore gets 0, unless k is the number of classes.
    """
    own_N1 = np.take_along_axis(scores_NK, label_N[:, None], 1)
    # Counts the classes with a score that is not lower, including the class itself. NaN is a miss.
    return float(((~(scores_NK < own_N1)).sum(1) <= k).mean())


def predict(
    scores_NK: Float[np.ndarray, "N K"], label_N: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """The class of each video with the highest score; in a tie, one that is not the true class.

    Per-class accuracy and the confusion matrix therefore count a tie as a miss, like `top_k`.
    """
    best_N1 = scores_NK.max(1, keepdims=True)
    tied_NK = scores_NK == best_N1
    own_NK = np.arange(scores_NK.shape[1]) == label_N[:, None]
    other_NK = tied_NK & ~own_NK
    return np.where(other_NK.any(1), other_NK.argmax(1), tied_NK.argmax(1))


def per_class(
    predicted_N: Int[np.ndarray, " N"], label_N: Int[np.ndarray, " N"], classes: int
) -> Float[np.ndarray, " K"]:
    """Accuracy on the videos of each class; NaN for a class without videos."""
    right_K = np.bincount(label_N, predicted_N == label_N, classes)
    with np.errstate(invalid="ignore"):
        return right_K / np.bincount(label_N, minlength=classes)


def confusion(
    predicted_N: Int[np.ndarray, " N"], label_N: Int[np.ndarray, " N"], classes: int
) -> Int[np.ndarray, "K K"]:
    """Counts of videos by (true class, predicted class)."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes**2).reshape(classes, -1)


def harmonic_mean(seen: float, unseen: float) -> float:
    """2 s u / (s + u); 0 if both are 0 (Xian et al., arXiv 1707.00600, eq. 5)."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def generalised(
    scores_NK: Float[np.ndarray, "N K"], label_N: Int[np.ndarray, " N"], seen: int
) -> dict[str, float]:
    """Generalised ZSAR: seen and unseen candidates together.

    Accuracies are means over classes (arXiv 1707.00600). `auc` is the area under the curve of seen
    against unseen accuracy that an offset on all seen scores traces from -inf to inf (AUSUC of
    Chao et al., arXiv 1605.04253), computed at every offset where a prediction changes.

    Args:
      scores_NK: of every tested video, seen classes first.
      label_N: their classes; at least one seen and one unseen class.
      seen: number of seen classes.

    Returns:
      `seen`, `unseen`, `harmonic` at offset 0, and `auc`.
    """
    seen_E, unseen_E, at_zero = _seen_unseen(scores_NK, label_N, seen)
    return {
        "seen": at_zero[0],
        "unseen": at_zero[1],
        "harmonic": float(harmonic_mean(*at_zero)),
        "auc": float(np.trapezoid(seen_E, unseen_E)),
    }


def seen_unseen_curve(
    scores_NK: Float[np.ndarray, "N K"], label_N: Int[np.ndarray, " N"], seen: int
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """The curve whose area is `auc` in `generalised`, which has the same arguments.

    Returns:
      Seen and unseen accuracy for offsets from infinity to minus infinity, so unseen accuracy rises.
    """
    return _seen_unseen(scores_NK, label_N, seen)[:2]


def _seen_unseen(
    scores_NK: np.ndarray, label_N: np.ndarray, seen: int
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The curve, and the accuracies at offset 0."""
    is_seen_N = label_N < seen
    own_group_NK = np.where(
        is_seen_N[:, None] == (np.arange(scores_NK.shape[1]) < seen), scores_NK, -np.inf
    )
    right_N = predict(own_group_NK, label_N) == label_N
    # A video is assigned to the seen classes if offset + best seen score > best unseen score.
    margin_N = scores_NK[:, :seen].max(1) - scores_NK[:, seen:].max(1)
    weight_N = right_N / np.bincount(label_N, minlength=scores_NK.shape[1])[label_N]
    weight_N = weight_N / np.where(
        is_seen_N, *(len(set(label_N[m])) for m in (is_seen_N, ~is_seen_N))
    )

    def accuracies(offset: float) -> tuple[float, float]:
        as_seen_N = margin_N + offset > 0
        at = (weight_N[is_seen_N & as_seen_N].sum(), weight_N[~is_seen_N & ~as_seen_N].sum())
        return float(at[0]), float(at[1])

    # As the offset falls, videos move from seen to unseen, those with equal margins together.
    margins_E, inverse_N = np.unique(margin_N, return_inverse=True)
    lost_E = np.bincount(inverse_N, weight_N * is_seen_N, len(margins_E))
    gained_E = np.bincount(inverse_N, weight_N * ~is_seen_N, len(margins_E))
    seen_E = lost_E.sum() - np.concatenate([[0], np.cumsum(lost_E)])
    unseen_E = np.concatenate([[0], np.cumsum(gained_E)])
    return seen_E, unseen_E, accuracies(0.0)


class Bin(NamedTuple):
    """Videos whose confidence is in (low, high]; the means are None if there are none."""

    low: float
    high: float
    videos: int
    confidence: float | None  # mean
    accuracy: float | None


def reliability(
    confidence_N: Float[np.ndarray, " N"], right_N: Bool[np.ndarray, " N"], bins: int = 15
) -> tuple[list[Bin], float]:
    """Calibration: accuracy by confidence, and the expected calibration error (arXiv 1706.04599).

    Args:
      confidence_N: the highest probability of each video, in [0, 1].
      right_N: whether that class is the true one.
      bins: number of bins of equal width.

    Returns:
      The bins, and the mean over videos of |accuracy - confidence| of their bin.
    """
    place_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    found, error = [], 0.0
    for i in range(bins):
        inside_N = place_N == i
        confidence = accuracy = None
        if count := int(inside_N.sum()):
            confidence = float(confidence_N[inside_N].mean())
            accuracy = float(right_N[inside_N].mean())
            error += count / len(right_N) * abs(accuracy - confidence)
        found.append(Bin(i / bins, (i + 1) / bins, count, confidence, accuracy))
    return found, error


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is None."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if len(numbers) == len(values) else None


def mean_std(values: list[float]) -> dict[str, float | list[float]]:
    """Mean, sample standard deviation (n - 1; 0 for a single run), and the values themselves."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread, "runs": [float(v) for v in values]}
