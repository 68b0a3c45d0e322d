"""Decoding, compared with a full decode of the same file; real videos; invalid and damaged files."""

import contextlib
import functools
import io
import os
import signal
import struct
import wave

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coco_jax.data import video as videos
from tests.helpers import hostile

FPS, FRAMES = 10, 40


def ladder(frames=FRAMES, height=32, width=48):
    """Grey frames; each is five levels lighter than the previous one."""
    grey = (np.arange(frames) * 5 + 20).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (frames, height, width, 3)).copy()


VIDEO = videos.encode(ladder(), FPS)  # GOPs of 12


def with_container(container, codec):
    return videos.encode(ladder(), FPS, container=container, codec=codec)


def rungs(frames_THWC):
    return np.rint((frames_THWC.mean((1, 2, 3)) - 20) / 5).astype(int).tolist()


def test_decoding_all_frames_gives_them_in_order():
    frames = videos.decode(VIDEO, None)
    assert frames.shape == (FRAMES, 32, 48, 3) and frames.dtype == np.uint8
    assert rungs(frames) == list(range(FRAMES))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 600).map(lambda n: n / 100 + 0.004), min_size=1, max_size=6))
def test_decoding_at_times_gives_the_frames_shown_then(times):
    """Times in any order, in several groups of pictures, past the end."""
    want = [min(int(np.floor(t * FPS)), FRAMES - 1) for t in times]
    assert rungs(videos.decode(VIDEO, np.array(times))) == want


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "libx264")]
)
def test_other_containers_give_the_same_frames(container, codec):
    video = with_container(container, codec)
    info = videos.probe(video)
    assert info.frames == FRAMES and info.duration == pytest.approx(4, abs=0.15)
    frames = videos.decode(video, np.array([0.05, 3.15, 1.25]))
    np.testing.assert_array_equal(frames, videos.decode(video, None)[[0, 31, 12]])
    assert rungs(frames) == pytest.approx([0, 31, 12], abs=1)  # MPEG-4 changes grey levels a little


def test_decoding_starts_at_a_keyframe_and_stops_at_the_last_requested_frame(monkeypatch):
    decoded, original = [], videos._decoded

    def counted(*args):
        for index, frame in original(*args):
            decoded.append(index)
            yield index, frame

    monkeypatch.setattr(videos, "_decoded", counted)
    with av.open(io.BytesIO(VIDEO)) as container:
        shown = sorted((p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size)
    group = max(i for i, (_, is_key) in enumerate(shown) if is_key and i <= 26)
    assert 20 < group < 26  # the keyframe is neither the first frame nor the requested one
    videos.decode(VIDEO, np.array([2.65]))
    assert decoded == list(range(group, 27))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_to_which_no_other_refers_are_left_out(codec, monkeypatch):
    """The wanted frames are still those of a full decode, in every pixel."""
    noise = np.random.default_rng(0).integers(0, 64, (FRAMES, 64, 64, 3), dtype=np.uint8)
    stored = io.BytesIO()
    with av.open(stored, "w", format="mp4") as out:
        params = "scenecut=0:b-adapt=0:bframes=3:keyint=12"  # most frames are B-frames
        options = {"bf": "3", codec.removeprefix("lib") + "-params": params}
        stream = out.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in noise + ladder(height=64, width=64) // 2:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    video = stored.getvalue()
    whole = videos.decode(video, None)
    counts = []
    needed = videos._needed

    def counted(*args):
        frames = list(needed(*args))
        counts.append(len(frames))
        return iter(frames)

    monkeypatch.setattr(videos, "_needed", counted)
    for index in range(FRAMES):
        (frame,) = videos.decode(video, np.array([index / FPS]))
        np.testing.assert_array_equal(frame, whole[index])
    assert len(counts) == FRAMES and max(counts) < 0.7 * FRAMES


def test_frames_of_real_clips_equal_those_of_a_full_decode(clips):
    for path in sorted(clips.iterdir()):
        info = videos.probe(path)
        assert info.duration > 1 and 5 < info.fps < 31
        all_frames = videos.decode(path, None, short_side=48)
        assert len(all_frames) == info.frames
        times = videos.sample_times(8, info.duration, "uniform")
        for time, frame in zip(times, videos.decode(path, times, short_side=48), strict=True):
            same = np.flatnonzero((all_frames == frame).all((1, 2, 3)))
            assert np.abs(same - time * info.fps).min() <= 1, (path.name, time)


def remuxed(video, change):
    """The same packets in a new mp4, after `change(packet, index)`."""
    stored = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(stored, "w", format="mp4") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(p for p in source.demux(video=0) if p.size):
            change(packet, index)
            packet.stream = stream
            out.mux(packet)
    return stored.getvalue()


def test_frames_that_an_edit_list_hides_are_not_counted():
    """`ffmpeg -ss ... -c copy` and phones write such files when they trim a video."""

    def earlier(packet, _):
        packet.pts, packet.dts = packet.pts - 5 * 1024, packet.dts - 5 * 1024

    trimmed = remuxed(VIDEO, earlier)
    with av.open(io.BytesIO(trimmed)) as container:
        shown = [rungs(f.to_ndarray(format="rgb24")[None])[0] for f in container.decode(video=0)]
    assert 0 < len(shown) < FRAMES  # some frames are hidden, not all
    assert videos.probe(trimmed).frames == len(shown)
    assert rungs(videos.decode(trimmed, None)) == shown


def test_variable_frame_rate_uses_the_time_of_each_frame():
    def slower(packet, _):
        packet.pts, packet.dts = (
            packet.pts * 2 if packet.pts > 20 * 1024 else packet.pts,
            packet.dts,
        )

    video = remuxed(VIDEO, slower)
    info = videos.probe(video)
    assert np.diff(info.starts).max() > 1.5 * np.diff(info.starts).min()
    middles = (info.starts[1:] + info.starts[:-1]) / 2
    assert rungs(videos.decode(video, middles)) == list(range(FRAMES - 1))


@pytest.mark.parametrize("turned", [90, 270])
def test_rotated_video_is_turned_upright_and_keeps_its_aspect_ratio(turned, monkeypatch):
    class Turned:
        """A frame with a rotation; PyAV cannot write such files."""

        def __init__(self, frame):
            self.frame, self.rotation = frame, turned

    class Reformatter:
        def __init__(self):
            self.real = VideoReformatter()

        def reformat(self, frame, *args, **options):
            return self.real.reformat(frame.frame, *args, **options)

    monkeypatch.setattr(videos, "VideoReformatter", Reformatter)
    original = videos._decoded
    monkeypatch.setattr(
        videos, "_decoded", lambda *args: ((i, Turned(f)) for i, f in original(*args))
    )
    assert videos.decode(VIDEO, np.zeros(1), short_side=16).shape == (1, 24, 16, 3)
    assert videos.decode(VIDEO, np.zeros(1), size=(10, 20)).shape == (1, 10, 20, 3)


def test_scaling_to_a_short_side_and_to_a_size():
    assert videos.decode(VIDEO, np.zeros(1), short_side=16).shape == (1, 16, 24, 3)
    assert videos.decode(VIDEO, np.zeros(1), size=(20, 20)).shape == (1, 20, 20, 3)


def test_encoding_does_not_depend_on_memory_addresses():
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    moving = np.stack(
        [np.roll(noise[0], shift, 1) // 2 + frame // 4 for shift, frame in enumerate(noise)]
    )
    arrays = []  # kept, so that each iteration gets other addresses
    for size in range(1, 200_000, 20_011):
        arrays.append(np.empty(size, np.uint8))
        assert videos.encode(moving, FPS) == videos.encode(moving.copy(), FPS)


@given(st.integers(1, 32), st.floats(0.1, 20), st.integers(0, 99))
def test_sampled_times_are_in_their_segments_and_in_the_video(count, duration, seed):
    rng = np.random.default_rng(seed)
    segments = np.linspace(0, duration, count + 1)
    for mode in ("uniform", "random"):
        times = videos.sample_times(count, duration, mode, rng=rng)
        assert (segments[:-1] <= times).all() and (times <= segments[1:]).all()
    dense = videos.sample_times(count, duration, "dense", stride_seconds=0.2, rng=rng)
    assert (np.diff(dense) <= 0.2 + 1e-9).all() and dense[0] >= 0 and dense[-1] <= duration
    middles = (segments[1:] + segments[:-1]) / 2
    np.testing.assert_allclose(videos.sample_times(count, duration, "uniform"), middles)


def sound():
    stored = io.BytesIO()
    with wave.open(stored, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16000))
    packed = io.BytesIO()
    with av.open(io.BytesIO(stored.getvalue())) as source, av.open(packed, "w", "matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        for frame in source.decode(audio=0):
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return packed.getvalue()


def picture():
    stored = io.BytesIO()
    with av.open(stored, "w", format="image2pipe") as out:
        stream = out.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(ladder(1, 16, 16)[0], format="rgb24")))
        out.mux(stream.encode())
    return stored.getvalue()


BAD = {
    "empty": (b"", "empty"),
    "noise": (np.random.default_rng(0).bytes(4000), "not a video"),
    "text": (b"just some words\n" * 50, "not a video"),
    "picture": (picture(), "not a video"),
    "sound": (sound(), "no video stream"),
    "one frame": (videos.encode(ladder(1), FPS), "has 1 frame; an action needs motion"),
    "cut mp4": (VIDEO[: len(VIDEO) // 2], "truncated"),
    "cut avi": (with_container("avi", "mpeg4")[:3000], "truncated"),
    "cut mkv": (with_container("matroska", "libx264")[:1500], "truncated"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_video_is_a_one_line_error_with_its_name(kind):
    data, message = BAD[kind]
    with pytest.raises(videos.VideoError, match=message) as caught:
        videos.decode(data, np.zeros(1), name="clips/x.mp4")
    assert str(caught.value).startswith("clips/x.mp4: ") and "\n" not in str(caught.value)


def test_missing_file_or_folder_is_an_error(tmp_path):
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(videos.VideoError, match=r"; name a video file$"):
            videos.probe(path)


@contextlib.contextmanager
def seconds(limit):
    """Raises TimeoutError if the block takes longer, also if it waits for a file."""

    def expire(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_named_pipe_is_refused_without_waiting_for_data(tmp_path):
    """Opening one blocks until another process writes to it."""
    os.mkfifo(tmp_path / "a.mp4")
    with seconds(5), pytest.raises(videos.VideoError, match=r"a\.mp4: not a regular file"):
        videos.decode(tmp_path / "a.mp4", None)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile 'secret.mp4'\n",
    "list.mp4": "ffconcat version 1.0\nfile 'secret.mp4'\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlist_is_refused_and_opens_no_other_file(tmp_path, name):
    """libav itself would open them."""
    (tmp_path / "secret.mp4").write_bytes(VIDEO)
    (tmp_path / name).write_text(PLAYLISTS[name])
    with (tmp_path / name).open("rb") as stream, av.open(stream) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == FRAMES
    with seconds(5), pytest.raises(videos.VideoError, match="not a video") as caught:
        videos.decode(tmp_path / name, None)
    assert "\n" not in str(caught.value)


LONG = 1000  # frames


@functools.cache
def long_video(container, codec):
    frames = np.random.default_rng(0).integers(0, 256, (LONG, 16, 16, 3), dtype=np.uint8)
    return videos.encode(frames, 25, container=container, codec=codec)


def avi_with_wrong_frame_count(more, folder):
    """An AVI file whose header gives `more` frames than the file has."""
    data = bytearray(long_video("avi", "mpeg4"))
    for chunk, field in ((b"avih", 16), (b"strh", 32)):  # dwTotalFrames, dwLength
        at = data.index(chunk) + 8 + field
        assert struct.unpack_from("<I", data, at) == (LONG,)
        struct.pack_into("<I", data, at, LONG + more)
    return bytes(data), LONG


def mp4_without_last_frames(last, folder):
    """An MP4 file with its index at the start, truncated before its `last` last frames."""
    path = folder / "whole.mp4"
    with (
        av.open(io.BytesIO(long_video("mp4", "mpeg4"))) as source,
        av.open(path, "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    whole = path.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    with av.open(path) as container:
        places = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    assert len(places) == LONG
    return whole[: places[-last]], LONG - last


@pytest.mark.parametrize("make", [avi_with_wrong_frame_count, mp4_without_last_frames])
def test_video_with_0_1_percent_of_its_frames_missing_is_accepted_and_with_3_percent_refused(
    make, tmp_path
):
    """The number of frames in the header of real videos is often slightly wrong."""
    video, frames = make(LONG // 1000, tmp_path)
    with av.open(io.BytesIO(video)) as container:
        assert container.streams.video[0].frames > frames  # the header is wrong
    assert videos.probe(video).frames == frames
    assert len(videos.decode(video, np.array([0.1, 20.0, 40.0]))) == 3
    with pytest.raises(videos.VideoError, match=r"x: truncated, it has \d+ of \d+ frames"):
        videos.probe(make(3 * LONG // 100, tmp_path)[0], "x")


def test_frames_and_times_of_an_animated_gif_are_decoded():
    """Pillow writes it; each frame has a single grey value."""
    greys = [20, 90, 160, 230]
    pictures = [Image.new("L", (32, 24), grey) for grey in greys]
    stored = io.BytesIO()
    pictures[0].save(stored, "GIF", save_all=True, append_images=pictures[1:], duration=200, loop=0)
    info = videos.probe(stored.getvalue())
    assert (info.frames, info.height, info.width) == (4, 24, 32)
    assert info.duration == pytest.approx(0.8)
    frames = videos.decode(stored.getvalue(), np.array([0.7, 0.1, 0.3, 0.5]))
    assert frames.mean((1, 2, 3)) == pytest.approx([230, 20, 90, 160], abs=4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_damaged_bytes_give_frames_or_a_video_error(seed):
    rng = np.random.default_rng(seed)
    data = np.frombuffer(VIDEO, np.uint8).copy()
    where = rng.integers(len(data), size=20)
    data[where] = rng.integers(256, size=20)
    with contextlib.suppress(videos.VideoError):
        assert videos.decode(data.tobytes(), np.array([0.0, 2.0])).shape[0] == 2


def test_frames_that_do_not_fit_in_memory_are_an_error(monkeypatch):
    monkeypatch.setattr(videos, "MAX_BYTES", 10_000)
    with pytest.raises(videos.VideoError, match="do not fit in memory"):
        videos.decode(VIDEO, None)


def test_frames_of_many_pixels_are_an_error_before_one_is_decoded():
    """A GIF of 140 bytes with a canvas of 16,000 x 16,000 pixels needed 2 GB."""
    with pytest.raises(videos.VideoError, match="16000 x 16000 px; use at most 36,000,000 pixels"):
        videos.decode(hostile.gif(16_000, 16_000), None)
    with pytest.raises(videos.VideoError, match="256 x 2048000 when they are scaled"):
        videos.decode(hostile.gif(16_000, 2), None, short_side=256)
    assert videos.decode(hostile.gif(16_000, 2), None, short_side=2).shape == (3, 2, 16_000, 3)


def test_frames_that_grow_within_a_stream_are_an_error(monkeypatch):
    """The header, and the first half of the stream, have frames of 32 x 48 pixels."""
    small, large = (
        videos.encode(ladder(20, *size), FPS, container="mpegts") for size in ((32, 48), (96, 96))
    )
    assert len(videos.decode(small + large, None)) == 40
    monkeypatch.setattr(videos, "MAX_PIXELS", 9000)
    with pytest.raises(videos.VideoError, match=r"of its frames cannot be decoded|not a video"):
        videos.decode(small + large, None)
