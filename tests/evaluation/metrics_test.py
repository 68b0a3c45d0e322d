import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_jax.evaluation import metrics


def scores_and_labels(seed, videos=60, classes=7, seen=4):
    rng = np.random.default_rng(seed)
    label_N = np.concatenate([np.arange(classes), rng.integers(classes, size=videos - classes)])
    return rng.normal(size=(videos, classes)), label_N, seen


@given(st.integers(0, 10_000), st.integers(1, 7))
def test_top_k_equals_the_result_of_sorting(seed, k):
    scores_NK, label_N, _ = scores_and_labels(seed)
    ranked = np.argsort(-scores_NK, 1)[:, :k]
    assert metrics.top_k(scores_NK, label_N, k) == np.mean(
        [label in row for label, row in zip(label_N, ranked, strict=True)]
    )


def test_top_k_of_equal_scores_is_0():
    assert metrics.top_k(np.zeros((10, 5)), np.zeros(10, int), 1) == 0


def test_top_k_of_nan_scores_is_0():
    assert metrics.top_k(np.full((4, 8), np.nan), np.zeros(4, int), 5) == 0


def test_per_class_and_confusion_of_known_predictions():
    label_N, predicted_N = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0])
    np.testing.assert_allclose(metrics.per_class(predicted_N, label_N, 3), [2 / 3, 0, np.nan])
    assert metrics.confusion(predicted_N, label_N, 2).tolist() == [[2, 1], [1, 0]]


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_tie_is_a_miss_in_top_1_per_class_accuracy_and_confusion(seed, levels):
    """Scores have few different values, so most videos have ties. A hit is above all other scores."""
    _, label_N, _ = scores_and_labels(seed)
    scores_NK = np.random.default_rng(seed).integers(levels, size=(len(label_N), 7)).astype(float)
    hits = [
        all(row[label] > score for k, score in enumerate(row) if k != label)
        for row, label in zip(scores_NK.tolist(), label_N.tolist(), strict=True)
    ]
    predicted_N = metrics.predict(scores_NK, label_N)
    confusion_KK = metrics.confusion(predicted_N, label_N, 7)
    assert metrics.top_k(scores_NK, label_N, 1) == pytest.approx(np.mean(hits))
    assert confusion_KK.trace() == sum(hits) and confusion_KK.sum() == len(hits)
    recall_K = confusion_KK.diagonal() / confusion_KK.sum(1)
    np.testing.assert_allclose(metrics.per_class(predicted_N, label_N, 7), recall_K)
    # The predicted class has one of the highest scores.
    assert (np.take_along_axis(scores_NK, predicted_N[:, None], 1)[:, 0] == scores_NK.max(1)).all()


def generalised_slowly(scores_NK, label_N, seen):
    """The definition: tries an offset in each interval between two margins."""
    margins = np.sort(np.unique(scores_NK[:, seen:].max(1) - scores_NK[:, :seen].max(1)))
    offsets = np.concatenate([margins[:1] - 1, (margins[1:] + margins[:-1]) / 2, margins[-1:] + 1])

    def accuracy(offset):
        shifted = scores_NK + offset * (np.arange(scores_NK.shape[1]) < seen)
        by_class = metrics.per_class(shifted.argmax(1), label_N, scores_NK.shape[1])
        return np.nanmean(by_class[:seen]), np.nanmean(by_class[seen:])

    curve = np.array([accuracy(offset) for offset in offsets[::-1]])
    s, u = accuracy(0)
    auc = np.trapezoid(curve[:, 0], curve[:, 1])
    return {"seen": s, "unseen": u, "harmonic": 2 * s * u / max(s + u, 1e-12), "auc": auc}


@given(st.integers(0, 10_000))
def test_generalised_equals_its_definition(seed):
    scores_NK, label_N, seen = scores_and_labels(seed)
    fast, slow = (f(scores_NK, label_N, seen) for f in (metrics.generalised, generalised_slowly))
    assert fast == pytest.approx(slow, abs=1e-9)


def test_generalised_of_a_perfect_and_of_an_always_wrong_model():
    label_N = np.arange(6)
    perfect = metrics.generalised(np.eye(6), label_N, 3)
    assert perfect == {"seen": 1, "unseen": 1, "harmonic": 1, "auc": 1}
    wrong = metrics.generalised(np.roll(np.eye(6), 1, axis=1), label_N, 3)
    assert wrong["harmonic"] == 0


def test_mean_std_uses_the_sample_standard_deviation():
    assert metrics.mean_std([1.0, 3.0]) == {"mean": 2, "std": pytest.approx(2**0.5), "runs": [1, 3]}
    assert metrics.mean_std([0.5])["std"] == 0


@given(st.integers(0, 10_000))
def test_curve_has_the_area_and_contains_the_point_without_offset(seed):
    scores_NK, label_N, seen = scores_and_labels(seed)
    seen_E, unseen_E = metrics.seen_unseen_curve(scores_NK, label_N, seen)
    got = metrics.generalised(scores_NK, label_N, seen)
    assert np.trapezoid(seen_E, unseen_E) == pytest.approx(got["auc"])
    assert unseen_E[0] == 0 and seen_E[-1] == pytest.approx(0)
    assert (np.diff(unseen_E) >= 0).all() and (np.diff(seen_E) <= 0).all()
    distance_E = np.hypot(seen_E - got["seen"], unseen_E - got["unseen"])
    assert distance_E.min() < 1e-9


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_reliability_equals_a_loop_over_videos(seed, bins):
    rng = np.random.default_rng(seed)
    confidence_N, right_N = rng.random(50).round(2), rng.random(50) < 0.6
    found, error = metrics.reliability(confidence_N, right_N, bins)
    want, gap = 0, 0.0
    for k, each in enumerate(found):
        inside = [
            n for n, c in enumerate(confidence_N.tolist())
            if each.low < c <= each.high or (k == 0 and c == 0)
        ]  # fmt: skip
        assert each.videos == len(inside)
        want += len(inside)
        if inside:
            assert each.confidence == pytest.approx(confidence_N[inside].mean())
            assert each.accuracy == pytest.approx(right_N[inside].mean())
            gap += len(inside) / 50 * abs(right_N[inside].mean() - confidence_N[inside].mean())
    assert want == 50 and error == pytest.approx(gap)


def test_calibration_error_is_0_if_confidence_is_the_accuracy_and_1_if_all_are_sure_and_wrong():
    right_N = np.arange(100) % 4 > 0
    assert metrics.reliability(np.full(100, 0.75), right_N)[1] == pytest.approx(0)
    assert metrics.reliability(np.ones(10), np.zeros(10, bool))[1] == 1
