"""Decodes frames of video files with PyAV. Any file, even a malicious one, gives frames or a VideoError.

A file is first demuxed without decoding, to find the time of each frame independently of the header.
Then only the frames from the keyframe before each requested frame up to that frame are decoded.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Set
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int, UInt8
from PIL import Image

from coco_jax.errors import UserError
from coco_jax.files import open_regular

# Demuxers that open other files, devices or addresses than the one they are given (playlists,
# sequences of numbered images, capture devices, subtitles and metadata that name files).
OPENS_OTHERS = re.compile(
    r"(hls|applehttp|dash|concatf?|image2|.*_pipe|imf|sdp|rtsp|rtp|sap|rtmp.*|mmst?|ftp|tee|ffmetadata"
    r"|alsa|pulse|oss|v4l2|video4linux2|fbdev|lavfi|jack|kmsgrab|x11grab|xcbgrab|dshow|gdigrab"
    r"|avfoundation|decklink|libcdio|libdc1394|iec61883|sndio|openal|bktr|android_camera|vapoursynth"
    r"|avisynth|gxf|webm_dash_manifest|live_flv|libopenmpt|libgme|libmodplug"
    r"|tedcaptions|ism|smoothstreaming)"
)


@functools.cache
def allowed_demuxers() -> str:
    """FFmpeg's `format_whitelist`: every demuxer of this build except those that open other files.

    Animated GIFs are allowed; other images are not (their demuxers end in `_pipe`).
    """
    # FFmpeg finds a demuxer with several names only by all names, whose commas must be escaped.
    names = [name for name in av.formats_available if av_is_input(name)]
    allowed = [n for n in names if not any(map(OPENS_OTHERS.fullmatch, n.split(",")))]
    full = [av.ContainerFormat(name, "r").name for name in allowed]
    return ",".join(sorted({*allowed, *(name.replace(",", "\\,") for name in full)}))


def av_is_input(name: str) -> bool:
    """Whether FFmpeg can read a format; some it can only write."""
    try:
        return av.ContainerFormat(name, "r").is_input
    except ValueError:
        return False


# Extensions of video files, for searching folders. Files of other names can be given one by one.
SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".ogg", ".flv", ".wmv",
     ".asf", ".3gp", ".ts", ".m2ts", ".mts", ".vob", ".mxf", ".gif", ".apng", ".ivf", ".y4m", ".rm",
     ".f4v", ".divx", ".dv")
)  # fmt: skip
SEEKABLE = ("mov", "matroska")  # containers in which any frame can be found by its time
MIN_FRAMES = 2  # a single frame shows no motion
MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 36_000_000  # of a frame: 8K has 35 million; a decoder may keep 16 frames
MAX_MISSING = 0.01  # share of the number of frames in the header
MAX_BYTES = 4 << 30  # of decoded frames
av.logging.set_level(av.logging.PANIC)  # errors of libav are raised as exceptions


class Frames(NamedTuple):
    """A video stored as JPEG images, `fps` per second."""

    images: tuple[bytes, ...]
    fps: float


Video = bytes | str | os.PathLike[str] | Frames


class VideoError(UserError):
    """A video that cannot be used; one line, `name: what is wrong; what to do`."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Number, rate, times and stored size of the frames of a video."""

    frames: int
    fps: float
    duration: float  # seconds, from the first frame's start to the last one's end
    height: int
    width: int
    codec: str
    starts: Float[np.ndarray, " N"]  # of each frame, seconds from the first one's


@dataclasses.dataclass(frozen=True)
class _Opened:
    name: str
    container: Any
    stream: Any
    info: VideoInfo
    # Presentation times of the frames in stream units, sorted; None if the container cannot seek
    # to a time (AVI, MPEG-TS). Its frames are counted instead.
    pts_N: Int[np.ndarray, " N"] | None
    keys_K: Int[np.ndarray, " K"]
    # One for all frames: to set up a conversion takes longer than to convert a small frame.
    reformatter: VideoReformatter


def probe(video: Video, name: str | None = None) -> VideoInfo:
    """Reads the properties of a video without decoding it.

    Args:
      video: an encoded file's bytes, its path, or its frames.
      name: for messages; by default the path.

    Raises:
      VideoError: it is missing, empty, no video, truncated or too short.
    """
    if isinstance(video, Frames):
        return _probe_frames(video, name or "<frames>")
    with _opened(video, name) as opened:
        return opened.info


# Seconds at which to decode frames, a function that gives them, or None for all frames.
Times = Float[np.ndarray, " T"] | Callable[[VideoInfo], Float[np.ndarray, " T"]] | None


def sample_times(
    num_frames: int,
    duration: float,
    mode: str,
    *,
    stride_seconds: float = 0.0,
    clip: int = 0,
    num_clips: int = 1,
    rng: np.random.Generator | None = None,
) -> Float[np.ndarray, " T"]:
    """Ascending times in seconds at which to sample a video of `duration` seconds.

    Args:
      num_frames: how many, T.
      duration: in seconds.
      mode: `uniform`: the middles of T equal segments; `random`: a random time in each segment
        (both: TSN, arXiv 1608.00859); `dense`: `stride_seconds` apart, from a random start with
        `rng`, else from the `clip`-th of `num_clips` evenly spaced starts. Times past the end are
        replaced by the end.
      stride_seconds: for `dense`.
      clip: for `dense` without `rng`.
      num_clips: for `dense` without `rng`.
      rng: required by `random`.

    Raises:
      ValueError: an unknown mode, or `random` without `rng`.
    """
    steps_T = np.arange(num_frames)
    match mode:
        case "uniform":
            return (steps_T + 0.5) / num_frames * duration
        case "random":
            if rng is None:
                raise ValueError("random sampling needs an rng")
            return (steps_T + rng.random(num_frames)) / num_frames * duration
        case "dense":
            room = max(duration - (num_frames - 1) * stride_seconds, 0.0)
            # `clip + 0.5`: the middle of each of `num_clips` equal shares of the possible starts.
            share = (clip + 0.5) / num_clips if rng is None else rng.random()
            return np.minimum(room * share + steps_T * stride_seconds, duration)
        case _:
            raise ValueError(f"mode is {mode!r}, not uniform, random or dense")


def shown_at(info: VideoInfo, times_T: Float[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """The index of the frame at each time (seconds); the last frame for times past the end."""
    # A tolerance: a time computed from the time of a frame must find that frame.
    found_T = np.searchsorted(info.starts, np.asarray(times_T) + 1e-6, side="right") - 1
    return found_T.clip(0, info.frames - 1)


def decode(
    video: Video,
    times: Times,
    *,
    short_side: int | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes the frames at given times, as RGB.

    Args:
      video: an encoded file's bytes, its path, or its frames.
      times: seconds from the first frame, in any order, repeats allowed; times past the end give
        the last frame. Or a function from VideoInfo to such times. None: every frame.
      short_side: scale to this many pixels on the shorter side, keeping the aspect ratio.
      size: scale to (height, width) instead.
      name: for messages; by default the path.

    Raises:
      VideoError: it is missing, empty, no video, truncated, damaged, too short or too big.
    """
    if isinstance(video, Frames):
        name = name or "<frames>"
        info = _probe_frames(video, name)
        index_T, height, width = _wanted(info, times, short_side, size, name)
        shown = {i: _picture(video.images[i], height, width, name) for i in set(index_T.tolist())}
        return np.stack([shown[index] for index in index_T.tolist()])
    with _opened(video, name) as opened:
        index_T, height, width = _wanted(opened.info, times, short_side, size, opened.name)
        missing = set(index_T.tolist())
        frames_THWC: Any = None
        for index, frame in _decoded(opened, sorted(missing)):
            if index in missing:
                rgb = _rgb(opened, frame, height, width, turned=size is not None)
                if frames_THWC is None:
                    frames_THWC = np.empty((len(index_T), *rgb.shape), np.uint8)
                frames_THWC[index_T == index] = rgb
                missing.remove(index)
        if missing:
            raise _undecodable(opened.name, len(missing))
        return frames_THWC


def decode_windows(
    video: Video, times_NT: Float[np.ndarray, "N T"], *, short_side: int, name: str | None = None
) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Decodes windows of a video one after the other, in one pass and in memory for one window.

    Args:
      video: an encoded file's bytes, its path, or its frames.
      times_NT: for each window the times of its frames, as in `decode`. They ascend in a window, and so
        do the first times and the last times of the windows, which may overlap.
      short_side: scale to this many pixels on the shorter side, keeping the aspect ratio.
      name: for messages; by default the path.

    Yields:
      The frames of each window. If they are those of the window before, it is the same array.

    Raises:
      VideoError: as `decode`.
    """
    if isinstance(video, Frames):
        for times_T in times_NT:
            yield decode(video, times_T, short_side=short_side, name=name)
        return
    with _opened(video, name) as opened:
        # Checks the size of the largest arrays: those of one window.
        _, height, width = _wanted(opened.info, times_NT[0], short_side, None, opened.name)
        index_NT = shown_at(opened.info, times_NT)
        is_wanted_N = np.zeros(opened.info.frames, bool)
        is_wanted_N[index_NT] = True
        kept: dict[int, np.ndarray] = {}
        window, frames_THWC = 0, None
        for index, frame in _decoded(opened, np.flatnonzero(is_wanted_N).tolist()):
            if is_wanted_N[index]:
                kept[index] = _rgb(opened, frame, height, width)
            while window < len(index_NT) and index >= index_NT[window, -1]:
                index_T = index_NT[window]
                if missing := set(index_T.tolist()) - kept.keys():
                    raise _undecodable(opened.name, len(missing))
                if frames_THWC is None or (index_T != index_NT[window - 1]).any():
                    frames_THWC = np.stack([kept[i] for i in index_T.tolist()])
                yield frames_THWC
                window += 1
                first = index_NT[window, 0] if window < len(index_NT) else np.inf
                kept = {i: rgb for i, rgb in kept.items() if i >= first}
        if window < len(index_NT):
            raise _undecodable(opened.name, len(index_NT) - window)


def _rgb(
    opened: _Opened, frame: Any, height: int, width: int, *, turned: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame, upright and scaled.

    Args:
      opened: the file.
      frame: of PyAV.
      height: in pixels.
      width: in pixels.
      turned: whether height and width are those of the upright picture; otherwise they are those of the
        picture as it is stored, perhaps rotated.
    """
    quarters = round(frame.rotation / 90)
    h, w = (width, height) if turned and quarters % 2 else (height, width)
    rgb = opened.reformatter.reformat(frame, w, h, "rgb24", interpolation="BILINEAR", threads=1)
    return np.rot90(rgb.to_ndarray(), quarters % 4)


def _undecodable(name: str, missing: int) -> VideoError:
    return VideoError(
        f"{name}: truncated, {missing} of its frames cannot be decoded; fetch it again"
    )


def encode(
    frames_THWC: UInt8[np.ndarray, "T H W 3"],
    fps: int,
    *,
    codec: str = "libx264",
    crf: int = 23,
    gop: int = 12,
    container: str = "mp4",
) -> bytes:
    """Encodes RGB frames of even height and width; the same frames give the same bytes."""
    stored = io.BytesIO()
    with av.open(stored, "w", format=container) as out:
        # The output of x264 depends on the number of threads. Its look-ahead uses sums of floats whose
        # rounding depends on the memory addresses of buffers.
        options = {"preset": "veryfast", "crf": str(crf), "threads": "1"}
        if codec == "libx264":
            options["x264-params"] = "mbtree=0:rc-lookahead=0"
        stream: Any = out.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.thread_count = "yuv420p", gop, 1
        for frame in frames_THWC:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return stored.getvalue()


def _wanted(
    info: VideoInfo, times: Times, short_side: int | None, size: tuple[int, int] | None, name: str
) -> tuple[Int[np.ndarray, " T"], int, int]:
    """Indices of the frames to decode, and the height and width to scale them to."""
    if times is None:
        index_T = np.arange(info.frames)
    else:
        times_T = np.asarray(times(info) if callable(times) else times, np.float64)
        index_T = shown_at(info, times_T)
    height, width = _target(info, short_side, size)
    if max(height, width) > MAX_SIDE:
        raise VideoError(
            f"{name}: frames of {info.height} x {info.width} px, {height} x {width} when they are "
            f"scaled; use at most {MAX_SIDE} per side"
        )
    if len(index_T) * height * width * 3 > MAX_BYTES:
        raise VideoError(
            f"{name}: {len(index_T)} frames of {height} x {width} px do not fit in memory; "
            "sample fewer, or scale them down"
        )
    return index_T, height, width


def _probe_frames(video: Frames, name: str) -> VideoInfo:
    """The properties of JPEG frames, from the header of the first."""
    if not video.images or not video.fps > 0:
        raise VideoError(f"{name}: has no frames; build the dataset again")
    with _opened_picture(video.images[0], name) as image:
        width, height = image.size
    count = len(video.images)
    starts = np.arange(count) / video.fps
    return VideoInfo(count, video.fps, count / video.fps, height, width, "jpeg", starts)


def _picture(data: bytes, height: int, width: int, name: str) -> UInt8[np.ndarray, "H W 3"]:
    with _opened_picture(data, name) as image:
        rgb = image.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(rgb)


@contextlib.contextmanager
def _opened_picture(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise VideoError(
                    f"{name}: a frame of {image.size} px; use at most {MAX_SIDE} per side"
                )
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{name}: corrupt JPEG frame ({error}); build it again") from error


@contextlib.contextmanager
def _opened(video: bytes | str | os.PathLike[str], name: str | None) -> Iterator[_Opened]:
    """Opens and indexes a file; converts errors of libav, also in the with block, to VideoError."""
    source: BinaryIO
    if isinstance(video, bytes):
        name, source = name or "<bytes>", io.BytesIO(video)
        empty = not video
    else:
        name = name or os.fspath(video)
        try:
            source = open_regular(video)
            empty = not os.fstat(source.fileno()).st_size
        except OSError as error:
            raise VideoError(f"{name}: {error.strerror}; name a video file") from error
    with source as stream:
        if empty:
            raise VideoError(f"{name}: the file is empty; fetch or record it again")
        try:
            # Pass a stream, not a name, so that libav itself opens no file.
            with av.open(
                stream,
                options={
                    "format_whitelist": allowed_demuxers(),
                    "protocol_whitelist": "none",  # the stream is already open; open nothing else
                },
            ) as container:
                yield _index(name, container)
        except (av.FFmpegError, ValueError, EOFError, IndexError) as error:
            what = getattr(error, "strerror", None) or str(error)
            raise VideoError(
                f"{name}: not a video that can be decoded, or truncated ({what}); use a complete video "
                "file, e.g. an mp4"
            ) from error


def _index(name: str, container: Any) -> _Opened:
    """Reads the packets of a container to find its frames, and checks them."""
    if not container.streams.video:
        raise VideoError(f"{name}: has no video stream; give a file with pictures, not sound alone")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise VideoError(f"{name}: its codec is not known to FFmpeg; convert it, e.g. to H.264")
    stream.thread_count = 1  # loaders decode many files at once; one thread per file is fastest
    height, width = stream.codec_context.height, stream.codec_context.width
    if not 0 < height <= MAX_SIDE or not 0 < width <= MAX_SIDE:
        raise VideoError(
            f"{name}: frames of {height} x {width} px; use at most {MAX_SIDE} per side"
        )
    if height * width > MAX_PIXELS:
        raise VideoError(
            f"{name}: frames of {height} x {width} px; use at most {MAX_PIXELS:,} pixels"
        )
    # The size may change within the stream: the decoder checks every frame.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    packets = [
        (p.pts, p.is_keyframe, p.is_discard, p.duration or 0)
        for p in container.demux(stream)
        if p.size
    ]
    promised, found = stream.frames, len(packets)
    # The number in the header is often wrong by a few frames; a truncated file lacks many.
    if promised and found < (1 - MAX_MISSING) * promised - 1:
        raise VideoError(f"{name}: truncated, it has {found} of {promised} frames; fetch it again")
    # A trimmed file has frames that are only needed to decode others and are not shown.
    pts = [at for at, _, discarded, _ in packets if not discarded]
    count = len(pts)
    timed = None not in pts and len(set(pts)) == len(pts)
    timed = timed and container.format.name.startswith(SEEKABLE)
    if count < MIN_FRAMES:
        raise VideoError(
            f"{name}: has {count} frame{'s' * (count != 1)}; an action needs motion, give a video of "
            f"at least {MIN_FRAMES}"
        )
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    duration = count / fps
    pts_N = keys_K = np.zeros(0, np.int64)
    starts = np.arange(count) / fps
    if timed:
        pts_N = np.array(sorted(pts), np.int64)
        keys_K = np.array(sorted(at for at, is_key, *_ in packets if is_key), np.int64)
        unit = stream.time_base
        gap = max(length for *_, length in packets) or round(1 / fps / unit)
        starts = (pts_N - pts_N[0]) * float(unit)
        duration = float((pts_N[-1] - pts_N[0] + gap) * unit)
        length = (container.duration or 0) / av.time_base
        if not promised and float((pts_N[-1] + gap) * unit) < 0.9 * length:
            raise VideoError(
                f"{name}: truncated, its pictures end after {duration:.1f} of {length:.1f} s; fetch "
                "it again"
            )
        fps = count / duration
    info = VideoInfo(count, fps, duration, height, width, stream.codec_context.name, starts)
    return _Opened(
        name, container, stream, info, pts_N if timed else None, keys_K, VideoReformatter()
    )


def _decoded(opened: _Opened, wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Yields frames with their indices: at least `wanted` (ascending), none after the last of them."""
    container, stream, pts_N = opened.container, opened.stream, opened.pts_N
    if pts_N is None:  # cannot seek: decode from the start
        container.seek(0)
        index = -1
        for index, frame in enumerate(container.decode(stream)):
            yield index, frame
            if index >= wanted[-1]:
                return
        return
    index_of = {int(pts): i for i, pts in enumerate(pts_N)}
    wanted_pts = set(pts_N[wanted].tolist())
    at, frames = -1, iter(())
    for want in wanted:
        # Seek to the last keyframe before the frame, unless decoding is already past that.
        before = np.searchsorted(opened.keys_K, pts_N[want], side="right") - 1
        key = int(opened.keys_K[max(before, 0)]) if len(opened.keys_K) else int(pts_N[0])
        if at < 0 or index_of.get(key, 0) > at + 1:
            container.seek(key, stream=stream, backward=True)
            frames = _needed(container, stream, wanted_pts)
        while at < want:
            frame = next(frames, None)
            if frame is None:
                return
            if frame.pts in index_of:
                at = index_of[frame.pts]
                yield at, frame


def _needed(container: Any, stream: Any, wanted_pts: Set[int]) -> Iterator[Any]:
    """Frames from where the container is: at least those wanted, and those that others refer to.

    Decoders of H.264 and HEVC can leave out frames to which no other frame refers (about half of the
    frames of x264) without changing a pixel of the others.
    """
    codec = stream.codec_context
    leaves_out = codec.name in ("h264", "hevc")
    for packet in container.demux(stream):
        if leaves_out:
            is_needed = packet.pts is None or packet.pts in wanted_pts
            codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
        yield from packet.decode()


def _target(
    info: VideoInfo, short_side: int | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    """Height and width that frames are scaled to."""
    if size is not None:
        return size
    if short_side is None:
        return info.height, info.width
    scale = short_side / min(info.height, info.width)
    # Rounding must not make the short side one pixel shorter than the crop.
    return max(round(info.height * scale), short_side), max(round(info.width * scale), short_side)
