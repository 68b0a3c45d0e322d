"""Zero-shot accuracy on the class prototypes of I3D, for several texts and two regressions.

python -m benchmarks.prototypes --encoder=mpnet
python -m benchmarks.prototypes --encoder=minilm
python -m benchmarks.prototypes --encoder=minilm_to_mpnet
python -m benchmarks.prototypes --validation --splits=0,1,2,3,4,5,6,7

The 400 columns of I3D's classifier are prototypes of the Kinetics-400 actions. Split s permutes them
with `numpy.random.RandomState(s).permutation(400)`: the first 300 are seen, the other 100 unseen. The
regression from texts to prototypes is fitted on the seen actions. For each unseen action, its true
prototype takes the place of a video, and the 100 unseen actions are ranked by their predicted
prototypes. In the last rows only the names of the unseen actions are known: their definitions and
captions are estimated from the other 1,111 actions of the starter corpus. MPNet's features of the corpus
are stored; with MiniLM it is encoded first, which takes two minutes. minilm_to_mpnet has the last rows
only: the names of the unseen actions are encoded with MiniLM, and a map estimates MPNet's features. The
map is fitted on the other actions, whose captions are averaged: three texts an action, not all 16,528
texts, as the map in the package. All constants were chosen on actions held out of the seen ones of
splits 0 to 7; nothing was chosen on the default splits (200 to 215).
"""

from collections.abc import Callable, Mapping

import numpy as np
from absl import app, flags

from coco_jax.data import starter
from coco_jax.models import ridge
from coco_jax.recognition import parts, pretrained
from coco_jax.weights import files, i3d, packages

ENCODER = flags.DEFINE_enum("encoder", "mpnet", list(parts.ENCODERS), "Text encoder.")
VALIDATION = flags.DEFINE_bool(
    "validation",
    False,
    "Hold out 100 of the 300 seen actions, and rank these.",
)
SPLITS = flags.DEFINE_list("splits", [str(s) for s in range(200, 216)], "Class splits.")

Texts = Mapping[str, np.ndarray]
TEXTS = {
    "label": ("label",),
    "label + definition": ("label", "definition"),
    "label + definition + captions": ridge.BLOCKS,
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


def features_of(encoder: str) -> Texts:
    """Features of the starter corpus, by block; `encoder` is "mpnet" or "minilm"."""
    if encoder == "mpnet":
        return parts.stored_features()
    made = parts.encode_starter(parts.TextEncoder.published(encoder))
    return {block: x.astype(np.float32) for block, x in made.items()}


def measure(
    predict: Callable[..., np.ndarray],
    hubness: float,
    blocks: tuple[str, ...],
    splits: list[int],
    corpus: Texts,
    names_by: Texts | None = None,
) -> np.ndarray:
    """Top-1 and top-5 of each split.

    Args:
      predict: the regression, `linear_ridge` or `kernel_ridge`.
      hubness: weight of the penalty for hubness.
      blocks: the kinds of texts that the regression uses.
      splits: seeds of the class splits.
      corpus: features of the starter corpus, by block.
      names_by: features of the corpus by the encoder of the names; `corpus`, or others, which are
        mapped. If they are given, only the names of the unseen actions are known. Their definitions and
        captions are estimated from the rest of the corpus, as for a name that is not in the corpus.
    """
    tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
    classifier = i3d.classifier(tensors)
    row_of = {name: row for row, name in enumerate(starter.load())}
    rows = np.array([row_of[starter.find(name) or ""] for name in classifier.classes])
    found = []
    for split in splits:
        order = np.random.RandomState(split).permutation(400)
        seen, unseen = order[:300], order[300:]
        if VALIDATION.value:
            unseen, seen = np.split(np.random.RandomState(1000 + split).permutation(seen), [100])
        v_CF = unit(classifier.kernel.T - classifier.kernel.T[seen].mean(0))
        new, known = ({b: x[rows[part]] for b, x in corpus.items()} for part in (unseen, seen))
        if names_by is not None:
            others = np.setdiff1d(np.arange(len(row_of)), rows[unseen])
            rest = {block: x[others] for block, x in corpus.items()}
            name_NU, compared = names_by["label"][rows[unseen]], None
            if names_by is corpus:
                label_NW = name_NU
            else:
                theirs = {block: x[others] for block, x in names_by.items()}
                texts = (np.concatenate([x[block] for block in rest]) for x in (theirs, rest))
                label_NW = unit(name_NU @ parts.fit_map(*texts))
                compared = name_NU, theirs["label"]
            new = pretrained.estimate_texts(label_NW, rest, compared=compared)
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

    def show(texts: str, name: str, found: np.ndarray) -> None:
        mean, error = 100 * found.mean(0), 100 * found.std(0, ddof=1) / np.sqrt(len(found))
        cells = [f"{m:.1f} ± {e:.1f}" for m, e in zip(mean, error, strict=True)]
        print(f"| {texts} | {name} | {' | '.join(cells)} |")

    is_mapped = parts.ENCODERS[ENCODER.value].is_mapped
    names_by = features_of("minilm" if is_mapped else ENCODER.value)
    corpus = features_of("mpnet") if is_mapped else names_by
    for texts, blocks in TEXTS.items() if not is_mapped else ():
        for name, method in methods.items():
            show(texts, name, measure(*method, blocks, splits, corpus))
    for name, method in methods.items():
        found = measure(*method, ridge.BLOCKS, splits, corpus, names_by)
        show("label, the other texts estimated", name, found)


if __name__ == "__main__":
    app.run(main)
