"""Where videos come from: addresses of local servers, cameras, and what must be refused."""

import contextlib
import http.server
import itertools
import socket
import struct
import threading
import types

import pytest

from coco_jax.data import video as videos
from coco_jax.data.video import VideoError
from coco_jax.errors import UserError
from coco_jax.recognition import sources
from tests.helpers.rankers import ColourRanker, coloured

PARTS = ("red", 3), ("blue", 3)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a few videos, and what must not be followed."""

    secret = ""

    def do_GET(self):
        match self.path.partition("?")[0]:
            case "/a.mp4":
                self.answer(coloured(*PARTS))
            case "/a.ts":
                self.answer(
                    videos.encode(videos.decode(coloured(*PARTS), None), 10, container="mpegts")
                )
            case "/file":
                self.send_response(302)
                self.send_header("Location", f"file://{self.secret}")
                self.end_headers()
            case "/list.m3u8":
                text = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{self.secret}\n#EXT-X-ENDLIST\n"
                self.answer(text.encode())
            case "/slow":
                self.send_response(200)
                self.end_headers()
                self.server.stop.wait(20)
            case _:
                self.send_error(404)

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has enough
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    Handler.secret = str(tmp_path_factory.mktemp("secret") / "a.mp4")
    with open(Handler.secret, "wb") as file:
        file.write(coloured(("green", 2)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stop = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def rtsp_server(listener):
    """Answers one client, and sends an MPEG-TS in RTP packets over the same connection."""
    stream = videos.encode(videos.decode(coloured(*PARTS), None), 10, container="mpegts")
    sdp = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:t\r\n"
    )
    client, _ = listener.accept()
    with client, contextlib.suppress(OSError):
        lines = client.makefile("rb")
        while request := lines.readline().decode():
            method, fields = request.split()[0], {}
            while line := lines.readline().decode().strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            body = sdp if method == "DESCRIBE" else ""
            head = f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\nSession: 1\r\nPublic: PLAY\r\n"
            if method == "DESCRIBE":
                head += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            if method == "SETUP":
                head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            client.sendall(f"{head}\r\n{body}".encode())
            if method == "PLAY":
                for n, start in enumerate(range(0, len(stream), 7 * 188)):
                    rtp = (
                        struct.pack(">BBHII", 0x80, 33, n, n * 3000, 1)
                        + stream[start : start + 7 * 188]
                    )
                    client.sendall(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
                return


def recorded(name, folder, seconds=20.0):
    (source,) = sources.find([name], allow_url=True)
    return sources.local_file(source, folder, seconds)


@pytest.mark.parametrize("file", ["a.mp4", "a.ts"])
def test_http_stream_is_recorded_and_recognised(address, tmp_path, file):
    path = recorded(f"{address}/{file}", tmp_path)
    assert videos.probe(path).duration == pytest.approx(6, abs=0.3)
    found = ColourRanker().timeline(path, ["red", "blue"])
    assert [segment.action for segment in found.segments] == ["red", "blue"]
    assert found.segments[0].end == pytest.approx(3, abs=0.7)


def test_rtsp_stream_is_recorded_and_recognised(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=rtsp_server, args=[listener], daemon=True)
        thread.start()
        path = recorded(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live", tmp_path)
        thread.join(10)
    found = ColourRanker().timeline(path, ["red", "blue"])
    assert [segment.action for segment in found.segments] == ["red", "blue"]


def test_recording_has_a_bounded_duration_and_size(address, tmp_path, monkeypatch):
    path = recorded(f"{address}/a.mp4", tmp_path, seconds=2.0)
    assert videos.probe(path).duration == pytest.approx(2, abs=0.3)
    whole = len(coloured(*PARTS))
    monkeypatch.setattr(sources, "MAX_BYTES", whole // 3)
    assert videos.probe(recorded(f"{address}/a.mp4", tmp_path)).duration < 5


def test_recording_of_a_slow_stream_ends(address, tmp_path, monkeypatch):
    """A packet takes ten seconds; the limit is `seconds` + `MAX_DELAY`."""
    clock = types.SimpleNamespace(monotonic=itertools.count(0, 10).__next__)
    monkeypatch.setattr(sources, "time", clock)
    assert videos.probe(recorded(f"{address}/a.mp4", tmp_path, seconds=20.0)).frames == 8


@pytest.mark.parametrize("page", ["file", "list.m3u8", "missing"])
def test_redirections_to_files_and_playlists_are_refused(address, tmp_path, page):
    with pytest.raises(VideoError, match=rf"/{page}: no video could be recorded") as error:
        recorded(f"{address}/{page}", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("page", ["slow", "silent"])
def test_stream_that_does_not_answer_ends_with_an_error(address, tmp_path, page, monkeypatch):
    monkeypatch.setattr(sources, "OPEN_TIMEOUT", 0.5)
    monkeypatch.setattr(sources, "READ_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never answers
        name = (
            f"{address}/slow"
            if page == "slow"
            else f"http://127.0.0.1:{listener.getsockname()[1]}/"
        )
        with pytest.raises(VideoError, match="no video could be recorded"):
            recorded(name, tmp_path)


def test_password_of_an_address_is_not_shown(tmp_path):
    (source,) = sources.find(["http://me:secret@127.0.0.1:9/a.mp4"], allow_url=True)
    assert source.name == "http://127.0.0.1:9/a.mp4" and "secret" in source.address
    with pytest.raises(VideoError) as error:
        sources.local_file(source, tmp_path, 1.0)
    assert "secret" not in str(error.value)


def test_pictures_of_a_camera_are_encoded(tmp_path, monkeypatch):
    """A generator of FFmpeg takes the place of the camera."""
    monkeypatch.setattr(sources, "_options", lambda source: {})
    camera = sources.Source("camera 0", "testsrc=size=65x48:rate=30", "lavfi")
    path = sources.local_file(camera, tmp_path, 1.5)
    info = videos.probe(path)
    assert info.duration == pytest.approx(1.5, abs=0.1) and (info.width, info.height) == (64, 48)
    frames = videos.decode(path, None)
    assert frames.std((1, 2, 3)).min() > 20 and (frames[0] != frames[-1]).any()


def test_missing_camera_is_an_error():
    with pytest.raises(UserError, match="--webcam=77: there is no /dev/video77"):
        sources.camera(77)
