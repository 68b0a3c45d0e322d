"""Names the actions in your own videos, and says when they happen.

coco-jax predict a.mp4 --actions="juggling, rope skipping"
coco-jax predict FOLDER "clips/*.mkv" --actions=all --top=3 --jsonl --output=results.jsonl --resume
coco-jax predict long.mp4 --actions="juggling, rope skipping" --timeline

What to read: files, folders (searched for videos), patterns in quotes, --webcam=0, --samples, and with
  --allow_url addresses of streams.
What to look for: --actions, or --actions_file; --actions=all is the corpus of the package, 1,211 names.
Which model: the pretrained one (docs/pretrained.md); with --model, one that was trained or saved; with
  --towers, published towers such as CLIP (docs/towers.md).
What to write: text, --json, --jsonl, or --csv; --top=3 limits the actions of each video. In addition,
  --html=FILE.html or --plot=FILE.png show frames and answers.

Exit codes: 0: all videos were read; 2: the command could not start, or --strict stopped it; 3: some
videos could not be read, and the output gives the reason for each; 130: interrupted.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from absl import flags
from tqdm import tqdm

import coco_jax
from coco_jax import files
from coco_jax.command import SOME_FAILED, run_command, writable_folder
from coco_jax.errors import UserError
from coco_jax.printing import printable
from coco_jax.recognition import model_flags

if TYPE_CHECKING:  # JAX is imported when the flags have been read
    from coco_jax.evaluation.video_page import VideoPage
    from coco_jax.recognition.ranking import Recognition, VideoRanker
    from coco_jax.recognition.sources import Source
    from coco_jax.recognition.timeline import Timeline

MAX_SECONDS = 3600.0  # of the flags that are durations
RENDERED = "motion_zsar"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_multi_string("video", [], "A video file; may be given several times.")
    flags.DEFINE_bool("samples", False, "Also three sample videos, downloaded once (22 MB).")
    flags.DEFINE_integer(
        "webcam", None, "Also some seconds of the camera with this number, from 0."
    )
    flags.DEFINE_bool(
        "allow_url", False, "Addresses (http, https, rtsp) may be given and are opened."
    )
    flags.DEFINE_float("seconds", 10.0, "Of a camera or stream: record at most so many seconds.")
    flags.DEFINE_string(
        "actions", None, 'Candidate actions: "juggling, rope skipping"; or all: the whole corpus.'
    )
    flags.DEFINE_string(
        "actions_file",
        None,
        "File of candidate actions: one per line, or CSV with a column action.",
    )
    flags.DEFINE_string(
        "descriptions",
        None,
        "File of captions: JSON {action: [caption, ...]}, or CSV action,description.",
    )
    model_flags.define_flags()
    flags.DEFINE_integer(
        "windows", 3, "Of the pretrained model: at most so many windows of 2.56 s of each video."
    )
    flags.DEFINE_string(
        "threshold",
        None,
        'Adds the row "none of these", first if all raw scores are below this number; "default" takes '
        "the number that comes with the model.",
    )
    flags.DEFINE_bool("timeline", False, "What happens when, instead of one ranking of each video.")
    flags.DEFINE_float("stride", 1.28, "Of --timeline: seconds from one window to the next.")
    flags.DEFINE_float(
        "action_seconds", 10.0, "Of --timeline: mean duration of an action; longer: fewer segments."
    )
    flags.DEFINE_bool("json", False, "Write one JSON list at the end.")
    flags.DEFINE_bool("jsonl", False, "Write a line of JSON for each video, as soon as it is done.")
    flags.DEFINE_bool("csv", False, "Write a table; safe to open in a spreadsheet.")
    flags.DEFINE_string("output", None, "Write to this new file instead of the terminal.")
    flags.DEFINE_bool(
        "resume", False, "With --jsonl: continue --output; skip the videos that it has."
    )
    flags.DEFINE_integer("top", None, "Write only so many actions of each video.", lower_bound=1)
    flags.DEFINE_alias("topk", "top")
    flags.DEFINE_bool("strict", False, "Stop at the first video that cannot be read (exit code 2).")
    flags.DEFINE_string("plot", None, "Draw frames and the best actions of each video: FILE.png.")
    flags.DEFINE_string(
        "html", None, "Also write a page with frames, and bars or timelines: FILE.html."
    )


def command(argv: list[str]) -> None:
    """Writes the result of each video as soon as it is read."""
    from coco_jax.recognition import outputs
    from coco_jax.recognition.inputs import read_actions, read_descriptions, read_threshold
    from coco_jax.recognition.ranking import NONE, Recognition

    values = flags.FLAGS
    _check_flags(values)
    sources = _sources(values, argv[1:])
    actions = read_actions(values.actions, values.actions_file)
    descriptions = read_descriptions(values.descriptions) if values.descriptions else None
    written: dict[str, bool] = {}
    if values.resume:
        names = actions if values.threshold is None else [*actions, NONE]
        written = outputs.resumed(values.output, values.timeline, names)
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout
        if values.output:
            stream = stack.enter_context(outputs.create(values.output, values.resume))
        recognizer = _load(values)
        threshold = read_threshold(values.threshold, recognizer.default_threshold)
        _print_training_data(recognizer.training_data)
        candidates = recognizer.embed_actions(actions, descriptions)
        recognizer.release_text_encoder()  # videos need much memory
        writer = outputs.writer(_format(values), stream, values.timeline)
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = _results(values, recognizer, candidates, threshold, sources, written, folder)
        failed = sum(not written[source.name] for source in sources if source.name in written)
        drawn: list[tuple[str, Sequence[tuple[str, float]]]] = []
        page = _page() if values.html else None
        for path, result in results:
            if page:
                _add_to_page(page, path, result, values.top)
            if not isinstance(result, Recognition):
                writer.write(result)
                continue
            failed += result.error is not None
            if values.plot and result.error is None:
                drawn.append((path, result.actions))
            writer.write(dataclasses.replace(result, actions=result.actions[: values.top]))
        writer.close()
        if drawn:
            from coco_jax.evaluation import plots

            print(plots.recognised(drawn, pathlib.Path(values.plot)), file=sys.stderr)
        if page:
            files.write_bytes(pathlib.Path(values.html), page.text().encode())
            print(values.html, file=sys.stderr)
    if failed:
        print(f"{failed} of {len(sources)} videos could not be read", file=sys.stderr)
        sys.exit(SOME_FAILED)


def _check_flags(values: flags.FlagValues) -> None:
    """Checks what can be checked before the model is loaded.

    Raises:
      UserError: flags exclude each other, or a value is out of range.
    """
    formats = [name for name in ("json", "jsonl", "csv") if values[name].value]
    if len(formats) > 1:
        raise UserError(f"--{formats[0]} and --{formats[1]} are two formats; give one of them")
    if values.resume and not (values.jsonl and values.output):
        raise UserError("--resume continues a file of JSON lines; add --jsonl and --output=FILE")
    if values.timeline and values.plot:
        raise UserError("--plot shows rankings of whole videos; leave out --plot or --timeline")
    if values.timeline and values.top:
        raise UserError("--top is for rankings; a segment of --timeline has one action")
    for name in ("stride", "action_seconds", "seconds"):
        seconds = getattr(values, name)
        if not 0 < seconds <= MAX_SECONDS:
            raise UserError(f"--{name}={seconds}: give seconds above 0, at most {MAX_SECONDS:g}")
    if values.windows < 1:
        raise UserError(f"--windows={values.windows}: must be at least 1")
    if values.plot:
        _check_plot(pathlib.Path(values.plot))
    if values.html:
        html = pathlib.Path(values.html)
        if html.suffix.lower() not in (".html", ".htm") or html.is_dir():
            raise UserError(f"--html={html}: give a file name that ends in .html")
        writable_folder(html.parent, "--html")


def _format(values: flags.FlagValues) -> str:
    return next((name for name in ("json", "jsonl", "csv") if values[name].value), "text")


def _sources(values: flags.FlagValues, words: Sequence[str]) -> "list[Source]":
    """The videos that flags and words name, each once.

    Raises:
      UserError: there are none, or one of the words gives none.
    """
    from coco_jax.recognition import sources

    found = [
        *sources.files(values.video, values.allow_url),
        *sources.find(words, values.allow_url),
        *([] if values.webcam is None else [sources.camera(values.webcam)]),
    ]
    if not (found or values.samples):
        raise UserError(
            "no videos; name files, folders or patterns, e.g. coco-jax predict a.mp4 "
            '--actions="juggling, rope skipping", or give --samples'
        )
    if values.samples:
        from coco_jax.data import samples

        found += sources.files(map(str, samples.fetch()))
    return list({source.address: source for source in found}.values())


def _results(
    values: flags.FlagValues,
    recognizer: "VideoRanker",
    candidates: Any,
    threshold: float | None,
    found: "Sequence[Source]",
    written: Collection[str],
    folder: pathlib.Path,
) -> "Iterator[tuple[str, Recognition | Timeline]]":
    """The file and the result of each video that is not yet written; shows the progress on a terminal.

    Raises:
      VideoError: with --strict, a video cannot be read.
    """
    from coco_jax.data.video import VideoError
    from coco_jax.recognition import sources
    from coco_jax.recognition.ranking import Recognition

    waiting = [source for source in found if source.name not in written]
    is_terminal = sys.stderr.isatty()
    bar = tqdm(
        waiting,
        unit="video",
        total=len(found),
        initial=len(found) - len(waiting),
        disable=not is_terminal or len(found) == 1,
    )
    for source in bar:
        path = source.address
        result: Recognition | Timeline
        try:
            path = sources.local_file(source, folder, values.seconds)
            if values.timeline:
                with tqdm(unit="window", leave=False, disable=not is_terminal) as windows:
                    result = recognizer.timeline_one(
                        path,
                        candidates,
                        threshold,
                        stride=values.stride,
                        action_seconds=values.action_seconds,
                        progress=functools.partial(_show, windows),
                    )
            else:
                (result,) = recognizer.recognize_each([path], candidates, threshold)
                if result.error is not None:
                    raise VideoError(result.error)
        except VideoError as error:
            reason = str(error).replace(path, source.name)
            if values.strict:
                raise VideoError(reason) from error
            result = Recognition(source.name, (), reason)
        with tqdm.external_write_mode(file=sys.stderr):  # rows and bars are on the same terminal
            yield path, dataclasses.replace(result, video=source.name)
        if path != source.address and not values.plot:  # a recording
            pathlib.Path(path).unlink(missing_ok=True)


def _show(bar: tqdm, done: int, count: int) -> None:
    bar.total = count
    bar.update(done - bar.n)


def _load(values: flags.FlagValues) -> Any:
    """The recogniser that the flags name."""
    recognizer = model_flags.loader(values)()
    if isinstance(recognizer, coco_jax.PretrainedRecognizer) and values["windows"].present:
        recognizer.windows = values.windows
    return recognizer


def _check_plot(path: pathlib.Path) -> None:
    """Checks what can be checked before the videos are read.

    Raises:
      UserError: the file is not named .png, its folder is not writable, or matplotlib is missing.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"--plot={path}: give a file name that ends in .png")
    if not importlib.util.find_spec("matplotlib"):
        raise UserError("--plot needs matplotlib: pip install matplotlib")
    writable_folder(path.parent, "--plot")


def _page() -> "VideoPage":
    from coco_jax.evaluation.video_page import VideoPage

    return VideoPage()


def _add_to_page(
    page: "VideoPage", path: str, result: "Recognition | Timeline", top: int | None
) -> None:
    from coco_jax.evaluation.html import Segment
    from coco_jax.recognition.ranking import NONE, Recognition

    if not isinstance(result, Recognition):
        segments = [Segment(s.start, s.end, s.action, s.score) for s in result.segments]
        page.add(result.video, path, (), segments, result.duration, NONE)
    elif result.error is not None:
        page.add_error(result.video, result.error)
    else:
        page.add(result.video, path, result.actions[:top])


def _print_training_data(name: str) -> None:
    note = f"This model was trained on {name}."
    if name.partition("/")[0] == RENDERED:
        note += " It has seen only rendered shapes: its answers on real videos mean nothing."
    print(printable(note), file=sys.stderr)


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.predict", accepts_words=True)


if __name__ == "__main__":
    main()
