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
from coco_jax.recognition.pretrained import PretrainedRecognizer

CLIPS = flags.DEFINE_string("clips", None, "Folder of the clips.", required=True)
WINDOWS = flags.DEFINE_integer("windows", 3, "Windows of each clip.")


def accuracy(scores_NK: np.ndarray, label_N: list[int]) -> str:
    """Top-1 and top-5 in percent, and chance of top-1."""
    right_N = scores_NK[np.arange(len(label_N)), label_N]
    rank_N = (scores_NK > right_N[:, None]).sum(1)
    top1, top5 = (100 * (rank_N < k).mean() for k in (1, 5))
    return f"{top1:.1f} | {top5:.1f} | {100 / scores_NK.shape[1]:.1f}"


def main(argv: list[str]) -> None:
    """Prints the table of docs/pretrained.md, and how well the best logit tells a missing action."""
    del argv
    folder = pathlib.Path(CLIPS.value)
    with (folder / "clips.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [row["action"] for row in rows]
    recognizer = PretrainedRecognizer(WINDOWS.value)
    video_NF = np.stack([recognizer.embed_video(folder / row["file"]) for row in rows])

    def logits(actions: list[str]) -> np.ndarray:
        candidates = recognizer.embed_actions(actions)
        return video_NF @ candidates.v_KF.T - candidates.penalty_K

    own_NK = logits(names)
    everyone = list(range(len(names)))
    new = [i for i in everyone if not rows[i]["kinetics400_label"]]
    corpus = [*starter.load(), *(name for name in names if starter.find(name) is None)]
    in_corpus = [corpus.index(starter.find(name) or name) for name in names]
    print("| candidates | top-1 | top-5 | chance |\n| --- | --- | --- | --- |")
    print(f"| the {len(names)} actions | {accuracy(own_NK, everyone)} |")
    among_new = accuracy(own_NK[np.ix_(new, new)], everyone[: len(new)])
    print(f"| {len(new)} not in Kinetics-400 | {among_new} |")
    print(f"| {len(corpus)}: the corpus and new names | {accuracy(logits(corpus), in_corpus)} |")
    with_N = own_NK.max(1)
    without_N = np.where(np.eye(len(names), dtype=bool), -np.inf, own_NK).max(1)
    area = (with_N[:, None] > without_N).mean()
    print(f"best logit with and without the right action: area under the ROC curve {area:.2f}")


if __name__ == "__main__":
    app.run(main)
