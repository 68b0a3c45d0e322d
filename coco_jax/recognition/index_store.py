"""Files of an index: vectors of windows, their times, and a table of the videos.

    index.json                      settings, the model, and the names of the other files
    videos-HASH.jsonl               a line for each video, sorted by name
    times-HASH.npy                  float64 [N, 2]: start and end of each window, in seconds
    vectors-NUMBER-HASH.npy         float32 [rows, W], together N rows
    lock                            of the process that builds the index
    parts-KEY/SHA256.npy            during a build: the windows of one video

HASH is that of a file's own bytes. index.json is replaced last and at once, so readers find the old
index or the new one. What an index contains depends only on the videos, the model and the settings: not
on how often its build was interrupted, nor on which index was there before.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coco_jax import arrays
from coco_jax.errors import UserError
from coco_jax.files import open_regular, parse_json, read_bytes, write_bytes

FORMAT, FORMAT_VERSION = "coco_jax index", 1
HEAD, LOCK, PARTS = "index.json", "lock", "parts-"
HEAD_LIMIT = 8 << 20  # bytes of index.json
LINE_LIMIT = 64 << 10  # bytes of a line of the table of videos
SHARD_ROWS = 65_536  # 269 MB with the pretrained recogniser
BLOCK = 8192  # rows that are copied at once
_NAME = re.compile(
    r"(videos-[0-9a-f]{32}\.jsonl|times-[0-9a-f]{32}\.npy|vectors-\d{6}-[0-9a-f]{32}\.npy)"
)
_OWN = re.compile(
    rf"{_NAME.pattern}(\.partial)?|{HEAD}(\.partial)?|{LOCK}|{PARTS}[0-9a-f]+|.*\.partial"
)


class Video(NamedTuple):
    """A line of the table."""

    video: str  # path relative to the folder, with /
    size: int  # bytes
    mtime_ns: int
    sha256: str  # "" if it could not be read
    duration: float  # seconds
    first: int  # row of its first window
    windows: int
    error: str  # why it could not be read, or ""


class Settings(NamedTuple):
    """What the vectors depend on, besides the videos."""

    model: str  # fingerprint
    trained_on: str  # for people
    window: float  # seconds
    stride: float  # seconds
    width: int  # values of a vector

    @property
    def key(self) -> str:
        """A hash; a build only continues the work of builds with the same one."""
        stored = json.dumps([self.model, self.window, self.stride, self.width])
        return hashlib.sha256(stored.encode()).hexdigest()[:32]


class Part(NamedTuple):
    """The windows of one video."""

    duration: float  # of the video, seconds
    times_N2: Float[np.ndarray, "N 2"]
    blocks: Iterable[Float[np.ndarray, "B W"]]  # of its rows, in order


class Stored(NamedTuple):
    """An index on the disk."""

    folder: pathlib.Path
    settings: Settings
    videos: tuple[Video, ...]
    times_N2: Float[np.ndarray, "N 2"]
    shards: tuple[tuple[str, int], ...]  # name, rows

    def blocks(
        self, rows: int, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, Float[np.ndarray, "B W"]]]:
        """Yields the number of a row, and the vectors from there on, at most `rows` at a time.

        Args:
          rows: of a block.
          first: row to begin with.
          last: row before which to end; all by default.

        Raises:
          UserError: a file is missing or damaged.
        """
        last = len(self.times_N2) if last is None else last
        begin = 0
        for name, count in self.shards:
            if begin < last and first < begin + count:
                # Mapped again for each pass: pages stay in the process's memory until a map is closed.
                shard = self._shard(name, count)
                low, high = max(first - begin, 0), min(last - begin, count)
                for at in range(low, high, rows):
                    yield begin + at, shard[at : min(at + rows, high)]
            begin += count

    def take(self, row_X: Int[np.ndarray, " X"]) -> Float[np.ndarray, "X W"]:
        """The vectors with these numbers, which ascend."""
        found, begin = [np.zeros((0, self.settings.width), np.float32)], 0
        for name, count in self.shards:
            low, high = np.searchsorted(row_X, (begin, begin + count))
            if low < high:
                found.append(self._shard(name, count)[row_X[low:high] - begin])
            begin += count
        return np.concatenate(found)

    def part(self, video: Video) -> Part:
        """The windows of a video."""
        last = video.first + video.windows
        blocks = (block for _, block in self.blocks(BLOCK, video.first, last))
        return Part(video.duration, self.times_N2[video.first : last], blocks)

    def _shard(self, name: str, count: int) -> np.ndarray:
        shard = _open_array(self.folder / name)
        if shard.shape != (count, self.settings.width) or shard.dtype != np.float32:
            raise _damaged(self.folder / name, f"has shape {shard.shape} and dtype {shard.dtype}")
        return shard


def read(folder: pathlib.Path) -> Stored:
    """Opens an index, which may be from somebody else.

    Raises:
      UserError: there is none, or it is damaged or of a later version.
    """
    head = folder / HEAD
    if not head.exists():
        unfinished = folder.is_dir() and any(folder.glob(f"{PARTS}*"))
        raise UserError(
            f"{folder}: "
            + (
                "its build has not finished; run the build again"
                if unfinished
                else "not an index; make one with coco-jax index build FOLDER --output=INDEX"
            )
        )
    try:
        found = parse_json(read_bytes(head, HEAD_LIMIT))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        if found.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"its format version is not {FORMAT_VERSION}; update coco_jax")
        stored = found["settings"]
        settings = Settings(
            *(kind(stored[name]) for name, kind in Settings.__annotations__.items())
        )
        shards = tuple((_name(x["file"]), int(x["rows"])) for x in found["vectors"])
        videos = tuple(_videos(folder / _name(found["videos"])))
        total = sum(rows for _, rows in shards)
        times = folder / _name(found["times"])
        times_N2 = _open_array(times) if total else np.zeros((0, 2))
        ends = [video.first + video.windows for video in videos if not video.error]
        starts = [video.first for video in videos if not video.error]
        counts = [rows for _, rows in shards] + [
            end - start for end, start in zip(ends, starts, strict=True)
        ]
        if [0, *ends] != [*starts, total] or min(counts, default=1) < 1:
            raise ValueError("the windows of the videos are not the rows of the vectors")
        if times_N2.shape != (total, 2) or times_N2.dtype != np.float64:
            raise ValueError(f"{times.name} has shape {times_N2.shape}")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise _damaged(head, " ".join(str(error).split())[:200]) from error
    return Stored(folder, settings, videos, times_N2, shards)


def _videos(path: pathlib.Path) -> Iterator[Video]:
    with open_regular(path) as file:
        while line := file.readline(LINE_LIMIT):
            found = parse_json(line)
            fields = [kind(found[name]) for name, kind in Video.__annotations__.items()]
            yield Video(*fields)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r:.100} is not a file of an index")
    return value


def _open_array(path: pathlib.Path) -> np.ndarray:
    try:
        return arrays.open_npy(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _damaged(path, str(reason)) from error


def _damaged(path: pathlib.Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason}); remove the index and build it again")


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder of an index, and locks it against other builds.

    Raises:
      UserError: another process is building it, or the folder is something else.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(name for name in os.listdir(folder) if not _OWN.fullmatch(name))
        if others:
            raise UserError(
                f"{folder}: has files that are not of an index, e.g. {others[0]!r}; choose a new folder"
            )
        with filelock.FileLock(folder / LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is building it; wait until it ends") from error
    except (NotADirectoryError, PermissionError, FileExistsError) as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder") from error


def part_path(folder: pathlib.Path, settings: Settings, sha256: str) -> pathlib.Path:
    """The file with the windows of one video, while an index is built."""
    return folder / f"{PARTS}{settings.key}" / f"{sha256}.npy"


def _row_type(width: int) -> np.dtype:
    return np.dtype([("times", "<f8", (3,)), ("vector", "<f4", (width,))])


def write_part(
    path: pathlib.Path, times_N2: np.ndarray, vectors_NW: np.ndarray, duration: float
) -> None:
    """Writes the windows of one video.

    Raises:
      OSError: the file cannot be written.
    """
    rows_N = np.empty(len(times_N2), _row_type(vectors_NW.shape[1]))
    rows_N["times"][:, :2], rows_N["times"][:, 2] = times_N2, duration
    rows_N["vector"] = vectors_NW
    file = io.BytesIO()
    np.save(file, rows_N)
    path.parent.mkdir(exist_ok=True)
    # Two machines may embed equal files at the same time.
    own = path.with_name(f"{path.stem}-{secrets.token_hex(8)}")
    write_bytes(own, file.getvalue())
    os.replace(own, path)


def read_part(path: pathlib.Path, width: int) -> Part:
    """What `write_part` wrote; the rows are read when they are iterated over.

    Raises:
      UserError: the file is damaged.
    """

    def rows() -> np.ndarray:
        try:
            rows_N = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
        if rows_N.dtype != _row_type(width) or not len(rows_N):
            raise _damaged(path, f"has dtype {rows_N.dtype}")
        return rows_N

    def blocks() -> Iterator[np.ndarray]:
        yield rows()["vector"]

    times_N3 = rows()["times"].copy()
    return Part(float(times_N3[0, 2]), times_N3[:, :2], blocks())


class _Hashed:
    """A new file that gets its name from its content."""

    def __init__(self, folder: pathlib.Path, prefix: str):
        self._partial = folder / f"{prefix}.partial"
        self._prefix, self._hash = prefix, hashlib.sha256()
        self._file: BinaryIO = open(self._partial, "wb")  # noqa: SIM115

    def write(self, data: Any) -> None:
        self._hash.update(data)
        self._file.write(data)

    def array(self, shape: tuple[int, ...], dtype: str) -> None:
        """Writes the header of an .npy file."""
        head = io.BytesIO()
        fields = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, fields)
        self.write(head.getvalue())

    def close(self, suffix: str) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = f"{self._prefix}-{self._hash.hexdigest()[:32]}{suffix}"
        os.replace(self._partial, self._partial.with_name(name))
        return name


def write(
    folder: pathlib.Path, settings: Settings, videos: Sequence[tuple[Video, Part | None]]
) -> None:
    """Replaces the index of a folder, whose lock the caller holds.

    Args:
      folder: of the index.
      settings: of the index.
      videos: all videos, sorted, and their windows; `first` and `windows` are filled in here. None if a
        video could not be read.

    Raises:
      OSError: it cannot be written; the old index stays.
    """
    total = sum(len(part.times_N2) for _, part in videos if part)
    table, times = _Hashed(folder, "videos"), _Hashed(folder, "times")
    times.array((total, 2), "<f8")
    shards: list[dict[str, Any]] = []
    shard, size, left, row = None, 0, 0, 0
    for video, part in videos:
        count = len(part.times_N2) if part else 0
        video = video._replace(first=row if part else 0, windows=count)
        table.write((json.dumps(video._asdict()) + "\n").encode())
        if part is None:
            continue
        times.write(np.ascontiguousarray(part.times_N2, "<f8").tobytes())
        for block in part.blocks:
            while len(block):
                if shard is None:
                    size = left = min(SHARD_ROWS, total - row)
                    shard = _Hashed(folder, f"vectors-{len(shards) + 1:06d}")
                    shard.array((size, settings.width), "<f4")
                taken, block = block[:left], block[left:]
                shard.write(np.ascontiguousarray(taken, "<f4").tobytes())
                row, left = row + len(taken), left - len(taken)
                if not left:
                    shards.append({"file": shard.close(".npy"), "rows": size})
                    shard = None
    assert shard is None and row == total
    head = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": settings._asdict(),
        "videos": table.close(".jsonl"),
        "times": times.close(".npy"),
        "vectors": shards,
    }
    write_bytes(folder / HEAD, (json.dumps(head, indent=1) + "\n").encode())
    used = {HEAD, LOCK, head["videos"], head["times"], *(shard["file"] for shard in shards)}
    for path in folder.iterdir():
        if path.name.startswith(PARTS):
            shutil.rmtree(path)
        elif path.name not in used:
            path.unlink()
