"""What a run predicted for each tested video: predictions.csv, from which its accuracies follow."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coco_jax import files
from coco_jax.errors import UserError
from coco_jax.evaluation import metrics

FILE = "predictions.csv"
COLUMNS = ("test_set", "video_id", "class", "predicted", "rank")
MAX_BYTES = 256 << 20
MAX_RANK = 1 << 24  # far more than any benchmark has classes


class Prediction(NamedTuple):
    """The prediction for one video of a test set.

    `rank` is the number of candidates whose score is not lower than that of the video's own class: 1 is
    a hit, and a tie is a miss, as in `metrics.top_k`. `test_set` is empty if there is only one.
    """

    test_set: str
    video_id: str
    own: str
    predicted: str
    rank: int


def of_scores(
    test_set: str,
    video_ids: Sequence[str],
    classes: Sequence[str],
    scores_NK: Float[np.ndarray, "N K"],
    label_N: Int[np.ndarray, " N"],
) -> list[Prediction]:
    """The predictions for the videos of a test set from their scores for its classes."""
    own_N1 = np.take_along_axis(scores_NK, label_N[:, None], 1)
    rank_N = (~(scores_NK < own_N1)).sum(1)
    predicted_N = metrics.predict(scores_NK, label_N)
    return [
        Prediction(test_set, video_id, classes[own], classes[predicted], int(rank))
        for video_id, own, predicted, rank in zip(
            video_ids, label_N, predicted_N, rank_N, strict=True
        )
    ]


def write(path: pathlib.Path, rows: Sequence[Prediction]) -> None:
    """Writes the file atomically: a header with `COLUMNS`, then one line for each prediction."""
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator="\n")
    out.writerow(COLUMNS)
    out.writerows(rows)
    files.write_bytes(path, text.getvalue().encode())


def read(path: pathlib.Path) -> list[Prediction]:
    """Reads the file.

    Raises:
      UserError: it cannot be read, or a line is not a prediction.
    """
    try:
        lines = csv.reader(io.StringIO(files.read_text(path, limit=MAX_BYTES), newline=""))
        if tuple(next(lines, ())) != COLUMNS:
            raise ValueError(f"the first line is not {','.join(COLUMNS)}")
        rows = []
        for number, line in enumerate(lines, 2):
            if len(line) != len(COLUMNS):
                raise ValueError(f"line {number} is not a prediction")
            test_set, video_id, own, predicted, place = line
            rank = int(place[:9]) if place.isascii() and place.isdecimal() else 0
            if not 0 < rank <= MAX_RANK:
                raise ValueError(f"line {number}: the rank {rank} is not from 1 to {MAX_RANK:,}")
            rows.append(Prediction(test_set, video_id, own, predicted, rank))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: no predictions ({error}); evaluate the run again") from error
    return rows


def hits(
    rows: Sequence[Prediction], k: int
) -> tuple[list[tuple[str, str]], list[str], Float[np.ndarray, "N S"]]:
    """Which videos have their class among the first k.

    Returns:
      The N distinct videos, each as (id, class); the S test sets; and 1 for a hit, 0 for a miss, NaN for
      a video that is not in the test set.
    """
    videos = {key: n for n, key in enumerate(dict.fromkeys((r.video_id, r.own) for r in rows))}
    sets = {key: n for n, key in enumerate(dict.fromkeys(r.test_set for r in rows))}
    values_NS = np.full((len(videos), len(sets)), np.nan)
    for row in rows:
        values_NS[videos[row.video_id, row.own], sets[row.test_set]] = row.rank <= k
    return list(videos), list(sets), values_NS
