"""What all recognisers share: ranking candidate actions for videos, and saying what happens when."""

import abc
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8

from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.video import VideoError
from coco_jax.errors import UserError
from coco_jax.recognition import timeline as timelines
from coco_jax.recognition.tables import Table
from coco_jax.recognition.timeline import ACTION_SECONDS, STRIDE, Segment, Timeline, Windows

Path = str | os.PathLike[str]
NONE = "none of these"  # the action of the row that a threshold adds
# Clips that an accelerator embeds at once. On CPUs a batch of I3D is not faster, and takes more memory.
CLIP_BATCH = 8
LEAST = 8  # rows of the smallest arrays of candidates
BLOCK = 256  # windows that are compared with the candidates at once


class Ranked(NamedTuple):
    """An action, or `NONE`, and its score for one video."""

    action: str
    score: float


Ranking = list[Ranked]  # best first


@dataclasses.dataclass(frozen=True)
class Recognition:
    """The ranked actions of a video, or the reason why it could not be read.

    Attributes:
      video: the path, as it was given.
      actions: best first; empty if the video could not be read.
      error: one line; None if the video was read.
    """

    video: str
    actions: tuple[Ranked, ...]
    error: str | None = None

    @property
    def best(self) -> Ranked:
        """The first action.

        Raises:
          VideoError: the video could not be read.
        """
        if self.error is not None:
            raise VideoError(self.error)
        return self.actions[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `{"video", "actions": [{"action", "score"}, ...]}`, or `{"video", "error"}`."""
        if self.error is not None:
            return {"video": self.video, "error": self.error}
        return {"video": self.video, "actions": [ranked._asdict() for ranked in self.actions]}


class VideoRanker(abc.ABC):
    """Ranks actions for videos, and finds when they happen.

    Several threads may use one recogniser: no method changes what another call computes, and equal calls
    return equal results.

    The vector of a clip (D values) is what the video tower says about a few frames. The vector of a
    video is a mean over its clips, and `compare` gives the raw scores of a vector.
    """

    training_data: str  # what the model was trained on, for people
    # A threshold for `rank` with a known error rate; None if nobody has measured one.
    default_threshold: float | None = None
    # Whether the vector of a video is scaled to unit length (`pool`).
    unit_length = False

    @abc.abstractmethod
    def embed_actions(
        self, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Any:
        """Embeds candidate actions, once for many videos; the result has their `names`."""

    def release_text_encoder(self) -> None:  # noqa: B027, most recognisers have no such memory
        """Frees memory that only `embed_actions` needs; a later call loads it again."""

    @abc.abstractmethod
    def embed_clips(self, clips_BTHWC: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B D"]:
        """The vectors of clips, float32, from the frames that `clip_reader` reads."""

    @abc.abstractmethod
    def clip_reader(self, clips: int | None = None) -> ClipReader:
        """Reads the frames of videos as the model needs them.

        Args:
          clips: the number of clips of each video; by default that of the model.
        """

    @abc.abstractmethod
    def clips_of(self, path: Path | bytes) -> int:
        """The number of clips from which the vector of a video is made.

        Raises:
          VideoError: the file cannot be read.
        """

    @abc.abstractmethod
    def pool(self, v_XD: Float[np.ndarray, "X D"]) -> Float[np.ndarray, " D"]:
        """The vector of a video from the vectors of its clips."""

    @abc.abstractmethod
    def compare(
        self, v_XD: Float[np.ndarray, "*X D"], candidates: Any
    ) -> Float[np.ndarray, "*X K"]:
        """The raw scores of vectors of clips or videos; `rank` explains what the numbers become."""

    @property
    @abc.abstractmethod
    def vector_width(self) -> int:
        """The number of values of a vector, D."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that vectors and scores depend on."""

    @abc.abstractmethod
    def clip_function(self) -> Callable[[ArrayLike], jax.Array]:
        """A pure JAX function from uint8 clips `B T H W 3` to float32 rows `B W`."""

    def rows(self, v_XD: Float[np.ndarray, "X D"]) -> Float[np.ndarray, "X W"]:
        """What an index stores of vectors. The first D values of a row are the vector."""
        return v_XD

    @property
    def row_width(self) -> int:
        """The number of values of a row, W."""
        return self.vector_width

    def table(self, candidates: Any) -> Table | None:
        """Candidates as a table for rows; None if the raw scores are not linear in the rows."""
        return None

    def features(self, path: Path | bytes) -> Float[np.ndarray, " F"]:
        """The features of a video to train on; by default its vector.

        Raises:
          VideoError: the file cannot be decoded.
        """
        return self.embed_video(path)

    @property
    @abc.abstractmethod
    def temperature(self) -> float:
        """Divides the raw scores in the softmax."""

    @property
    def clip_batch(self) -> int:
        """The number of clips that `embed_videos` and `embed_windows` embed at once."""
        return 1 if jax.default_backend() == "cpu" else CLIP_BATCH

    def embed_video(self, path: Path | bytes) -> Float[np.ndarray, " D"]:
        """The vector of a video, float32.

        Args:
          path: of a video file, or its content.

        Raises:
          VideoError: the file cannot be decoded.
        """
        clips = self.clip_reader(self.clips_of(path)).read_views(path)
        return self.pool(np.stack(list(self._embed_each(clips))))

    def embed_videos(self, paths: Sequence[Path]) -> Float[np.ndarray, "N D"]:
        """The vectors of videos, float32; `compare` gives their raw scores.

        Raises:
          VideoError: a file cannot be decoded.
          UserError: there are no files.
        """
        if not paths:
            raise UserError("no videos to embed; give at least one file")
        return np.stack([self.embed_video(path) for path in _listed(paths)])

    def embed_windows(
        self,
        path: Path,
        stride: float = STRIDE,
        progress: Callable[[int, int], None] | None = None,
    ) -> Windows:
        """The vectors of windows of `WINDOW` seconds that cover a video.

        The video is decoded once, from its beginning to its end, and only the frames of a window are in
        memory. So the memory does not depend on the length of the video, but for the vectors.

        Args:
          path: a video file.
          stride: seconds from the start of a window to that of the next one.
          progress: called after each window with the numbers of windows done and of all windows.

        Raises:
          VideoError: the file cannot be decoded, or has too many windows.
          UserError: `stride` is not positive.
        """
        timelines.check_seconds(stride=stride)
        duration = videos.probe(path).duration
        try:
            starts_T = timelines.window_starts(duration, stride)
        except UserError as error:
            raise VideoError(f"{os.fspath(path)}: {error}") from error
        length = min(timelines.WINDOW, duration)
        clips = self.clip_reader(1).read_windows(path, starts_T, length)
        v_TD = []
        for v_D in self._embed_each(clips):
            v_TD.append(v_D)
            if progress:
                progress(len(v_TD), len(starts_T))
        return Windows(starts_T, stride, length, duration, np.stack(v_TD))

    def _embed_each(
        self, clips: Iterable[UInt8[np.ndarray, "T H W 3"]]
    ) -> Iterator[Float[np.ndarray, " D"]]:
        """The vector of each clip, computed in batches; a clip that is given again is embedded once."""
        batch: list[np.ndarray] = []
        counts: list[int] = []
        for clip in clips:
            if batch and clip is batch[-1]:
                counts[-1] += 1
                continue
            if len(batch) == self.clip_batch:
                yield from np.repeat(self._embed_batch(batch), counts, axis=0)
                batch, counts = [], []
            batch.append(clip)
            counts.append(1)
        if batch:
            yield from np.repeat(self._embed_batch(batch), counts, axis=0)

    def _embed_batch(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Embeds clips, filled up to a power of two: XLA compiles one program for each shape."""
        size = 1 << (len(clips) - 1).bit_length()
        filled = [*clips, *[clips[-1]] * (size - len(clips))]
        return self.embed_clips(np.stack(filled))[: len(clips)]

    def raw_scores(self, path: Path, candidates: Any) -> Float[np.ndarray, " K"]:
        """How well each candidate fits a video; `rank` explains what the numbers become.

        Raises:
          VideoError: the file cannot be decoded.
        """
        return self.compare(self.embed_video(path), candidates)

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
        return [self.rank_one(path, candidates, threshold) for path in _listed(paths)]

    def rank_one(self, path: Path, candidates: Any, threshold: float | None = None) -> Ranking:
        """As `rank`, for one video and the result of `embed_actions`.

        Raises:
          VideoError: the file cannot be decoded.
          UserError: the scores are not finite; or, with a threshold, an action is named `NONE`.
        """
        return self._ranked(self.raw_scores(path, candidates), candidates, threshold, path)

    def rank_vector(
        self,
        v_D: Float[np.ndarray, " D"],
        candidates: Any,
        threshold: float | None = None,
        path: Path = "the video",
    ) -> Ranking:
        """As `rank_one`, for the result of `embed_video`; `path` is for messages."""
        return self._ranked(self.compare(v_D, candidates), candidates, threshold, path)

    def _ranked(
        self, score_K: np.ndarray, candidates: Any, threshold: float | None, path: Path
    ) -> Ranking:
        names = _names(candidates, threshold)
        share_K, score_K = self._shares(score_K, threshold, path)
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

    def recognize(
        self,
        paths: Iterable[Path],
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
        threshold: float | None = None,
        *,
        top: int | None = None,
    ) -> list[Recognition]:
        """Names the actions in videos.

        Unlike `rank`, it does not stop at a video that cannot be read: its result has the reason.

        Args:
          paths: video files.
          actions: candidate names, all different.
          descriptions: captions by action; see `embed_actions`.
          threshold: adds the row `NONE`; see `rank`.
          top: keep only so many actions of each video.

        Returns:
          A result for each video, in the order of the paths. The scores of a video, before `top`, sum to
          1. A score estimates the probability that the action is the right one if one of the candidates
          is. docs/pretrained.md has how well this holds for the pretrained recogniser; for other models
          the scores are the softmax that they were trained with.

        Raises:
          UserError: the actions are not usable.
        """
        candidates = self.embed_actions(actions, descriptions)
        return list(self.recognize_each(paths, candidates, threshold, top=top))

    def recognize_each(
        self,
        paths: Iterable[Path],
        candidates: Any,
        threshold: float | None = None,
        *,
        top: int | None = None,
    ) -> Iterator[Recognition]:
        """As `recognize`, one video at a time, for the result of `embed_actions`."""
        for path, ranked in self.rank_each(_listed(paths), candidates, threshold):
            if isinstance(ranked, VideoError):
                yield Recognition(os.fspath(path), (), str(ranked))
            else:
                yield Recognition(os.fspath(path), tuple(ranked[:top]))

    def timeline(
        self,
        path: Path,
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
        threshold: float | None = None,
        *,
        stride: float = STRIDE,
        action_seconds: float = ACTION_SECONDS,
        progress: Callable[[int, int], None] | None = None,
    ) -> Timeline:
        """Says what happens when in a video.

        Windows of 2.56 s are scored, and the most likely sequence of actions is found
        (coco_jax/recognition/timeline.py).

        Args:
          path: a video file of any length.
          actions: candidate names, all different.
          descriptions: captions by action; see `embed_actions`.
          threshold: adds the action `NONE` with this raw score in each window.
          stride: seconds from one window to the next.
          action_seconds: the mean duration of an action; longer gives fewer and longer segments.
          progress: see `embed_windows`.

        Raises:
          VideoError: the file cannot be decoded, or is too long.
          UserError: the actions or the numbers are not usable.
        """
        candidates = self.embed_actions(actions, descriptions)
        return self.timeline_one(
            path,
            candidates,
            threshold,
            stride=stride,
            action_seconds=action_seconds,
            progress=progress,
        )

    def timeline_one(
        self,
        path: Path,
        candidates: Any,
        threshold: float | None = None,
        *,
        stride: float = STRIDE,
        action_seconds: float = ACTION_SECONDS,
        progress: Callable[[int, int], None] | None = None,
    ) -> Timeline:
        """As `timeline`, for the result of `embed_actions`."""
        _names(candidates, threshold)
        timelines.check_seconds(stride=stride, action_seconds=action_seconds)
        windows = self.embed_windows(path, stride, progress)
        return self.timeline_of(path, windows, candidates, threshold, action_seconds)

    def timeline_of(
        self,
        path: Path,
        windows: Windows,
        candidates: Any,
        threshold: float | None = None,
        action_seconds: float = ACTION_SECONDS,
    ) -> Timeline:
        """As `timeline_one`, for the result of `embed_windows`; the video is not opened.

        Raises:
          VideoError: windows x actions are more than `MAX_SCORES`.
          UserError: as `timeline`.
        """
        names, count = _names(candidates, threshold), len(windows.starts_T)
        if count * len(names) > timelines.MAX_SCORES:
            raise VideoError(
                f"{os.fspath(path)}: {count:,} windows x {len(names):,} actions are more than "
                f"{timelines.MAX_SCORES:,}; use fewer actions, a longer stride, or a part of the video"
            )
        blocks = [windows.v_TD[start : start + BLOCK] for start in range(0, count, BLOCK)]
        raw_TK = np.concatenate([self.compare(v_XD, candidates) for v_XD in blocks])
        share_TK, raw_TK = self._shares(raw_TK, threshold, path)
        # Windows that overlap show the same frames: together they are as much evidence as one.
        weight = min(windows.stride / timelines.WINDOW, 1.0) / self.temperature
        cost = timelines.change_cost(len(names), windows.stride, action_seconds)
        path_T = timelines.best_path(raw_TK * weight, cost)
        parts = timelines.runs_of(path_T)
        times = timelines.boundaries(windows, parts)
        segments = []
        for part, start, end in zip(parts, times[:-1], times[1:], strict=True):
            action = int(path_T[part.start])
            score_K = self.compare(self.pool(windows.v_TD[part]), candidates)
            share = float(self._shares(score_K, threshold, path)[0][action])
            segments.append(Segment(start, end, names[action], share))
        return Timeline(
            os.fspath(path),
            windows.duration,
            tuple(segments),
            tuple(names),
            windows.length,
            windows.starts_T,
            share_TK.astype(np.float32),
        )

    def _shares(
        self, score_XK: np.ndarray, threshold: float | None, path: Path
    ) -> tuple[np.ndarray, np.ndarray]:
        """The softmax of raw scores, and the raw scores; both with a column for the threshold.

        Raises:
          UserError: the scores are not finite.
        """
        if not np.isfinite(score_XK).all():
            raise UserError(
                f"{path}: the model gives scores that are not finite; train it again, or get it again"
            )
        if threshold is not None:
            column = np.full((*score_XK.shape[:-1], 1), threshold, score_XK.dtype)
            score_XK = np.concatenate([score_XK, column], -1)
        share_XK = np.exp((score_XK - score_XK.max(-1, keepdims=True)) / self.temperature)
        share_XK /= share_XK.sum(-1, keepdims=True)
        return share_XK, score_XK


def _listed(paths: Iterable[Path]) -> list[Path]:
    """The paths as a list.

    Raises:
      TypeError: they are a single path, whose letters would be taken as paths.
    """
    if isinstance(paths, str | os.PathLike):
        raise TypeError(f"paths: {paths!r} is one path; give a list of paths")
    return list(paths)


def _names(candidates: Any, threshold: float | None) -> list[str]:
    """The names of the candidates, and `NONE` if there is a threshold.

    Raises:
      UserError: there is a threshold, and an action is named `NONE`.
    """
    names = list(candidates.names)
    if threshold is None:
        return names
    if NONE in names:
        raise UserError(f"the action {NONE!r} has the name of the row that a threshold adds")
    return [*names, NONE]


def padded_count(count: int) -> int:
    """The next power of two, at least `LEAST`: XLA compiles one program for each shape, and keeps it."""
    return max(LEAST, 1 << (count - 1).bit_length())


def pad(x: np.ndarray, count: int) -> np.ndarray:
    """Appends rows like the last one, up to `count` rows."""
    return np.concatenate([x, np.repeat(x[-1:], count - len(x), axis=0)])
