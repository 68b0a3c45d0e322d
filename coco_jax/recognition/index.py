"""Embeds an archive of videos once, and answers questions about it later without opening a video.

`build` stores the vectors of all windows of all videos (index_store.py). `Index` compares actions with
them. The comparison is exact: all vectors are read, in blocks, through a memory map.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coco_jax.data.video import VideoError
from coco_jax.errors import UserError
from coco_jax.files import open_regular
from coco_jax.printing import printable
from coco_jax.recognition import index_store as store
from coco_jax.recognition import sources
from coco_jax.recognition.ranking import VideoRanker
from coco_jax.recognition.timeline import WINDOW, Timeline, Windows

STRIDE = WINDOW  # seconds: each moment is in one window
BLOCK = 8192  # rows that are compared at once: 34 MB with the pretrained recogniser


class Found(NamedTuple):
    """A video file."""

    path: str
    name: str  # relative to the folder that is embedded, with /
    size: int  # bytes
    mtime_ns: int


class Result(NamedTuple):
    """What became of a file."""

    sha256: str  # "" if there is an error
    error: str
    embedded: bool  # now, not by an earlier build


class Summary(NamedTuple):
    """What a build did."""

    videos: int
    windows: int
    embedded: int  # videos that this build embedded
    unreadable: tuple[tuple[str, str], ...]  # names and reasons


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Embeds files, on this machine or on a worker of Beam."""

    recognizer: VideoRanker
    output: pathlib.Path
    settings: store.Settings
    known: frozenset[str] = frozenset()  # SHA-256 of the files whose windows the old index has

    def __call__(self, path: str) -> Result:
        """Embeds one file and stores its windows, unless that was done before."""
        try:
            with open_regular(path) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return Result("", error.strerror or str(error), False)
        part = store.part_path(self.output, self.settings, sha256)
        if sha256 in self.known or part.exists():
            return Result(sha256, "", False)
        try:
            windows = self.recognizer.embed_windows(path, self.settings.stride)
        except VideoError as error:
            return Result("", str(error).removeprefix(f"{path}: "), False)
        rows_NW = self.recognizer.rows(windows.v_TD)
        if not np.isfinite(rows_NW).all():
            return Result("", "the model gives vectors that are not finite", False)
        ends_N = windows.starts_T + windows.length
        store.write_part(part, np.stack([windows.starts_T, ends_N], 1), rows_NW, windows.duration)
        return Result(sha256, "", True)


# Yields each file with what became of it, in any order.
Runner = Callable[[Embedder, Sequence[Found]], Iterable[tuple[Found, Result]]]


def find(folder: str) -> list[Found]:
    """The videos of a folder and of the folders below it.

    Raises:
      UserError: there is no such folder, or it has no videos.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; give the folder of the videos")
    found = []
    for source in sources.find([folder]):
        name = os.path.relpath(source.address, folder).replace(os.sep, "/")
        # A name that is not UTF-8 cannot be stored in JSON.
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
        try:
            status = os.stat(source.address)
            found.append(Found(source.address, name, status.st_size, status.st_mtime_ns))
        except OSError:  # a link to nowhere; opening it will give the reason
            found.append(Found(source.address, name, 0, 0))
    return found


def one_by_one(embedder: Embedder, files: Sequence[Found]) -> Iterator[tuple[Found, Result]]:
    """Embeds files in this process."""
    for found in files:
        yield found, embedder(found.path)


def build(
    files: Sequence[Found],
    output: pathlib.Path,
    recognizer: VideoRanker,
    stride: float = STRIDE,
    runner: Runner = one_by_one,
) -> Summary:
    """Makes an index of videos, or brings it up to date.

    Only files that are new or have changed are embedded; those that are not given are dropped. After an
    interruption the next build continues with the first video that was not embedded completely, and
    the result has the same bytes as without it.

    Args:
      files: the videos.
      output: folder of the index.
      recognizer: makes the vectors.
      stride: seconds from the start of a window to that of the next one.
      runner: applies an embedder to files.

    Raises:
      UserError: `output` has an index with another model or stride, or other files; or another process
        is building it.
    """
    settings = store.Settings(
        recognizer.fingerprint, recognizer.training_data, WINDOW, stride, recognizer.row_width
    )
    with store.locked(output):
        old = store.read(output) if (output / store.HEAD).exists() else None
        if old and old.settings.key != settings.key:
            check_model(old, recognizer)
            raise UserError(
                f"{output}: was built with --stride={old.settings.stride:g}; give the same stride, or "
                "choose another folder"
            )
        before = {v.video: v for v in old.videos if not v.error} if old else {}
        of_hash = {v.sha256: v for v in before.values()}
        results: dict[str, Result] = {}
        changed = []
        for found in files:
            video = before.get(found.name)
            if video and (video.size, video.mtime_ns) == (found.size, found.mtime_ns):
                results[found.name] = Result(video.sha256, "", False)
            else:
                changed.append(found)
        embedder = Embedder(recognizer, output, settings, frozenset(of_hash))
        for found, result in runner(embedder, changed):
            results[found.name] = result

        rows: list[tuple[store.Video, store.Part | None]] = []
        for found in sorted(files, key=lambda found: found.name):
            sha256, error, _ = results[found.name]
            part = None
            if not error and old and sha256 in of_hash:
                part = old.part(of_hash[sha256])
            elif not error:
                part = store.read_part(store.part_path(output, settings, sha256), settings.width)
            duration = part.duration if part else 0.0
            row = store.Video(found.name, found.size, found.mtime_ns, sha256, duration, 0, 0, error)
            rows.append((row, part))
        store.write(output, settings, rows)
    return Summary(
        len(files),
        sum(len(part.times_N2) for _, part in rows if part),
        sum(result.embedded for result in results.values()),
        tuple((video.video, video.error) for video, _ in rows if video.error),
    )


def check_model(stored: store.Stored, recognizer: VideoRanker) -> None:
    """Checks that an index was built with a model.

    Raises:
      UserError: it was built with another one.
    """
    if stored.settings.model != recognizer.fingerprint:
        raise UserError(
            f"{stored.folder}: was built with another model (trained on "
            f"{printable(stored.settings.trained_on)}); name that model with --model or --towers, or "
            "build another index"
        )


class Hit(NamedTuple):
    """A window of a video, and how well an action fits it."""

    video: str
    start: float  # seconds
    end: float
    score: float  # raw, as from `VideoRanker.compare`


class Index:
    """The windows of an archive, and the recogniser that made their vectors."""

    def __init__(self, folder: str | os.PathLike[str], recognizer: VideoRanker):
        """Opens an index.

        Raises:
          UserError: there is none, it is damaged, or it was built with another model.
        """
        self.stored, self.recognizer = store.read(pathlib.Path(folder)), recognizer
        check_model(self.stored, recognizer)
        self.videos = tuple(video for video in self.stored.videos if not video.error)
        self._first = np.array([video.first for video in self.videos], np.int64)

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.stored.times_N2)

    def search(self, candidates: Any, top: int = 10) -> list[list[Hit]]:
        """For each action the `top` windows with the highest raw scores, best first.

        Args:
          candidates: from `embed_actions` of the recogniser.
          top: number of windows.

        Raises:
          UserError: a file of the index is missing or damaged.
        """
        best = [(np.zeros(0, np.float32), np.zeros(0, np.int64))] * len(candidates.names)
        for first, scores_BK in self._scores(candidates):
            row_B = np.arange(first, first + len(scores_BK))
            for k, (score_N, row_N) in enumerate(best):
                score_N = np.concatenate([score_N, scores_BK[:, k]])
                best[k] = keep_top(score_N, np.concatenate([row_N, row_B]), top)
        return [self.hits(*found) for found in best]

    def hits(self, score_N: Float[np.ndarray, " N"], row_N: Int[np.ndarray, " N"]) -> list[Hit]:
        """The windows with these rows."""
        video_N = np.searchsorted(self._first, row_N, "right") - 1
        found = []
        for score, row, video in zip(score_N, row_N, video_N, strict=True):
            start, end = self.stored.times_N2[row].tolist()
            found.append(Hit(self.videos[video].video, start, end, float(score)))
        return found

    def _scores(self, candidates: Any) -> Iterator[tuple[int, Float[np.ndarray, "B K"]]]:
        """Yields the number of a window, and the raw scores of the windows from there on."""
        table = self.recognizer.table(candidates)
        for first, rows_BW in self.stored.blocks(BLOCK):
            if table is None:
                yield first, self.recognizer.compare(rows_BW, candidates)
            else:
                yield first, table.scores(rows_BW)

    def label(self, candidates: Any, threshold: float | None = None) -> Iterator[Timeline]:
        """Yields what happens when in each video, as `VideoRanker.timeline` with the index's stride.

        Args:
          candidates: from `embed_actions` of the recogniser.
          threshold: see `VideoRanker.timeline`.

        Raises:
          UserError: a file of the index is missing or damaged.
        """
        for video in self.videos:
            part = self.stored.part(video)
            rows_NW = np.concatenate(list(part.blocks))
            times_N2 = part.times_N2
            length = float(times_N2[0, 1] - times_N2[0, 0])
            v_TD = rows_NW[:, : self.recognizer.vector_width]
            windows = Windows(
                times_N2[:, 0], self.stored.settings.stride, length, video.duration, v_TD
            )
            yield self.recognizer.timeline_of(video.video, windows, candidates, threshold)


def keep_top(
    score_N: Float[np.ndarray, " N"], row_N: Int[np.ndarray, " N"], top: int
) -> tuple[Float[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """The `top` highest scores and their rows, best first; of equal scores the lower rows."""
    if len(score_N) > top:
        kept_N = score_N >= np.partition(score_N, -top)[-top]
        score_N, row_N = score_N[kept_N], row_N[kept_N]
    order = np.lexsort((row_N, -score_N))[:top]
    return score_N[order], row_N[order]
