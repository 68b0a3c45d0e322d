"""Zero-shot accuracy on the class prototypes of I3D, for several texts and two regressions.

python -m benchmarks.prototypes

The 400 columns of I3D's classifier are prototypes of the Kinetics-400 actions. Split s permutes them
with `numpy.random.RandomState(s).permutation(400)`: the first 300 are seen, the other 100 unseen. The
regression from texts to prototypes is fitted on the seen actions. For each unseen action, its true
prototype takes the place of a video, and the 100 unseen actions are ranked by their predicted
prototypes. All constants were chosen on actions held out of the seen ones of splits 0 to 7; the default
splits (200 to 215) were used for nothing else.
"""

from collections.abc import Callable, Mapping

import numpy as np
from absl import app, flags

from coco_jax.data import starter
from coco_jax.models import ridge
from coco_jax.recognition import parts, pretrained
from coco_jax.weights import files, i3d, packages

SPLITS = flags.DEFINE_list("splits", [str(s) for s in range(200, 216)], "Class splits.")

Texts = Mapping[str, np.ndarray]
TEXTS = {
    "label": ("label",),
    "label + definition": ("label", "definition"),
    "label + definition + captions": ("label", "definition", "captions"),
}


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def linear_ridge(new: Texts, seen: Texts, v_SF: np.ndarray, blocks: tuple[str, ...]) -> np.ndarray:
    """Prototypes by ridge regression from the concatenated texts; no hubness term."""
    x_KNW, seen_SNW = (np.stack([x[block] for block in blocks], 1) for x in (new, seen))
    return np.asarray(ridge.predict_linear(x_KNW, seen_SNW, v_SF))


def kernel_ridge(new: Texts, seen: Texts, v_SF: np.ndarray, blocks: tuple[str, ...]) -> np.ndarray:
    """Prototypes as the pretrained recogniser predicts them."""
    weights = {block: pretrained.WEIGHTS[block] for block in blocks}
    width = pretrained.WIDTH * sum(weights.values()) / sum(pretrained.WEIGHTS.values())
    return pretrained.predict_prototypes(new, seen, v_SF, weights, width)


def accuracy(scores_KK: np.ndarray) -> tuple[float, float]:
    """Top-1 and top-5; in row k, column k is the right action."""
    rank_K = (scores_KK > np.diag(scores_KK)[:, None]).sum(1)
    return float((rank_K < 1).mean()), float((rank_K < 5).mean())


def measure(
    predict: Callable[..., np.ndarray], hubness: float, blocks: tuple[str, ...], splits: list[int]
) -> np.ndarray:
    """Top-1 and top-5 of each split."""
    tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
    classifier = i3d.classifier(tensors)
    row_of = {name: row for row, name in enumerate(starter.load())}
    rows = [row_of[starter.find(name) or ""] for name in classifier.classes]
    texts = {block: x[rows] for block, x in parts.stored_features().items()}
    found = []
    for split in splits:
        order = np.random.RandomState(split).permutation(400)
        seen, unseen = order[:300], order[300:]
        v_CF = unit(classifier.kernel.T - classifier.kernel.T[seen].mean(0))
        new, known = ({b: x[part] for b, x in texts.items()} for part in (unseen, seen))
        v_KF = predict(new, known, v_CF[seen], blocks)
        penalty_K = hubness * pretrained.hubness(v_KF, v_CF[seen])
        found.append(accuracy(v_CF[unseen] @ v_KF.T - penalty_K))
    return np.array(found)


def main(argv: list[str]) -> None:
    """Prints a table: mean over the splits and its standard error, in percent."""
    del argv
    splits = [int(split) for split in SPLITS.value]
    methods = {
        "linear ridge": (linear_ridge, 0.0),
        "kernel ridge, hubness": (kernel_ridge, pretrained.HUBNESS),
    }
    print("| texts | regression | top-1 | top-5 |\n| --- | --- | --- | --- |")
    for texts, blocks in TEXTS.items():
        for name, (predict, hubness) in methods.items():
            found = 100 * measure(predict, hubness, blocks, splits)
            error = found.std(0, ddof=1) / np.sqrt(len(found))
            cells = [f"{m:.1f} ± {e:.1f}" for m, e in zip(found.mean(0), error, strict=True)]
            print(f"| {texts} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
