"""What all recognisers share: ranking candidate actions for a list of videos."""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coco_jax.data.video import VideoError

Path = str | os.PathLike[str]
Ranking = list[tuple[str, float]]  # actions with their scores, best first


class VideoRanker(abc.ABC):
    """Ranks actions for videos; a recogniser defines `embed_actions` and `rank_one`."""

    @abc.abstractmethod
    def embed_actions(
        self, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Any:
        """Embeds candidate actions, once for many videos."""

    @abc.abstractmethod
    def rank_one(self, path: Path, candidates: Any) -> Ranking:
        """The candidates for one video, best first, with scores that sum to 1."""

    def rank(
        self,
        paths: Sequence[Path],
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Ranking]:
        """For each video the actions, best first, with scores that sum to 1 over the actions.

        Args:
          paths: video files of any format that FFmpeg decodes.
          actions: candidate names, all different.
          descriptions: captions by action; see `embed_actions`.

        Raises:
          UserError: a video cannot be decoded, or the actions are not usable.
        """
        candidates = self.embed_actions(actions, descriptions)
        return [self.rank_one(path, candidates) for path in paths]

    def rank_each(
        self, paths: Sequence[Path], candidates: Any
    ) -> Iterator[tuple[Path, Ranking | VideoError]]:
        """As `rank`, one video at a time; a video that cannot be decoded gives its error instead."""
        for path in paths:
            try:
                yield path, self.rank_one(path, candidates)
            except VideoError as error:
                yield path, error
