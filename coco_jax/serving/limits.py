"""Protects a server: sizes and times of uploads, who may ask, a queue with a bounded length."""

import asyncio
import concurrent.futures
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
OTHER_BODIES = 1 << 20  # bytes of a request that uploads no file
RETRY = {"Retry-After": "10"}
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",  # gradio needs inline scripts; nothing comes from elsewhere
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
        b"'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
        b"frame-ancestors 'none'; object-src 'none'; base-uri 'self'",
    ),
)


class Guard:
    """Checks requests before the application sees them.

    - The size of a body, from its header and while it arrives; and how long it takes to arrive.
    - The names under which the server may be addressed. Without this, a page in the user's browser whose
      domain name resolves to this machine could use the server (DNS rebinding).
    - The origin of requests from browsers: pages of other sites may not send any.
    - Paths of closed endpoints, and bodies that refer to files or addresses.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        size: int,
        seconds: float,
        uploads: Iterable[str],
        hosts: Iterable[str] | None = LOCAL_NAMES,
        is_open: Callable[[str], bool] = lambda path: True,
        check_json: Callable[[Any], str | None] = lambda body: None,
        check_room: Callable[[], str | None] = lambda: None,
        places: int = 64,
    ):
        """Wraps an application.

        Args:
          app: the application.
          size: of an upload in bytes.
          seconds: in which a body has to arrive.
          uploads: the paths to which files may be sent; elsewhere a body has at most `OTHER_BODIES`
            bytes.
          hosts: names under which the server may be addressed; None for all.
          is_open: whether there is something at a path.
          check_json: gives the reason why a JSON body is refused, or None.
          check_room: gives the reason why no upload is accepted now, or None.
          places: number of uploads at the same time.
        """
        self.app, self.size, self.seconds = app, size, seconds
        self.uploads, self.hosts = frozenset(uploads), hosts and frozenset(hosts)
        self.is_open, self.check_json, self.check_room = is_open, check_json, check_room
        self.places, self.uploading = places, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        is_upload = scope["method"] == "POST" and scope["path"] in self.uploads
        self.uploading += is_upload
        try:
            self._check_head(scope)
            limited = self._limited(scope, receive)
            if is_upload and self.uploading > self.places:
                raise HTTPException(503, "too many uploads at once; try again", RETRY)
            if is_upload and (reason := self.check_room()):
                raise HTTPException(503, reason, RETRY)
            if scope["method"] == "POST" and not is_upload:
                limited = await self._checked_body(limited)
            await self.app(scope, limited, send_with_headers)
        except HTTPException as error:
            if not started:
                refusal = JSONResponse({"error": error.detail}, error.status_code, error.headers)
                await refusal(scope, receive, send_with_headers)
        finally:
            self.uploading -= is_upload

    def _check_head(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self.is_open(scope["path"]):
            raise HTTPException(404, "there is nothing here")
        host = headers.get("host", "")
        if self.hosts is not None and host_name(host) not in self.hosts:
            raise HTTPException(421, "this server is not addressed by this name")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise HTTPException(403, "pages of other sites may not use this server")
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise HTTPException(400, "the length of the body is not a number")
        if int(length) > (limit := self._limit(scope)):
            raise HTTPException(413, _too_large(limit))

    def _limit(self, scope: Scope) -> int:
        # A form has some bytes around its file.
        return self.size + (1 << 16) if scope["path"] in self.uploads else OTHER_BODIES

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Receives the body within the limits; raises an `HTTPException` beyond them."""
        left = limit = self._limit(scope)
        deadline, complete = time.monotonic() + self.seconds, False

        async def limited() -> Message:
            nonlocal left, complete
            if complete:  # what comes now is that the client has left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, f"the body took more than {self.seconds:g} s") from None
            complete = not message.get("more_body")
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, _too_large(limit))
            return message

        return limited

    async def _checked_body(self, receive: Receive) -> Receive:
        """Reads a small body, checks it if it is JSON, and gives it to the application."""
        parts: list[bytes] = []
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
        body = b"".join(parts)
        with contextlib.suppress(ValueError):  # not JSON: the application says so
            try:
                reason = self.check_json(json.loads(body))
            except RecursionError:
                reason = "JSON that is nested too deeply"
            if reason:
                raise HTTPException(403, reason)
        given = False

        async def again() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return again


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    return urlsplit(f"//{host}").hostname or ""


def _too_large(limit: int) -> str:
    return f"larger than {limit:,} bytes; send a shorter or smaller video"


class BusyError(Exception):
    """All places of the queue are taken."""


class Queue:
    """Runs one function at a time in a thread, in the order of the calls."""

    def __init__(self, places: int):
        """Takes the number of calls that may run or wait."""
        self.places, self.taken = places, 0
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "answers")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Takes a place.

        Raises:
          BusyError: there is none.
        """
        if self.taken >= self.places:
            raise BusyError
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of `function(*args)`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
