"""Answers for uploaded videos: which actions, when, and what speaks for them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from coco_jax.data import starter
from coco_jax.data import video as videos
from coco_jax.data.video import VideoError
from coco_jax.errors import UserError
from coco_jax.evaluation import html
from coco_jax.recognition.inputs import MAX_CAPTION, check_texts
from coco_jax.recognition.pretrained import PretrainedRecognizer
from coco_jax.recognition.ranking import NONE, Path, Ranked, VideoRanker
from coco_jax.recognition.timeline import Segment, Windows

EXPLAINED = 3  # actions of an answer whose captions and seen actions are listed
NEAREST = 5  # seen actions


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts."""

    size: int = 200 << 20  # bytes of an upload
    duration: float = 120.0  # seconds of a video
    seconds: float = 300.0  # for an upload, and for an answer
    actions: int = 2_000
    places: int = 64  # videos that are answered or wait for it, and uploads at the same time
    disk: int = 4 << 30  # bytes of uploads without an answer, above which no more are accepted


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A video as the model sees it; the file is no longer needed."""

    name: str
    duration: float  # seconds
    v_D: Float[np.ndarray, " D"]
    windows: Windows
    frames: html.Element


@dataclasses.dataclass(frozen=True)
class Answer:
    """The actions of a video."""

    name: str
    duration: float
    actions: tuple[Ranked, ...]  # best first
    segments: tuple[Segment, ...]
    captions: Mapping[str, Sequence[str]]  # of the best actions
    nearest: Mapping[str, Sequence[Ranked]]  # to these actions: seen ones, with cosines of texts
    nearest_to_video: Sequence[Ranked]  # seen actions, and cosines

    def as_dict(self) -> dict[str, Any]:
        """For JSON; docs/serve.md lists the fields."""

        def listed(rows: Sequence[Ranked]) -> list[dict[str, Any]]:
            return [{"action": row.action, "cosine": row.score} for row in rows]

        return {
            "video": self.name,
            "duration": self.duration,
            "actions": [row._asdict() for row in self.actions],
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "captions": {name: list(texts) for name, texts in self.captions.items()},
            "nearest_seen_actions": {name: listed(rows) for name, rows in self.nearest.items()},
            "nearest_seen_actions_of_video": listed(self.nearest_to_video),
        }


class Answerer:
    """Answers with a recogniser, within limits."""

    def __init__(self, recognizer: VideoRanker, limits: Limits):
        self.recognizer, self.limits = recognizer, limits

    def embed(self, path: Path, name: str) -> Embedded:
        """Reads a video file.

        Args:
          path: of the file.
          name: for messages and for the answer; nothing else is done with it.

        Raises:
          VideoError: it cannot be decoded, is too long, or takes too long.
        """
        deadline = time.monotonic() + self.limits.seconds

        def check_time(done: int, total: int) -> None:
            if time.monotonic() > deadline:
                raise VideoError(
                    f"{name}: reading it takes more than {self.limits.seconds:g} s ({done} of {total} "
                    "windows are done); send a shorter or smaller video"
                )

        duration = videos.probe(path, name).duration
        if duration > self.limits.duration:
            raise VideoError(
                f"{name}: {duration:.0f} s long; send at most {self.limits.duration:g} s of it"
            )
        try:
            # Two passes, as in `coco-jax predict`: the windows of a timeline begin at the start of the
            # video, and those of a ranking are evenly spread over it.
            windows = self.recognizer.embed_windows(path, progress=check_time)
            v_D = self.recognizer.embed_video(path)
            frames = html.frames(path, name)
        except VideoError as error:
            # The messages of decoders begin with the path, which is the server's business.
            raise VideoError(str(error).replace(str(path), name)) from error
        return Embedded(name, duration, v_D, windows, frames)

    def answer(
        self,
        video: Embedded,
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
        threshold: float | None = None,
    ) -> Answer:
        """Compares a video with actions.

        Args:
          video: a result of `embed`.
          actions: candidate names.
          descriptions: captions of some of them, which replace those of the corpus.
          threshold: adds the action "none of these"; see `VideoRanker.rank`.

        Raises:
          UserError: the actions or descriptions are not usable, or too many.
        """
        if len(actions) > self.limits.actions:
            raise UserError(f"{len(actions)} actions; give at most {self.limits.actions}")
        for texts in (descriptions or {}).values():
            check_texts(texts, MAX_CAPTION, "a caption")
        recognizer = self.recognizer
        if isinstance(recognizer, PretrainedRecognizer):
            candidates = recognizer.embed_actions(actions, descriptions, replace=True)
        else:
            candidates = recognizer.embed_actions(actions, descriptions)
        ranked = recognizer.rank_vector(video.v_D, candidates, threshold)
        timeline = recognizer.timeline_of(video.name, video.windows, candidates, threshold)
        best = [row.action for row in ranked if row.action != NONE][:EXPLAINED]
        nearest: dict[str, Sequence[Ranked]] = {}
        nearest_to_video: Sequence[Ranked] = ()
        if isinstance(recognizer, PretrainedRecognizer):
            rows = [candidates.names.index(name) for name in best]
            found = recognizer.nearest_seen(candidates.v_KF[rows], NEAREST)
            nearest = dict(zip(best, found, strict=True))
            (nearest_to_video,) = recognizer.nearest_seen(video.v_D[None], NEAREST)
        captions = {name: self.captions(name, descriptions) for name in best}
        return Answer(
            video.name,
            video.duration,
            tuple(ranked),
            timeline.segments,
            captions,
            nearest,
            nearest_to_video,
        )

    def captions(
        self, action: str, descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Sequence[str]:
        """The captions behind an action: the given ones, or those that the model has."""
        if given := (descriptions or {}).get(action):
            return given
        if isinstance(self.recognizer, PretrainedRecognizer):
            found = starter.find(action)
            return starter.load()[found].captions if found else ()
        return getattr(self.recognizer, "captions", {}).get(action, ())
