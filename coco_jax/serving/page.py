"""The page for people: drop a video, type actions, edit captions; made with gradio."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from coco_jax.data.video import SUFFIXES
from coco_jax.errors import UserError
from coco_jax.evaluation import html
from coco_jax.evaluation.html import element
from coco_jax.printing import printable
from coco_jax.recognition.ranking import NONE, Ranked
from coco_jax.serving.answers import EXPLAINED, Answer, Embedded
from coco_jax.serving.app import Server, actions_of, is_upload, shown_name
from coco_jax.serving.limits import BusyError

SHOWN = 8  # actions with a bar
KEPT = 1800  # seconds for which a visitor's last video can be scored again
UPLOAD = "/gradio_api/upload"
# The endpoints that the page itself uses. Those that read files or addresses are not among them.
_OPEN = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt|pwa_icon(/\d+)?"
    r"|(static|assets|svelte)/[\w./@-]+"
    r"|gradio_api/(info|app_id|upload|upload_progress|queue/(join|data)|heartbeat/\w+|startup-events"
    r"|theme\.css|reset|cancel))?/?"
)
# Gradio's own style covers the rest.
STYLE = """
.answer { --mark: #0072b2; --other: #9aa4ae; --text: currentColor; }
@media (prefers-color-scheme: dark) { .answer { --mark: #4fb3e8; --other: #6b7681; } }
.answer svg { max-width: 100%; height: auto; font-size: 12px; } .answer svg text { fill: currentColor; }
.answer .mark { fill: var(--mark); } .answer .other { fill: var(--other); }
.answer .frames { display: flex; flex-wrap: wrap; gap: 2px; }
.answer .frames img { height: 5.5rem; margin: 0; }
.answer table, .answer tr, .answer th, .answer td { border: 0 !important; background: none !important; }
.answer th, .answer td { text-align: left; padding: .15rem .75rem .15rem 0; font-weight: 400; }
.answer th, .answer td { vertical-align: top; } .answer li svg { display: inline; }
.answer .number { text-align: right; font-variant-numeric: tabular-nums; }
.answer caption { text-align: left; opacity: .75; } .answer ul { list-style: none; padding: 0; }
.answer li { display: inline-block; margin-right: 1rem; } .answer .wide { overflow-x: auto; }
""" + "\n".join(re.findall(r"\.c\d \{[^}]*\}", html.STYLE))


@dataclasses.dataclass(frozen=True)
class Session:
    """What is kept of a visitor's last answer."""

    video: Embedded
    actions: Sequence[str]
    descriptions: Mapping[str, Sequence[str]]
    answer: Answer


def is_open(path: str) -> bool:
    """Whether the page needs a path."""
    return ".." not in path and _OPEN.fullmatch(path) is not None


def mount(app: Any, server: Server) -> None:
    """Adds the page at `/` to a FastAPI application."""
    import gradio

    uploads = server.folder / "uploads"
    uploads.mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # read at each upload
    gradio.mount_gradio_app(
        app,
        _blocks(server, uploads),
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=server.limits.size,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=STYLE,
    )


def _blocks(server: Server, uploads: pathlib.Path) -> Any:
    import gradio

    async def recognise(path: str | None, text: str, session: Session | None) -> list[Any]:
        """Reads the video, if there is a new one, and compares it with the actions."""
        with _shown_errors(), server.queue.place():
            actions = actions_of(text)
            if not actions:
                raise UserError("type some actions, e.g. juggling, rope skipping")
            if path is None and session is None:
                raise UserError("choose a video first")
            video = session.video if session else None
            if path is not None:
                if not is_upload(path, uploads):
                    raise UserError("the video was not uploaded here; choose it again")
                file = pathlib.Path(path)
                video = await server.read_upload(file, shown_name(file.name))
            assert video is not None
            known = session.descriptions if session else {}
            kept = {name: texts for name, texts in known.items() if name in actions}
            return await show(video, actions, kept)

    async def score_again(session: Session | None, *texts: str) -> list[Any]:
        """Compares the same video with changed captions."""
        with _shown_errors(), server.queue.place():
            if session is None:
                raise UserError("name the actions of a video first")
            given = dict(session.descriptions)
            for name, text in zip(session.answer.captions, texts, strict=False):
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                if lines and lines != list(session.answer.captions[name]):
                    given[name] = lines
            return await show(session.video, session.actions, given)

    async def show(
        video: Embedded, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]]
    ) -> list[Any]:
        answer = await server.compare(video, actions, descriptions or None)
        boxes = [
            gradio.update(
                label=f"Captions of {printable(name)}",
                value="\n".join(captions),
                placeholder="The model has no captions of this action. Write some, one a line.",
                visible=True,
            )
            for name, captions in answer.captions.items()
        ]
        boxes += [gradio.update(visible=False)] * (EXPLAINED - len(boxes))
        session = Session(video, actions, descriptions, answer)
        return [None, session, render(video, answer), gradio.update(visible=True), *boxes]

    about = (
        "# Name the actions in a video\nThe video is deleted after the answer. The scores sum to 1 over "
        "the actions that you give: they say which fits best, not whether any fits."
    )
    minutes = f"at most {server.limits.duration:g} s and {server.limits.size >> 20} MB"
    with gradio.Blocks(
        title="Name the actions in a video", analytics_enabled=False, delete_cache=(60, 600)
    ) as blocks:
        gradio.Markdown(about)
        session = gradio.State(None, time_to_live=KEPT)
        with gradio.Row():
            with gradio.Column(scale=2):
                video: Any = gradio.File(
                    label=f"Video ({minutes})", file_types=sorted(SUFFIXES), type="filepath"
                )
                # The component's own method leaves an empty file at each call.
                video.preprocess = lambda payload: payload and payload.path
                actions = gradio.Textbox(
                    label="Actions, with commas between them",
                    lines=3,
                    placeholder="juggling, rope skipping, arm wrestling",
                )
                ask = gradio.Button("Name the action", variant="primary")
            with gradio.Column(scale=3):
                answer = gradio.HTML("<p>The answer appears here.</p>")
        with gradio.Column(visible=False) as editor:
            gradio.Markdown(
                "## Captions behind the answer\nChange them, one a line, and score again."
            )
            texts = [gradio.Textbox(label="Captions", lines=4) for _ in range(EXPLAINED)]
            again = gradio.Button("Score again")
        outputs = [video, session, answer, editor, *texts]
        private: Any = {"api_visibility": "private", "show_progress": "minimal"}
        ask.click(recognise, [video, actions, session], outputs, **private)
        again.click(score_again, [session, *texts], outputs, **private)
    return blocks.queue(max_size=server.limits.places, api_open=False)


@contextlib.contextmanager
def _shown_errors() -> Iterator[None]:
    """Shows the user's errors on the page."""
    import gradio

    try:
        yield
        return
    except UserError as error:
        message = str(error)
    except BusyError:
        message = "too many videos at once; try again in a minute"
    except TimeoutError:
        message = "the answer takes too long; choose a shorter video"
    # The page shows messages as HTML.
    raise gradio.Error(escape(printable(message)), print_exception=False)


def render(video: Embedded, answer: Answer) -> str:
    """An answer as HTML: frames, bars, the timeline, and the seen actions behind it."""

    def listed(rows: Sequence[Ranked]) -> str:
        return ", ".join(f"{row.action} {row.score:.2f}" for row in rows)

    best = answer.actions[0].action
    parts = [
        element("h2", f"{video.name}: {best}"),
        video.frames,
        html.bars(answer.actions[:SHOWN], best, "Scores of the whole video"),
        element("h3", "When"),
        html.timeline(
            [html.Segment(s.start, s.end, s.action, s.score) for s in answer.segments],
            answer.duration,
            NONE,
        ),
    ]
    if answer.nearest:
        rows: list[list[html.Cell]] = [["this video", listed(answer.nearest_to_video)]]
        rows += [[name, listed(rows_of)] for name, rows_of in answer.nearest.items()]
        parts += [
            element("h3", "Seen actions behind the answer"),
            html.table(
                "The actions of the training data that are nearest to the video, and to the actions by "
                "their texts; cosines",
                ("of", "nearest seen actions"),
                rows,
                sortable=False,
            ),
        ]
    return html.write(element("div", *parts, class_="answer"))
