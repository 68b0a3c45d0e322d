"""The server: answers are those of the recogniser, and everything else is refused."""

import concurrent.futures
import json
import pathlib
import shutil
import socket
import subprocess
import threading
import time

import psutil
import pytest

from coco_jax.data.video import VideoError
from coco_jax.errors import UserError
from coco_jax.serving import app as apps
from coco_jax.serving.answers import Answerer, Limits
from tests.helpers import doc_commands, uploads
from tests.helpers.rankers import ColourRanker, coloured
from tests.helpers.uploads import API, ask, request, running

pytest.importorskip("gradio")
COLOURS = "red, green, blue"


def mixture(number: int) -> bytes:
    """A video whose shares of colours depend on a number from 0 to 9."""
    return coloured(("red", 0.5 + 0.2 * number), ("green", 2.5 - 0.2 * number))


@pytest.fixture(scope="module")
def server():
    """The port of a server with the page, and its folder for uploads."""
    made = []

    class Recorded(apps.Server):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apps, "Server", Recorded)
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        app = apps.make_app(ColourRanker(), Limits(size=1 << 20, duration=10, seconds=60))
        with running(app) as port:
            yield port, made[0].folder
        patch.delenv("GRADIO_TEMP_DIR", raising=False)


@pytest.fixture
def port(server):
    """The port; at the end no upload may be left."""
    yield server[0]
    assert files_in(server[1]) == []


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def small(**limits):
    """A server without the page."""
    made = {"size": 1 << 20, "duration": 10, "seconds": 60} | limits
    return running(apps.make_app(ColourRanker(), Limits(**made), with_page=False))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_command_of_the_documentation_is_answered(port, tmp_path):
    (text,) = (c.text for c in doc_commands.of_pages() if c.text.startswith("curl "))
    (tmp_path / "a.mp4").write_bytes(mixture(0))
    words = doc_commands.split(text.replace(":7860", f":{port}"))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    actions = [row["action"] for row in json.loads(done.stdout)["actions"]]
    assert sorted(actions) == ["juggling", "rope skipping"]


def test_fifty_uploads_at_once_have_the_answers_of_the_recogniser(port, tmp_path):
    """None is lost, and none has the answer to another."""
    videos = [mixture(number) for number in range(10)]
    want = []
    for number, data in enumerate(videos):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data)
        (ranked,) = ColourRanker().rank([path], COLOURS.split(", "))
        timeline = ColourRanker().timeline(path, COLOURS.split(", "))
        want.append(([row._asdict() for row in ranked], timeline.as_dict()["segments"]))
    assert len({json.dumps(actions) for actions, _ in want}) == 10
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        replies = list(
            pool.map(
                lambda n: ask(port, videos[n % 10], f"clip {n}.mp4", actions=COLOURS), range(50)
            )
        )
    for n, reply in enumerate(replies):
        assert reply.status == 200, reply
        assert reply.body["video"] == f"clip {n}.mp4"
        assert reply.body["actions"] == want[n % 10][0]
        assert reply.body["segments"] == want[n % 10][1]


def test_fields_can_be_lists_in_json_and_a_threshold_adds_a_row(port):
    reply = ask(
        port, mixture(0), actions='["green", "no, not red"]', threshold="0.99",
        descriptions='{"green": ["a green field"]}',
    )  # fmt: skip
    assert reply.body["actions"][0]["action"] == "none of these"
    assert {row["action"] for row in reply.body["actions"]} == {
        "green",
        "no, not red",
        "none of these",
    }
    assert reply.body["captions"]["green"] == ["a green field"]
    assert reply.body["duration"] == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("fields", "file", "status", "said"),
    [
        ({"actions": COLOURS}, b"not a video at all", 422, "a.mp4: not a video"),
        ({"actions": COLOURS}, b"", 422, "empty"),
        ({"actions": COLOURS}, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", 422, "not a video"),
        ({"actions": COLOURS}, None, 422, "no file in its field video"),
        ({"actions": "red,red"}, mixture(0), 422, "listed twice"),
        ({"actions": "[1]"}, mixture(0), 422, "JSON list of texts"),
        ({}, mixture(0), 422, "no actions"),
        ({"actions": "a", "descriptions": '{"a": "b"}'}, mixture(0), 422, "caption"),
        ({"actions": "a", "threshold": "nan"}, mixture(0), 422, "neither a number"),
        ({"actions": "a", "threshold": "default"}, mixture(0), 422, "nobody has measured"),
        ({"actions": "a", "path": "/etc/passwd"}, mixture(0), 422, "unknown field 'path'"),
        ({"actions": "a", "video": "/etc/passwd"}, None, 422, "no file in its field video"),
        ({"actions": COLOURS}, coloured(("red", 11)), 422, "11 s long; send at most 10 s"),
    ],
)  # fmt: skip
def test_form_without_a_video_or_with_unusable_fields_is_refused(port, fields, file, status, said):
    reply = ask(port, file, **fields)
    assert reply.status == status and said in reply.body["error"], reply
    assert "\n" not in reply.body["error"] and "/tmp" not in reply.body["error"]


@pytest.mark.parametrize(
    "name",
    ["../../../../etc/passwd", "/etc/cron.d/job", "..\\..\\boot.ini", ".", "..", "a\x1b[31m"],
)
def test_the_name_of_a_file_is_only_a_name(port, name, tmp_path):
    before = set(pathlib.Path("/etc").iterdir()), sorted(pathlib.Path().iterdir())
    reply = ask(port, mixture(0), name.replace("\x1b", "%1B"), actions=COLOURS)
    assert (
        reply.status == 200 and "/" not in reply.body["video"] and "\\" not in reply.body["video"]
    )
    assert (set(pathlib.Path("/etc").iterdir()), sorted(pathlib.Path().iterdir())) == before
    assert apps.shown_name("x/a\x1b[31m\u202e.mp4") == "a\\x1b[31m\\u202e.mp4"


def test_uploads_that_are_too_large_are_refused_before_they_are_read(port):
    kind, body = uploads.form({"actions": COLOURS}, bytes(2 << 20))
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        head = f"POST {API} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())  # and no body
        assert b" 413 " in client.recv(1000).splitlines()[0]
    # Without a length in the header, what arrives is counted.
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for start in range(0, 3 << 19, 1 << 16):  # the end of the form is missing
            client.sendall(b"10000\r\n" + body[start : start + (1 << 16)] + b"\r\n")
        assert b" 413 " in client.recv(1000).splitlines()[0]
    small_body = json.dumps({"data": "x" * (2 << 20)}).encode()
    reply = request(
        port, "POST", "/gradio_api/queue/join", small_body, {"Content-Type": "application/json"}
    )
    assert reply.status == 413


def test_other_content_types_and_methods_are_refused(port):
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", ""):
        reply = request(port, "POST", API, b"actions=red", {"Content-Type": kind} if kind else {})
        assert reply.status == 415, kind
    assert request(port, "GET", API).status in (404, 405)
    assert request(port, "PUT", API, b"x").status in (404, 405)
    assert request(port, "POST", API, b"x", {"Content-Type": "multipart/form-data"}).status == 400


def test_pages_of_other_sites_and_other_names_of_the_server_are_refused(port):
    """The first is what a browser sends for a page of another site, the second after DNS rebinding."""
    kind, body = uploads.form({"actions": COLOURS}, mixture(0))
    head = {"Content-Type": kind}
    assert request(port, "POST", API, body, head | {"Origin": "https://example.org"}).status == 403
    assert request(port, "POST", API, body, head | {"Host": "example.org"}).status == 421
    assert request(port, "POST", API, body, head | {"Origin": "null"}).status == 403
    own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert request(port, "POST", API, body, head | own).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/file=/etc/passwd",
        "/static/../../../../etc/passwd", "/static/..%2f..%2fetc%2fpasswd", "/assets/%2e%2e/%2e%2e/x",
        "/gradio_api/proxy=http://127.0.0.1:1/x", "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/monitoring",
        "/gradio_api/deep_link", "/gradio_api/component_server", "/docs", "/openapi.json",
        "/gradio_api/call/recognise", "/gradio_api/run/predict", "/custom_component/a/client/b/c",
    ],
)  # fmt: skip
def test_endpoints_that_the_page_does_not_need_are_closed(port, path):
    for method in ("GET", "POST"):
        reply = request(port, method, path, b"{}" if method == "POST" else None)
        assert reply.status == 404 and reply.body == {"error": "there is nothing here"}


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../etc/passwd", "{folder}/../../etc/passwd", "http://127.0.0.1:{port}/x", 3],
)  # fmt: skip
def test_paths_and_addresses_of_a_client_are_not_opened(server, path):
    port, folder = server
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.3)
        if isinstance(path, str):
            path = path.format(folder=folder, port=listener.getsockname()[1])
        file = {
            "path": path,
            "url": path,
            "orig_name": "a.mp4",
            "meta": {"_type": "gradio.FileData"},
        }
        reply = join(port, [file, COLOURS, None])
        assert reply.status == 403 and "not uploaded here" in reply.body["error"]
        with pytest.raises(TimeoutError):
            listener.accept()


def test_path_beside_deeply_nested_json_is_not_opened(port):
    """The parser accepts more nesting than a function that calls itself for each level."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for depth in (100, 300, 600, 900, 5000):
        reply = join(port, [file, COLOURS, None], "[" * depth + "]" * depth)
        assert reply.status == 403, depth


def join(port, data, event="null", function=0, session="a1"):
    """Asks for a call of a function of the page; `event` is JSON."""
    body = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": 1}
    text = f'{{"event_data": {event}, {json.dumps(body)[1:]}'
    kind = {"Content-Type": "application/json"}
    return request(port, "POST", "/gradio_api/queue/join", text.encode(), kind)


def result_of(port, session="a1"):
    """What the page gets for its last request."""
    reply = request(port, "GET", f"/gradio_api/queue/data?session_hash={session}", timeout=60)
    events = [
        json.loads(line[5:])
        for line in reply.body.decode().splitlines()
        if line.startswith("data:")
    ]
    (done,) = (event for event in events if event["msg"] == "process_completed")
    return done


def upload(port, data, name="clip.mp4"):
    kind, body = uploads.form({}, data, name, "files")
    reply = request(port, "POST", "/gradio_api/upload", body, {"Content-Type": kind})
    assert reply.status == 200
    return {"path": reply.body[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def test_the_page_answers_and_scores_again_after_the_file_is_deleted(server):
    """The requests that the page sends; the browser test presses its buttons."""
    port, folder = server
    page = request(port, "GET", "/")
    assert page.status == 200 and b"gradio_config" in page.body
    assert (
        page.headers["x-frame-options"] == "DENY"
        and "default-src 'self'" in page.headers["content-security-policy"]
    )
    file = upload(port, mixture(9))
    assert files_in(folder)
    assert join(port, [file, COLOURS, None]).status == 200
    done = result_of(port)
    assert done["success"], done
    shown = done["output"]["data"][2]
    assert "clip.mp4: red" in json.dumps(shown)
    assert files_in(folder) == []
    assert join(port, [None, "green, blue", None]).status == 200
    again = result_of(port)
    assert again["success"] and "clip.mp4: green" in json.dumps(again["output"]["data"][2])
    assert join(port, [None, "a video of green", "", ""], function=1).status == 200
    assert result_of(port)["success"]


def test_equal_uploads_of_several_visitors_are_all_answered(server):
    """Gradio stores them in one file, which is deleted after the first answer."""
    port, folder = server
    names = [f"s{n}" for n in range(6)]
    files = [upload(port, mixture(9 * (n % 2)), "same.mp4") for n in range(6)]
    assert len({file["path"] for file in files}) == 2
    for name, file in zip(names, files, strict=True):
        assert join(port, [file, "red, green", None], session=name).status == 200
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for n, done in enumerate(pool.map(lambda name: result_of(port, name), names)):
            assert done["success"], done
            assert f"same.mp4: {'red' if n % 2 else 'green'}" in json.dumps(done["output"])
    assert files_in(folder) == []


def test_the_page_says_what_is_wrong_as_text(server):
    port, folder = server
    file = upload(port, b"nothing", "<img src=x>.mp4")
    assert join(port, [file, "<b>red</b>", None], session="b2").status == 200
    done = result_of(port, "b2")
    assert not done["success"] and "not a video" in json.dumps(done)
    assert "<img" not in json.dumps(done) and files_in(folder) == []


def test_slow_uploads_end_with_an_error(tmp_path):
    with small(seconds=1) as port, socket.create_connection(("127.0.0.1", port), 20) as client:
        head = f"POST {API} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        client.sendall(
            f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
        )
        began = time.monotonic()
        reply = client.recv(1000)
        assert b" 408 " in reply.splitlines()[0] and 0.5 < time.monotonic() - began < 5
        assert request(port, "GET", "/healthz").body == {"status": "ok", "videos": 0}


def test_answers_that_take_too_long_and_full_queues_are_refused(monkeypatch):
    embed = ColourRanker.embed_clips

    def slow(self, clips):
        time.sleep(0.4)
        return embed(self, clips)

    monkeypatch.setattr(ColourRanker, "embed_clips", slow)
    with small(seconds=0.5, places=2) as port:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            found = [pool.submit(ask, port, mixture(0), actions=COLOURS) for _ in range(6)]
            statuses = sorted(reply.result().status for reply in found)
        assert set(statuses) <= {422, 503, 504} and statuses.count(503) >= 3
        uploads.until(lambda: request(port, "GET", "/healthz").body["videos"] == 0)


def test_health_counts_the_videos_while_one_is_embedded(monkeypatch):
    embed, may_end = ColourRanker.embed_clips, threading.Event()

    def stopped(self, clips):
        assert may_end.wait(20)
        return embed(self, clips)

    monkeypatch.setattr(ColourRanker, "embed_clips", stopped)
    with small() as port, concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, port, mixture(1), actions=COLOURS) for _ in range(2)]
        uploads.until(lambda: request(port, "GET", "/healthz").body["videos"] == 2, 10)
        may_end.set()
        assert all(reply.result().status == 200 for reply in waiting)


def test_a_failure_of_the_server_says_nothing_about_its_reason(monkeypatch):
    def fail(self, clips):
        raise RuntimeError("secret /home/me")

    monkeypatch.setattr(ColourRanker, "embed_clips", fail)
    with small() as port:
        reply = ask(port, mixture(0), actions=COLOURS)
        assert reply.status == 500 and reply.body == {
            "error": "the server failed; its log says why"
        }


def test_error_messages_name_the_file_as_the_client_does(tmp_path):
    path = tmp_path / "x1"
    path.write_bytes(mixture(0)[:2000])
    with pytest.raises(VideoError, match=r"^holiday\.mp4: ") as caught:
        Answerer(ColourRanker(), Limits()).embed(path, "holiday.mp4")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("caption", "message"), [("\ud800", "not UTF-8"), ("a" * 100_001, "more than 100,000")]
)
def test_captions_that_a_tokenizer_cannot_read_are_an_error(tmp_path, caption, message):
    path = tmp_path / "a.mp4"
    path.write_bytes(mixture(0))
    answerer = Answerer(ColourRanker(), Limits())
    video = answerer.embed(path, "a.mp4")
    with pytest.raises(UserError, match=f"a caption .*{message}"):
        answerer.answer(video, ["red"], {"red": [caption]})


def test_actions_are_split_at_commas_and_lines():
    assert apps.actions_of("a, b\nc,,\n d ") == ["a", "b", "c", "d"]
    assert apps.actions_of('["a, b"]') == ["a, b"]
    with pytest.raises(UserError, match="not JSON"):
        apps.actions_of("[a")


@pytest.mark.faults
def test_memory_is_flat_over_500_requests():
    """After the first 100, memory may grow by 16 MiB, open files by none."""
    process, video = psutil.Process(), mixture(5)
    with small(size=8 << 20) as port:
        for n in range(500):
            assert ask(port, video, f"{n}.mp4", actions=COLOURS).status == 200
            if n == 100:
                before, files = process.memory_info().rss, process.num_fds()
        assert process.memory_info().rss - before < 16 << 20
        assert process.num_fds() <= files + 2
