"""Gives hostile files to the code of the commands, in this process or in a child under strace.

python -m tests.helpers.hostile_runs CASES.json RUN RESULTS.jsonl
"""

import contextlib
import io
import json
import os
import pathlib
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

import coco_jax
from coco_jax import predict, weights
from coco_jax.data import video as videos
from coco_jax.errors import UserError, reported
from coco_jax.weights import files
from coco_jax.weights.table import family_of
from tests.helpers import hostile

MARK = "/hostile-case/"  # a path that does not exist: its opening marks the next case for strace


class Outcome(NamedTuple):
    """What a command did with a file: exit code (None: a traceback), output, CPU time, memory."""

    code: int | None
    out: str
    err: str
    seconds: float  # of CPU time, with child processes
    megabytes: float  # the largest resident memory of this process, or of a child, so far


def run(case: hostile.Case, recognizer: Any, build: Callable[[str, str], Any] | None) -> Outcome:
    """Runs a command on a file.

    Args:
      case: the file.
      recognizer: for predictions.
      build: builds a dataset from a folder; None: the folder is only read.
    """
    return _outcome(lambda: _use(case, recognizer, build))


def predict_words(recognizer: Any, words: list[str], **values: Any) -> Outcome:
    """Runs the command that ranks videos with words, such as folders and patterns, and flags."""
    return _outcome(lambda: _predict(recognizer, words, video=[], actions="run, hop", **values))


def _outcome(command: Callable[[], None]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    started = _cpu_seconds()
    code: int | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with reported("command"):
                command()
        except SystemExit as ended:
            code = ended.code  # type: ignore[assignment]
        except Exception as error:  # what a user would see as a traceback
            code = None
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    peak = max(resource.getrusage(who).ru_maxrss for who in _PROCESSES) / 1024
    return Outcome(code, out.getvalue(), err.getvalue(), _cpu_seconds() - started, peak)


_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    used = map(resource.getrusage, _PROCESSES)
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _use(case: hostile.Case, recognizer: Any, build: Callable[[str, str], Any] | None) -> None:
    match case.kind:
        case "video":
            _predict(recognizer, video=[case.path], actions="run, hop")
        case "actions":
            _predict(recognizer, actions_file=case.path)
        case "descriptions":
            _predict(recognizer, actions="run, hop", descriptions=case.path)
        case "weights":
            path = files.locate(case.path, "text_tower.weights", files.NAMES)
            tensors = files.read(path)
            with contextlib.suppress(UserError):  # not an error of reading
                family_of(tensors, weights.FAMILIES, case.path)
        case "model":
            coco_jax.load(case.path)
        case "archive":
            from tfds_builders.common import archives

            for member in archives.members(pathlib.Path(case.path)):
                member.read()
        case "features" | "folder":
            dataset = {"features": "video_features", "folder": "video_folder"}[case.kind]
            if build:
                build(dataset, case.path)
            else:
                _read_folder(dataset, pathlib.Path(case.path))


def _predict(recognizer: Any, words: Sequence[str] = (), **values: Any) -> None:
    settings: dict[str, Any] = {
        "model": "RUN", "towers": None, "weights": None, "threshold": None, "samples": False,
        "actions": None, "actions_file": None, "descriptions": None, "json": False, "top": None,
        "plot": None, "timeline": False, "jsonl": False, "csv": False,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".gif"))
        good.write(hostile.gif(32, 24))
        good.flush()
        for name, value in (settings | {"video": [good.name]} | values).items():
            setattr(flags.FLAGS, name, value)
        before = predict.coco_jax.load
        stack.callback(setattr, predict.coco_jax, "load", before)
        predict.coco_jax.load = lambda *_: recognizer  # type: ignore[assignment]
        predict.command(["predict", *words])


def _read_folder(dataset: str, folder: pathlib.Path) -> None:
    """What the builders do before they write."""
    from tfds_builders.common import user_lists
    from tfds_builders.video_features import video_features_dataset_builder as video_features
    from tfds_builders.video_folder import video_folder_dataset_builder as video_folder

    if dataset == "video_features":
        listed = user_lists.given(folder, "videos.csv")
        assert listed is not None
        rows = {row.key: row for row in user_lists.read_videos(listed, "video_id")}
        found = [
            (name, video_features._problem(x, None))
            for name, x in video_features.read(folder, rows)
        ]
        if not found or any(problem for _, problem in found):
            raise UserError("no video has features that can be used")
    else:
        rows, _ = video_folder.find(folder)
        for name in rows:
            videos.probe(folder / name)
    classes = sorted({row.label for row in rows.values()})
    user_lists.class_splits(folder, classes, dataset)


def define_flags() -> None:
    """Defines and parses the flags of the command that ranks videos."""
    predict.define_flags()
    flags.FLAGS(["command"])


def main() -> None:
    """The child process: runs all cases, and writes an outcome for each."""
    import tensorflow_datasets as tfds

    from coco_jax.recognition.recognizer import Recognizer
    from tfds_builders import build as builds

    cases = [hostile.Case(*row) for row in json.loads(pathlib.Path(sys.argv[1]).read_text())]
    define_flags()
    recognizer = Recognizer.load(sys.argv[2])
    tfds.disable_progress_bar()  # as the command does if its output is no terminal

    def build(dataset: str, folder: str) -> None:
        with tempfile.TemporaryDirectory() as data_dir:
            builds.build(dataset, data_dir, folder)

    with open(sys.argv[3], "w") as results:
        for n, case in enumerate(cases):
            with contextlib.suppress(OSError):
                os.open(f"{MARK}{n}", os.O_RDONLY)
            outcome = run(case, recognizer, build)
            results.write(json.dumps(outcome) + "\n")
            results.flush()


def opened(trace: pathlib.Path) -> dict[int, tuple[set[str], set[str]]]:
    """For each case the paths that were opened, and the calls about sockets, from strace's output."""
    found: dict[int, tuple[set[str], set[str]]] = {}
    now: tuple[set[str], set[str]] = (set(), set())
    for line in trace.read_text(encoding="latin-1").splitlines():
        if match := re.search(r'open(?:at2?)?\([^"]*"((?:[^"\\]|\\.)*)"', line):
            path = os.fsdecode(
                match[1].encode("latin-1").decode("unicode_escape").encode("latin-1")
            )
            if path.startswith(MARK):
                now = found.setdefault(int(path.removeprefix(MARK)), (set(), set()))
            now[0].add(path)
        elif re.search(r"\b(socket|connect)\(", line):
            now[1].add(line)
    return found


if __name__ == "__main__":
    main()
