"""Where videos come from: files, folders, patterns, cameras, and addresses of streams.

What is not a file is first recorded into one, of bounded length and size. So everything after that is
the same for all sources, and a stream is decoded with the same care as a file of a stranger.
"""

import glob
import os
import pathlib
import re
import sys
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import av

from coco_jax.data import video as videos
from coco_jax.data.video import VideoError
from coco_jax.errors import UserError

SCHEMES = ("http", "https", "rtsp")
OPEN_TIMEOUT = READ_TIMEOUT = 15.0  # seconds without an answer of a stream
MAX_DELAY = 60.0  # seconds that a recording may take longer than the video that it records
MAX_BYTES = 1 << 30  # of a recording
# What FFmpeg may open for a stream. So a redirection cannot lead to a file, and a playlist is refused.
_HTTP = "http,https,httpproxy,tcp,tls"
_RTSP = "rtsp,rtp,rtcp,udp,tcp,tls"


class Source(NamedTuple):
    """A video.

    Attributes:
      name: for people; an address without its password.
      address: the path of a file, the address of a stream, or a device.
      live: FFmpeg's format of a camera or stream; "http" if FFmpeg finds it; None: a file.
    """

    name: str
    address: str
    live: str | None = None


def files(paths: Iterable[str], allow_url: bool = False) -> list[Source]:
    """A source for each path: a video file, or a stream if the path looks like an address.

    Raises:
      UserError: an address is not allowed, or its protocol is not supported.
    """
    return [_stream(path, allow_url) if _is_address(path) else Source(path, path) for path in paths]


def find(words: Iterable[str], allow_url: bool = False) -> list[Source]:
    """The videos that words name; each once, in the order of the words.

    Args:
      words: files; folders, which are searched with all folders below them for files with an extension
        of videos; patterns such as `clips/*.mp4` or `clips/**/*.mp4`; addresses of streams.
      allow_url: whether addresses may be opened.

    Raises:
      UserError: a pattern or a folder gives no video, an address is not allowed, or its protocol is not
        supported.
    """
    found = (source for word in words for source in _find(word, allow_url))
    return list({source.address: source for source in found}.values())


def _find(word: str, allow_url: bool) -> Iterator[Source]:
    if _is_address(word):
        yield _stream(word, allow_url)
        return
    if os.path.isdir(word):
        paths = list(_below(word))
        if not paths:
            raise UserError(
                f"{word}: no file in this folder has an extension of videos (.mp4, .gif, ...); name "
                "files with other extensions one by one"
            )
    elif glob.has_magic(word) and not os.path.lexists(word):
        matches = sorted(map(str, _matches(word)))
        paths = [
            path
            for match in matches
            for path in (_below(match) if os.path.isdir(match) else [match])
        ]
        if not paths:
            raise UserError(f"{word}: no file has a name like this; check the pattern")
    else:
        paths = [word]  # if it does not exist, the result of the video has the reason
    yield from (Source(path, path) for path in paths)


def _is_address(word: str) -> bool:
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", word)) and not os.path.lexists(word)


def _matches(pattern: str) -> Iterator[pathlib.Path]:
    """The files and folders that match, without hidden ones; `**` follows no links.

    Raises:
      UserError: the pattern has `**` within a name.
    """
    parts = pathlib.Path(pattern).parts
    fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    base = pathlib.Path(*parts[:fixed])
    try:
        for path in base.glob(str(pathlib.Path(*parts[fixed:]))):
            if not any(part.startswith(".") for part in path.relative_to(base).parts):
                yield path
    except ValueError as error:
        raise UserError(f"{pattern}: {error}; e.g. clips/**/*.mp4") from error


def _below(folder: str) -> Iterator[str]:
    """The videos below a folder, sorted, without hidden ones.

    Links to folders are not followed, because they may lead in a circle.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = pathlib.PurePath(name).suffix.lower()
            if suffix in videos.SUFFIXES and not name.startswith("."):
                yield os.path.join(place, name)


def _stream(address: str, allow_url: bool) -> Source:
    parts = urllib.parse.urlsplit(address)
    name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if not allow_url:
        raise UserError(
            f"{name}: addresses are opened only with --allow_url, which records the first seconds of "
            "the stream; or download the file and give its path"
        )
    if parts.scheme.lower() not in SCHEMES:
        raise UserError(
            f"{name}: the protocol {parts.scheme!r} is not supported; use one of {', '.join(SCHEMES)}"
        )
    return Source(name, address, "rtsp" if parts.scheme.lower() == "rtsp" else "http")


def camera(index: int) -> Source:
    """The camera with this number, from 0.

    Raises:
      UserError: there is none, or cameras of this system are not supported.
    """
    name = f"camera {index}"
    if sys.platform == "darwin":
        return Source(name, str(index), "avfoundation")
    if not sys.platform.startswith("linux"):
        raise UserError(
            "--webcam: only cameras of Linux and macOS are supported; record a file first"
        )
    device = f"/dev/video{index}"
    if not os.path.exists(device):
        present = sorted(glob.glob("/dev/video[0-9]*"))
        has = f"there are {', '.join(present)}" if present else "this machine has no camera"
        raise UserError(f"--webcam={index}: there is no {device}; {has}; give a video file instead")
    return Source(name, device, "v4l2")


def local_file(source: Source, folder: pathlib.Path, seconds: float) -> str:
    """The path of a file with the video; a stream or camera is recorded into `folder` first.

    Raises:
      VideoError: nothing could be recorded.
    """
    if source.live is None:
        return source.address
    path = folder / f"recording{len(list(folder.iterdir()))}.mkv"
    record(source, path, seconds)
    return str(path)


def record(source: Source, path: pathlib.Path, seconds: float) -> None:
    """Writes the first seconds of a stream or camera into a Matroska file.

    It ends earlier where the stream ends, or after `MAX_BYTES` bytes.

    Raises:
      VideoError: the stream cannot be opened, gives no video, or does not answer in time.
    """
    try:
        with (
            av.open(
                source.address,
                "r",
                format=None if source.live == "http" else source.live,
                options=_options(source),
                timeout=(OPEN_TIMEOUT, READ_TIMEOUT),
            ) as live,
            av.open(str(path), "w", format="matroska") as out,
        ):
            if not live.streams.video:
                raise VideoError(f"{source.name}: has no video stream")
            is_camera = source.live not in ("http", "rtsp")
            (_encode if is_camera else _copy)(live, out, seconds)
    except (av.FFmpegError, ValueError, EOFError, IndexError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{source.name}: no video could be recorded ({' '.join(what.split())}); check that it can "
            "be reached and is a video, not a playlist"
        ) from error


def _options(source: Source) -> dict[str, str]:
    match source.live:
        case "http":
            return {"protocol_whitelist": _HTTP, "format_whitelist": videos.allowed_demuxers()}
        case "rtsp":
            return {"protocol_whitelist": _RTSP, "rtsp_transport": "tcp"}
        case _:
            return {"framerate": "30"}


def _copy(live: Any, out: Any, seconds: float) -> None:
    """Copies the packets of the first video stream, from its first keyframe on."""
    stream = live.streams.video[0]
    copied = out.add_stream_from_template(stream, opaque=True)
    latest = time.monotonic() + seconds + MAX_DELAY
    start, size = None, 0
    for packet in live.demux(stream):
        if not packet.size:
            continue
        if packet.dts is None:
            packet.dts = packet.pts
        if start is None and packet.is_keyframe:
            start = packet.dts or 0
        if start is None:
            continue
        size += packet.size
        done = ((packet.dts or start) - start) * packet.time_base >= seconds
        if done or size > MAX_BYTES or time.monotonic() > latest:
            break
        packet.pts = None if packet.pts is None else packet.pts - start
        packet.dts = None if packet.dts is None else packet.dts - start
        packet.stream = copied
        out.mux(packet)


def _encode(live: Any, out: Any, seconds: float) -> None:
    """Encodes the pictures of a camera, which gives them as they are or as JPEG."""
    stream = live.streams.video[0]
    encoded = out.add_stream("libx264", rate=30, options={"preset": "veryfast"})
    encoded.width, encoded.height = (side // 2 * 2 for side in (stream.width, stream.height))
    encoded.pix_fmt = "yuv420p"
    encoded.codec_context.time_base = stream.time_base
    start = None
    for frame in live.decode(stream):
        start = frame.pts if start is None else start
        if (frame.pts - start) * frame.time_base >= seconds:
            break
        picture = frame.reformat(encoded.width, encoded.height, "yuv420p")
        picture.pts, picture.time_base = frame.pts - start, frame.time_base
        out.mux(encoded.encode(picture))
    out.mux(encoded.encode())
