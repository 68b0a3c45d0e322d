"""What all recognisers share: ranking candidate actions for a list of videos."""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from coco_jax.data.video import VideoError
from coco_jax.errors import UserError

Path = str | os.PathLike[str]
NONE = "none of these"  # the action of the row that a threshold adds


class Ranked(NamedTuple):
    """An action, or `NONE`, and its score for one video."""

    action: str
    score: float


Ranking = list[Ranked]  # best first


class VideoRanker(abc.ABC):
    """Ranks actions for videos.

    Several threads may use one recogniser: no method changes what another call computes, and equal calls
    return equal results.
    """

    # A threshold for `rank` with a known error rate; None if nobody has measured one.
    default_threshold: float | None = None

    @abc.abstractmethod
    def embed_actions(
        self, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Any:
        """Embeds candidate actions, once for many videos; the result has their `names`."""

    @abc.abstractmethod
    def raw_scores(self, path: Path, candidates: Any) -> Float[np.ndarray, " K"]:
        """How well each candidate fits a video; `rank` explains what the numbers become."""

    @property
    @abc.abstractmethod
    def temperature(self) -> float:
        """Divides the raw scores in the softmax."""

    def rank(
        self,
        paths: Sequence[Path],
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
        threshold: float | None = None,
    ) -> list[Ranking]:
        """For each video the actions, best first, with scores that sum to 1.

        A score is the softmax of the raw scores, divided by `temperature`, over the actions.

        Args:
          paths: video files of any format that FFmpeg decodes.
          actions: candidate names, all different.
          descriptions: captions by action; see `embed_actions`.
          threshold: adds the row `NONE`, "none of these", with this raw score. So it comes first if, and
            only if, all raw scores of the video are below the threshold.

        Raises:
          UserError: a video cannot be decoded, or the actions are not usable.
        """
        candidates = self.embed_actions(actions, descriptions)
        return [self.rank_one(path, candidates, threshold) for path in paths]

    def rank_one(self, path: Path, candidates: Any, threshold: float | None = None) -> Ranking:
        """As `rank`, for one video and the result of `embed_actions`.

        Raises:
          VideoError: the file cannot be decoded.
          UserError: the scores are not finite; or, with a threshold, an action is named `NONE`.
        """
        names = list(candidates.names)
        score_K = self.raw_scores(path, candidates)
        if not np.isfinite(score_K).all():
            raise UserError(
                f"{path}: the model gives scores that are not finite; train it again, or get it again"
            )
        if threshold is not None:
            if NONE in names:
                raise UserError(
                    f"the action {NONE!r} has the name of the row that a threshold adds"
                )
            names, score_K = [*names, NONE], np.append(score_K, threshold)
        share_K = np.exp((score_K - score_K.max()) / self.temperature)
        share_K /= share_K.sum()
        order = np.argsort(-score_K, kind="stable")
        return [Ranked(names[i], float(share_K[i])) for i in order]

    def rank_each(
        self, paths: Sequence[Path], candidates: Any, threshold: float | None = None
    ) -> Iterator[tuple[Path, Ranking | VideoError]]:
        """As `rank`, one video at a time; a video that cannot be decoded gives its error instead."""
        for path in paths:
            try:
                yield path, self.rank_one(path, candidates, threshold)
            except VideoError as error:
                yield path, error
