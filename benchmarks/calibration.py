"""Chooses the temperature, the threshold and the rival of the pretrained recogniser, on prototypes.

python -m benchmarks.calibration

No video is used. Of the 300 seen Kinetics actions of a class split (benchmarks/prototypes.py), 100 are
held out, and the regression is fitted on the other 200. A video is simulated as the prototype of a
held-out action plus noise. How noisy real videos are is not known, so there are nine conditions: the
direction of the noise is random in all dimensions, random in the span of the prototypes, or half of
each; its size, log-normal with deviation 0.8, is such that 80, 60 or 40 percent of the videos are named
correctly among the 100 actions. The candidates are 5, 10, 33 or 100 of the 100 actions. Each constant is
the best one over all conditions and numbers of candidates together.
"""

import itertools
from typing import NamedTuple

import numpy as np
from absl import app, flags

from coco_jax.data import starter
from coco_jax.recognition import parts, pretrained
from coco_jax.recognition.parts import unit
from coco_jax.weights import files, i3d, packages

SPLITS = flags.DEFINE_list("splits", [str(s) for s in range(8)], "Class splits.")

ACCURACIES = (0.8, 0.6, 0.4)
IN_SPAN = (0.0, 0.5, 1.0)  # share of the noise's energy in the span of the prototypes
COUNTS = (5, 10, 33, 100)  # of candidates
SPREAD = 0.8
REPEATS = 4  # videos of each held-out action
LOST = 0.05  # share of right answers that the threshold may turn into "none of these"
RIVALS = (1, 2, 3, 5, 10, 20)
TEMPERATURES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.2)
I3D_TOP1 = 0.71  # of I3D on Kinetics-400 (arXiv 1705.07750)


class Split(NamedTuple):
    """A class split: what is known of the 200 fitted and the 100 held-out actions."""

    seen_SF: np.ndarray  # prototypes of the fitted actions
    held_HF: np.ndarray  # true prototypes of the held-out actions
    predicted_AF: np.ndarray  # predicted prototypes of all actions of the corpus
    penalty_A: np.ndarray
    rows_H: np.ndarray  # the held-out actions among those of the corpus


class Scores(NamedTuple):
    """Logits of simulated videos: of the right action, of the others, and the best of the corpus."""

    right_N: np.ndarray
    others_NK: np.ndarray
    best_NR: np.ndarray  # sorted, the highest last


def make_split(number: int) -> Split:
    """Fits the regression on a split."""
    tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
    classifier = i3d.classifier(tensors)
    row_of = {name: row for row, name in enumerate(starter.load())}
    rows = np.array([row_of[starter.find(name) or ""] for name in classifier.classes])
    held, fitted = np.split(np.random.RandomState(number).permutation(400)[:300], [100])
    v_CF = unit(classifier.kernel.T - classifier.kernel.T[fitted].mean(0))
    texts = parts.stored_features()
    known = {block: x[rows[fitted]] for block, x in texts.items()}
    predicted = pretrained.predict_prototypes(texts, known, v_CF[fitted])
    penalty = pretrained.HUBNESS * pretrained.hubness(predicted, v_CF[fitted])
    return Split(v_CF[fitted], v_CF[held], predicted, penalty, rows[held])


def simulate(split: Split, size: float, in_span: float, rng: np.random.Generator) -> np.ndarray:
    """Logits `N A` of all actions of the corpus; video n shows held-out action n // REPEATS."""
    v_NF = np.repeat(split.held_HF, REPEATS, 0)
    everywhere_NF = unit(rng.normal(size=v_NF.shape))
    in_span_NF = unit(rng.normal(size=(len(v_NF), len(split.seen_SF))) @ split.seen_SF)
    noise_NF = unit(np.sqrt(1 - in_span) * everywhere_NF + np.sqrt(in_span) * in_span_NF)
    sizes_N1 = size * np.exp(SPREAD * rng.normal(size=(len(v_NF), 1)))
    x_NF = unit(v_NF + sizes_N1 * noise_NF)
    # The classifier's probabilities: a scale of the logits at which they are as sure as I3D is right.
    cosine_NS = x_NF @ split.seen_SF.T
    low, high = 1.0, 1000.0
    for _ in range(20):
        scale = np.sqrt(low * high)
        posterior_NS = np.exp(scale * (cosine_NS - cosine_NS.max(1, keepdims=True)))
        posterior_NS /= posterior_NS.sum(1, keepdims=True)
        low, high = (scale, high) if posterior_NS.max(1).mean() < I3D_TOP1 else (low, scale)
    video_NF = x_NF + pretrained.POSTERIOR_WEIGHT * posterior_NS @ split.seen_SF
    return video_NF @ split.predicted_AF.T - split.penalty_A


def size_for(splits: list[Split], accuracy: float, in_span: float) -> float:
    """The median size of the noise at which this share of videos is right among the 100 actions."""
    low, high = 0.01, 30.0
    for _ in range(9):
        size = np.sqrt(low * high)
        found = []
        for split in splits[:2]:
            logits_NH = simulate(split, size, in_span, np.random.default_rng(0))[:, split.rows_H]
            found.append((logits_NH.argmax(1) == np.arange(len(logits_NH)) // REPEATS).mean())
        low, high = (size, high) if np.mean(found) > accuracy else (low, size)
    return float(np.sqrt(low * high))


def scores_of(split: Split, logits_NA: np.ndarray, count: int, rng: np.random.Generator) -> Scores:
    """Draws `count` candidates for each video, without the right one: `count` others."""
    own_N = np.arange(len(logits_NA)) // REPEATS
    logits_NH = logits_NA[:, split.rows_H]
    order_NH = rng.random(logits_NH.shape)
    order_NH[np.arange(len(own_N)), own_N] = 2.0  # the right action comes last
    others_NH = order_NH.argsort(1)[:, :-1]
    others_NK = np.take_along_axis(logits_NH, others_NH[:, :count], 1)
    best_NR = np.sort(logits_NA, 1)[:, -max(RIVALS) :]
    return Scores(logits_NH[np.arange(len(own_N)), own_N], others_NK, best_NR)


def joined(several: list[Scores]) -> Scores:
    """The scores of several splits."""
    return Scores(*(np.concatenate(x) for x in zip(*several, strict=True)))


def with_and_without(
    scores: Scores, rival: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best raw score with the right action, whether the answer is right, and the best without it.

    As many candidates are drawn for both; `rival` is None for the logit itself.
    """
    minus_N = 0.0 if rival is None else scores.best_NR[:, -rival]
    others_N = scores.others_NK[:, :-1].max(1)
    with_N = np.maximum(scores.right_N, others_N)
    return with_N - minus_N, scores.right_N > others_N, scores.others_NK.max(1) - minus_N


def auroc(high: np.ndarray, low: np.ndarray) -> float:
    """The probability that a value of `high` is above one of `low`."""
    places = np.searchsorted(np.sort(low), high)
    return float(places.mean() / len(low))


def loss(scores: Scores, temperature: float) -> float:
    """The mean negative log-likelihood of the right action."""
    logits_NK = np.concatenate([scores.right_N[:, None], scores.others_NK[:, :-1]], 1) / temperature
    top_N = logits_NK.max(1)
    return float(
        (np.log(np.exp(logits_NK - top_N[:, None]).sum(1)) + top_N - logits_NK[:, 0]).mean()
    )


def main(argv: list[str]) -> None:
    """Prints what the constants are chosen from."""
    del argv
    splits = [make_split(int(number)) for number in SPLITS.value]
    found: dict[tuple[float, float], dict[int, Scores]] = {}
    for in_span, accuracy in itertools.product(IN_SPAN, ACCURACIES):
        size, rng = size_for(splits, accuracy, in_span), np.random.default_rng(1)
        logits = [simulate(split, size, in_span, rng) for split in splits]
        found[in_span, accuracy] = {
            count: joined(
                [scores_of(*pair, count, rng) for pair in zip(splits, logits, strict=True)]
            )
            for count in COUNTS
        }
    everything = [scores for counts in found.values() for scores in counts.values()]

    print(
        "Rival: mean area under the ROC curve of the best score with and without the right action"
    )
    for rival in (None, *RIVALS):
        pairs = [with_and_without(scores, rival) for scores in everything]
        area = np.mean([auroc(present, absent) for present, _, absent in pairs])
        print(
            f"  {'logit itself' if rival is None else f'minus number {rival} of the corpus'}: {area:.3f}"
        )

    print("Temperature: mean negative log-likelihood")
    losses = np.array(
        [
            [
                np.mean([loss(x, temperature) for x in counts.values()])
                for temperature in TEMPERATURES
            ]
            for counts in found.values()
        ]
    )  # of each condition and temperature
    for temperature, mean in zip(TEMPERATURES, losses.mean(0), strict=True):
        print(f"  {temperature}: {mean:.3f}")
    best = np.array(TEMPERATURES)[losses.argmin(1)]
    print(f"  the best of a single condition: {best.min()} to {best.max()}")

    pairs = [with_and_without(scores, pretrained.RIVAL) for scores in everything]
    right = np.concatenate([present[is_right] for present, is_right, _ in pairs])
    threshold = float(np.quantile(right, LOST))
    print(f"Threshold that turns {LOST:.0%} of right answers into none of these: {threshold:.3f}")
    print("| top-1 of 100 | candidates | right answers lost | missing actions noticed |")
    print("| --- | --- | --- | --- |")
    for accuracy, count in itertools.product(ACCURACIES, COUNTS):
        pairs = [
            with_and_without(found[in_span, accuracy][count], pretrained.RIVAL)
            for in_span in IN_SPAN
        ]
        lost = np.mean([(present[is_right] < threshold).mean() for present, is_right, _ in pairs])
        noticed = np.mean([(absent < threshold).mean() for _, _, absent in pairs])
        print(f"| {accuracy:.0%} | {count} | {lost:.1%} | {noticed:.1%} |")


if __name__ == "__main__":
    app.run(main)
