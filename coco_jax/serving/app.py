"""The web application: `/healthz`, the JSON endpoint, and the page (page.py)."""

import asyncio
import collections
import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

from fastapi import FastAPI
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from coco_jax.errors import UserError
from coco_jax.files import parse_json
from coco_jax.printing import printable
from coco_jax.recognition.inputs import are_captions, read_threshold
from coco_jax.recognition.ranking import VideoRanker
from coco_jax.serving.answers import Answer, Answerer, Embedded, Limits
from coco_jax.serving.limits import LOCAL_NAMES, BusyError, Guard, Queue

T = TypeVar("T")
API, HEALTH = "/api/recognize", "/healthz"
MAX_FIELD = 1 << 20  # bytes of a field of the form
RECENT = 16  # videos of the page
MAX_NAME = 80  # characters of a file name in an answer


class Server:
    """A recogniser behind a queue, and a folder for uploads that is removed when the server stops."""

    def __init__(self, recognizer: VideoRanker, limits: Limits):
        self.answerer, self.limits = Answerer(recognizer, limits), limits
        self.queue = Queue(limits.places)
        # Of the page's last uploads; only the thread of the queue changes it.
        self._recent: collections.OrderedDict[pathlib.Path, Embedded] = collections.OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="coco_jax_serve_")
        self.folder = pathlib.Path(self._folder.name)

    def close(self) -> None:
        """Removes the folder."""
        self._folder.cleanup()

    async def health(self, request: Request) -> JSONResponse:
        """Whether the server answers, and how many videos are answered or wait."""
        return JSONResponse({"status": "ok", "videos": self.queue.taken})

    async def recognize(self, request: Request) -> JSONResponse:
        """The JSON endpoint."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(
                415, "send a form (multipart/form-data) with the fields video and actions"
            )
        try:
            form_limits: Any = {"max_files": 1, "max_fields": 8, "max_part_size": MAX_FIELD}
            async with request.form(**form_limits) as form:
                answer = await self._answer(form)
        except BusyError:
            raise HTTPException(
                503, "too many videos at once; try again", {"Retry-After": "10"}
            ) from None
        except UserError as error:
            raise HTTPException(422, printable(str(error))) from None
        except TimeoutError:
            raise HTTPException(
                504, f"no answer in {self.limits.seconds:g} s; try again, or send a shorter video"
            ) from None
        return JSONResponse(answer.as_dict())

    async def _answer(self, form: FormData) -> Answer:
        upload = form.get("video")
        if not isinstance(upload, UploadFile):
            raise UserError("the form has no file in its field video; send one")
        known = {"video", "actions", "descriptions", "threshold"}
        if unknown := sorted(set(form) - known):
            raise UserError(f"unknown field {unknown[0]!r:.80}; fields: {', '.join(sorted(known))}")
        actions = actions_of(_text(form, "actions"))
        descriptions = descriptions_of(_text(form, "descriptions"))
        default = self.answerer.recognizer.default_threshold
        threshold = read_threshold(_text(form, "threshold") or None, default)
        with self.queue.place():
            with self.stored(upload.file) as path:
                video = await self.read(path, shown_name(upload.filename or ""))
            return await self.compare(video, actions, descriptions, threshold)

    async def read(self, path: pathlib.Path, name: str) -> Embedded:
        """The result of `Answerer.embed`, when it is this video's turn.

        Raises:
          TimeoutError: it takes too long.
          UserError: see `Answerer.embed`.
        """
        return await self._in_turn(self.answerer.embed, path, name)

    async def read_upload(self, path: pathlib.Path, name: str) -> Embedded:
        """As `read`, for a file that the page has stored; the file is deleted.

        The page's uploads are named by their content, so equal uploads of two visitors are one file. The
        second visitor gets what the first one's file gave.
        """
        return await self._in_turn(self._embed_upload, path, name)

    def _embed_upload(self, path: pathlib.Path, name: str) -> Embedded:
        try:
            if path not in self._recent:
                if not path.is_file():
                    raise UserError("the video is no longer here; choose it again")
                self._recent[path] = self.answerer.embed(path, name)
            self._recent.move_to_end(path)
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
            return self._recent[path]
        finally:
            path.unlink(missing_ok=True)

    async def compare(
        self,
        video: Embedded,
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None,
        threshold: float | None = None,
    ) -> Answer:
        """The result of `Answerer.answer`, in turn; errors as in `read`."""
        return await self._in_turn(self.answerer.answer, video, actions, descriptions, threshold)

    async def _in_turn(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.wait_for(self.queue.run(function, *args), self.limits.seconds)

    def check_room(self) -> str | None:
        """Why no upload is accepted now; None if there is room."""
        used = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # deleted since: its answer is ready
                used += path.stat().st_size
        return "too many uploads wait for an answer; try again" if used > self.limits.disk else None

    @contextlib.contextmanager
    def stored(self, stream: BinaryIO) -> Iterator[pathlib.Path]:
        """The path of a file with the content of an upload; the file is removed at the end."""
        path = self.folder / secrets.token_hex(16)  # nothing that a client says is part of it
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(stream, file)
            yield path
        finally:
            path.unlink(missing_ok=True)


def make_app(
    recognizer: VideoRanker,
    limits: Limits | None = None,
    hosts: Iterable[str] | None = LOCAL_NAMES,
    with_page: bool = True,
) -> Any:
    """The application, for an ASGI server such as uvicorn.

    Args:
      recognizer: names the actions.
      limits: of uploads, times and the queue.
      hosts: the names under which the server may be addressed; None for any.
      with_page: whether there is a page at `/` beside the JSON endpoint.
    """
    limits = limits or Limits()
    server = Server(recognizer, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    app = FastAPI(
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        exception_handlers={HTTPException: _refuse, Exception: _failed},
    )
    app.add_route(HEALTH, server.health, methods=["GET"])
    app.add_route(API, server.recognize, methods=["POST"])
    uploads, is_open = [API], _is_none
    if with_page:
        from coco_jax.serving import page

        page.mount(app, server)
        uploads, is_open = [API, page.UPLOAD], page.is_open
    return Guard(
        app,
        size=limits.size,
        seconds=limits.seconds,
        uploads=uploads,
        hosts=hosts,
        is_open=lambda path: path in (API, HEALTH) or is_open(path),
        check_json=lambda body: refused(body, server.folder),
        check_room=server.check_room,
        places=limits.places,
    )


def _is_none(path: str) -> bool:
    return False


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """The answer; Starlette then gives the error to the server, which logs it."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500)


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise UserError(f"{name}: a file; send text")
    return value.strip()


def shown_name(name: str) -> str:
    """What an answer calls an uploaded file: the last part of the client's name for it."""
    return printable(name.replace("\\", "/").rpartition("/")[2])[:MAX_NAME] or "video"


def actions_of(text: str) -> list[str]:
    """Actions from a JSON list, or from text with commas or line breaks between them.

    Raises:
      UserError: it is neither.
    """
    if not text.startswith("["):
        return [
            name.strip() for line in text.splitlines() for name in line.split(",") if name.strip()
        ]
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"actions: not JSON ({error})") from error
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError('actions: give a JSON list of texts, or "juggling, rope skipping"')
    return value


def descriptions_of(text: str) -> Mapping[str, list[str]] | None:
    """Captions by action from JSON; None if the text is empty.

    Raises:
      UserError: it is not JSON, or has another form.
    """
    if not text:
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"descriptions: not JSON ({error})") from error
    if not are_captions(value):
        raise UserError("descriptions: give JSON of the form {action: [caption, ...]}")
    return value


def refused(body: Any, folder: pathlib.Path) -> str | None:
    """Why a JSON body is refused: it names a file that is not below the folder of uploads."""
    if isinstance(body, Mapping):
        path = body.get("path")
        if path is not None and not (isinstance(path, str) and is_upload(path, folder)):
            return "a file that was not uploaded here"
        parts: Any = body.values()
    elif isinstance(body, list):
        parts = body
    else:
        return None
    return next((reason for part in parts if (reason := refused(part, folder))), None)


def is_upload(path: str, folder: pathlib.Path) -> bool:
    """Whether a path, with its links resolved, is below the folder."""
    try:
        resolved = pathlib.Path(path).resolve()
    except (OSError, ValueError):  # too long, or a zero byte
        return False
    return resolved != folder.resolve() and resolved.is_relative_to(folder.resolve())
