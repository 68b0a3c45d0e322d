"""A running server of coco_jax.serving and a client for it."""

import contextlib
import http.client
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

API = "/api/recognize"


@contextlib.contextmanager
def running(app: Any) -> Iterator[int]:
    """Runs an application with uvicorn in a thread; gives its port."""
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def until(condition: Any, seconds: float = 30) -> None:
    """Waits until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Reply(NamedTuple):
    status: int
    body: Any  # parsed, if it is JSON
    headers: dict[str, str]


def form(
    fields: dict[str, str], file: bytes | None, name: str = "a.mp4", field: str = "video"
) -> tuple[str, bytes]:
    """The content type and the body of a form."""
    boundary, parts = uuid.uuid4().hex, []
    for key, value in fields.items():
        parts.append(f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode())
    if file is not None:
        head = f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        parts.append(
            f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file + b"\r\n"
        )
    marked = [f"--{boundary}\r\n".encode() + part for part in parts]
    body = b"".join(marked) + f"--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 120,
) -> Reply:
    """Sends a request as it is: the path is not normalised."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data: Any = response.read()
    finally:
        connection.close()
    with contextlib.suppress(ValueError):
        data = json.loads(data)
    return Reply(response.status, data, {k.lower(): v for k, v in response.getheaders()})


def ask(
    port: int, file: bytes | None, name: str = "a.mp4", timeout: float = 120, **fields
) -> Reply:
    """Asks the JSON endpoint about a video."""
    kind, body = form(fields, file, name)
    return request(port, "POST", API, body, {"Content-Type": kind}, timeout)
