"""When actions happen in a video: from the raw scores of its windows to segments.

A video is cut into windows, which may overlap. Each window gives a raw score for every candidate. The
segments are the most likely sequence of actions under a hidden Markov model: the raw scores, divided by
the temperature, are log-likelihoods, and an action goes on for `ACTION_SECONDS` on average. The Viterbi
algorithm finds the sequence. So a change of action needs evidence, and a single window that disagrees
with its neighbours does not make a segment of its own.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from coco_jax.errors import UserError

WINDOW = 2.56  # seconds: 64 frames at 25 frames a second, which I3D was trained on
STRIDE = 1.28  # seconds from one window to the next: two windows see each moment
# The mean duration of an action in seconds. This prior is the length of the clips of Kinetics, not a
# value that was chosen on videos.
ACTION_SECONDS = 10.0
MAX_WINDOWS = 50_000  # of a video: 17 hours with the default stride, 200 MB of vectors
MAX_SCORES = 1 << 27  # of a video: windows x actions; 512 MiB


class Windows(NamedTuple):
    """The windows of a video and their vectors."""

    starts_T: Float[np.ndarray, " T"]  # seconds, float64, ascending
    stride: float  # seconds from one start to the next; the last one may be nearer
    length: float  # seconds of each window
    duration: float  # seconds of the video
    v_TD: Float[np.ndarray, "T D"]  # float32; what `VideoRanker.compare` compares with candidates


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video and the action in it.

    Attributes:
      start: seconds from the beginning of the video.
      end: seconds; the start of the next segment.
      action: one of the candidates, or `NONE` if a threshold was given.
      score: in [0, 1]: the score that this action has if the segment's windows are ranked as one video
        (see `VideoRanker.rank`).
    """

    start: float
    end: float
    action: str
    score: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """What happens when in a video.

    Attributes:
      video: the path, as it was given.
      duration: of the video in seconds.
      segments: in the order of time. They cover the whole video without gaps, and neighbours differ in
        their action.
      actions: the candidates, in the order of the columns of `scores_TK`; last is `NONE` if a threshold
        was given.
      window: length of the windows in seconds.
      starts_T: the start of each window in seconds, float64.
      scores_TK: float32; the scores of each window by itself, before smoothing. Rows sum to 1.
    """

    video: str
    duration: float
    segments: tuple[Segment, ...]
    actions: tuple[str, ...]
    window: float
    starts_T: Float[np.ndarray, " T"] = dataclasses.field(repr=False, compare=False)
    scores_TK: Float[np.ndarray, "T K"] = dataclasses.field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `{"video", "duration", "segments": [{"start", "end", "action", "score"}, ...]}`.

        Times are rounded to milliseconds.
        """
        segments = [
            dataclasses.asdict(segment)
            | {"start": round(segment.start, 3), "end": round(segment.end, 3)}
            for segment in self.segments
        ]
        return {"video": self.video, "duration": round(self.duration, 3), "segments": segments}


def check_seconds(**values: float) -> None:
    """Checks durations that a user gives, by name.

    Raises:
      UserError: one is not a positive number.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name}={value}: give a positive number of seconds")


def window_starts(
    duration: float, stride: float = STRIDE, window: float = WINDOW
) -> Float[np.ndarray, " T"]:
    """The starts of windows that cover a video, in seconds.

    They are `stride` apart, and all windows end within the video. The last window ends where the video
    ends, unless less than half a stride would be new in it. A video that is shorter than a window has a
    single one.

    Raises:
      UserError: there would be more than `MAX_WINDOWS` windows.
    """
    room = max(duration - window, 0.0)
    if room / stride > MAX_WINDOWS - 2:
        raise UserError(
            f"{duration:,.0f} s have more than {MAX_WINDOWS:,} windows that are {stride:g} s apart; "
            f"use a stride of at least {math.ceil(room / (MAX_WINDOWS - 2) * 100) / 100:g} s, or cut it"
        )
    starts_T = np.arange(math.floor(room / stride + 1e-6) + 1) * stride
    if room - starts_T[-1] > stride / 2:
        starts_T = np.append(starts_T, room)
    return starts_T


def change_cost(actions: int, stride: float, action_seconds: float = ACTION_SECONDS) -> float:
    """The logarithm of how much less likely a change to one other action is than no change.

    Args:
      actions: number of candidates; all others are equally likely to come next.
      stride: seconds from one window to the next.
      action_seconds: mean duration of an action.
    """
    change = min(stride / action_seconds, 0.5)  # probability
    return math.log((1 - change) / change * max(actions - 1, 1))


def best_path(score_TK: Float[np.ndarray, "T K"], cost: float) -> Int[np.ndarray, " T"]:
    """The sequence with the highest sum of scores, minus `cost` for each change (Viterbi).

    Because all changes cost the same, a step takes time K and not K x K.

    Args:
      score_TK: log-likelihood of each action in each window.
      cost: of a change, at least 0.

    Returns:
      The index of an action for each window.
    """
    count, actions = score_TK.shape
    stays_TK: Bool[np.ndarray, "T K"] = np.ones((count, actions), bool)
    best_T = np.zeros(count, np.int64)  # the best action of the window before
    total_K = score_TK[0].astype(np.float64)
    for t in range(1, count):
        best_T[t] = total_K.argmax()
        changed = total_K[best_T[t]] - cost
        stays_TK[t] = total_K >= changed
        total_K = np.maximum(total_K, changed) + score_TK[t]
    path_T = np.empty(count, np.int64)
    path_T[-1] = total_K.argmax()
    for t in range(count - 1, 0, -1):
        path_T[t - 1] = path_T[t] if stays_TK[t, path_T[t]] else best_T[t]
    return path_T


def runs_of(path_T: Int[np.ndarray, " T"]) -> list[slice]:
    """The longest parts of a path in which the action does not change."""
    changes = np.flatnonzero(np.diff(path_T)) + 1
    ends = [*changes.tolist(), len(path_T)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def boundaries(windows: Windows, parts: Sequence[slice]) -> list[float]:
    """Where segments begin and end, in seconds: one more number than there are parts.

    A boundary is in the middle between the centres of the two windows beside it.
    """
    centre_T = windows.starts_T + windows.length / 2
    inner = [float(centre_T[part.start - 1 : part.start + 1].mean()) for part in parts[1:]]
    return [0.0, *inner, windows.duration]
