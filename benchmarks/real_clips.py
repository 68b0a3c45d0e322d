"""The pretrained recogniser on a folder of real clips.

python -m benchmarks.real_clips --clips=FOLDER

FOLDER/clips.csv has the columns file, action (one clip for each action) and kinetics400_label, which is
empty if the action is not in Kinetics-400.
"""

import csv
import pathlib

import numpy as np
from absl import app, flags

from coco_jax.data import starter
from coco_jax.recognition.parts import Parts
from coco_jax.recognition.pretrained import PretrainedRecognizer

CLIPS = flags.DEFINE_string("clips", None, "Folder of the clips.", required=True)
FORMER_TEMPERATURE = 0.03  # for comparison: it was set by hand
ENCODER = flags.DEFINE_enum(
    "encoder", "mpnet", ["mpnet", "minilm_to_mpnet"], "Encoder of names that are not in the corpus."
)
WINDOWS = flags.DEFINE_integer("windows", 3, "Windows of each clip.")


def accuracy(scores_NK: np.ndarray, label_N: list[int]) -> str:
    """Top-1 and top-5 in percent, and chance of top-1."""
    right_N = scores_NK[np.arange(len(label_N)), label_N]
    rank_N = (scores_NK > right_N[:, None]).sum(1)
    top1, top5 = (100 * (rank_N < k).mean() for k in (1, 5))
    return f"{top1:.1f} | {top5:.1f} | {100 / scores_NK.shape[1]:.1f}"


def best_with_and_without(x_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best value of each clip n, with and without its action n among the candidates."""
    return x_NK.max(1), np.where(np.eye(len(x_NK), dtype=bool), -np.inf, x_NK).max(1)


def calibration_error(sure_N: np.ndarray, right_N: np.ndarray, bins: int = 5) -> float:
    """Expected calibration error (arXiv 1706.04599): mean of |accuracy - confidence| in equal bins.

    Args:
      sure_N: the score of the first action.
      right_N: whether it is the right one.
      bins: number of bins of equal width.
    """
    bin_N = np.minimum((sure_N * bins).astype(int), bins - 1)
    gaps = [np.sum(right_N[bin_N == b]) - np.sum(sure_N[bin_N == b]) for b in range(bins)]
    return float(np.abs(gaps).sum() / len(sure_N))


def main(argv: list[str]) -> None:
    """Prints the table of docs/pretrained.md, and how well scores tell right and missing actions."""
    del argv
    folder = pathlib.Path(CLIPS.value)
    with (folder / "clips.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [row["action"] for row in rows]
    recognizer = PretrainedRecognizer(WINDOWS.value, parts=Parts.published(ENCODER.value))
    video_NF = np.stack([recognizer.embed_video(folder / row["file"]) for row in rows])

    def scores(actions: list[str]) -> np.ndarray:
        candidates = recognizer.embed_actions(actions)
        return np.stack([recognizer.compare(video_F, candidates) for video_F in video_NF])

    own_NK = scores(names)
    everyone = list(range(len(names)))
    new = [i for i in everyone if not rows[i]["kinetics400_label"]]
    corpus = [*starter.load(), *(name for name in names if starter.find(name) is None)]
    in_corpus = [corpus.index(starter.find(name) or name) for name in names]
    print("| candidates | top-1 | top-5 | chance |\n| --- | --- | --- | --- |")
    print(f"| the {len(names)} actions | {accuracy(own_NK, everyone)} |")
    among_new = accuracy(own_NK[np.ix_(new, new)], everyone[: len(new)])
    print(f"| {len(new)} not in Kinetics-400 | {among_new} |")
    print(f"| {len(corpus)}: the corpus and new names | {accuracy(scores(corpus), in_corpus)} |")
    right_N = own_NK.argmax(1) == np.arange(len(names))
    for temperature in (FORMER_TEMPERATURE, recognizer.temperature):
        share_NK = np.exp(own_NK / temperature)
        share_NK /= share_NK.sum(1, keepdims=True)
        sure_N = share_NK.max(1)
        print(
            f"temperature {temperature}: accuracy {right_N.mean():.3f}, mean first score "
            f"{sure_N.mean():.3f}, expected calibration error {calibration_error(sure_N, right_N):.3f}, "
            f"negative log-likelihood {-np.log(np.diag(share_NK)).mean():.3f}"
        )
    candidates = recognizer.embed_actions(names)
    logit_NK = video_NF @ candidates.v_KF.T - candidates.penalty_K
    for name, x_NK in (("logit", logit_NK), ("raw score", own_NK)):
        with_N, without_N = best_with_and_without(x_NK)
        area = (with_N[:, None] > without_N).mean()
        print(f"best {name} with and without the right action: area under the ROC curve {area:.2f}")
    threshold = recognizer.default_threshold
    kept_N, noticed_N = with_N >= threshold, without_N < threshold
    print(
        f"threshold {threshold}: 'none of these' in place of {(right_N & ~kept_N).sum()} of "
        f"{right_N.sum()} right and {(~right_N & ~kept_N).sum()} of {(~right_N).sum()} wrong answers, "
        f"and for {noticed_N.sum()} of {len(names)} clips without their action among the candidates"
    )


if __name__ == "__main__":
    app.run(main)
