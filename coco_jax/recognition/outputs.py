"""Writes results as text, JSON, JSON lines or CSV, and reads JSON lines to resume."""

import abc
import csv
import errno
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, TextIO

from coco_jax.errors import UserError
from coco_jax.files import LIST_LIMIT, open_regular
from coco_jax.printing import csv_cell, printable
from coco_jax.recognition.ranking import Recognition
from coco_jax.recognition.timeline import Timeline

Result = Recognition | Timeline


class Writer(abc.ABC):
    """Writes results to a stream."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    @abc.abstractmethod
    def write(self, result: Result) -> None:
        """Writes one result."""

    def close(self) -> None:  # noqa: B027
        """Writes what comes after the last result; the stream stays open."""


class TextWriter(Writer):
    """Text for people: the name of a video, then its actions or segments, one a line."""

    def write(self, result: Result) -> None:
        """Writes one result, and flushes."""
        lines = [printable(result.video)]
        if isinstance(result, Timeline):
            for part in result.segments:
                span = f"{clock(part.start):>9} - {clock(part.end):>9}"
                lines.append(f"  {span}  {part.score:6.1%}  {printable(part.action)}")
        elif result.error is not None:
            lines.append(f"  error: {printable(result.error)}")
        else:
            lines += [f"  {row.score:6.1%}  {printable(row.action)}" for row in result.actions]
        print(*lines, sep="\n", file=self.stream, flush=True)


class JsonWriter(Writer):
    """One JSON list of all results, written at the end."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.rows: list[dict[str, Any]] = []

    def write(self, result: Result) -> None:
        """Keeps one result."""
        self.rows.append(result.as_dict())

    def close(self) -> None:
        """Writes the list."""
        print(json.dumps(self.rows, indent=2), file=self.stream, flush=True)


class JsonLinesWriter(Writer):
    """One JSON object a line."""

    def write(self, result: Result) -> None:
        """Writes one result, and flushes."""
        print(json.dumps(result.as_dict()), file=self.stream, flush=True)


class CsvWriter(Writer):
    """A table with a row for each action or segment of a video; safe to open in a spreadsheet."""

    COLUMNS = ("video", "rank", "action", "score", "error")
    TIMELINE_COLUMNS = ("video", "start", "end", "action", "score", "error")

    def __init__(self, stream: TextIO, timeline: bool):
        super().__init__(stream)
        self.columns = self.TIMELINE_COLUMNS if timeline else self.COLUMNS
        # Spreadsheets in some languages split cells at semicolons; all texts are quoted.
        self.table = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        self.table.writerow(self.columns)

    def write(self, result: Result) -> None:
        """Writes the rows of one result, and flushes."""
        if isinstance(result, Timeline):
            rows = [
                {
                    "start": round(s.start, 3),
                    "end": round(s.end, 3),
                    "action": s.action,
                    "score": s.score,
                }
                for s in result.segments
            ]
        elif result.error is not None:
            rows = [{"error": result.error}]
        else:
            rows = [
                {"rank": rank, "action": row.action, "score": row.score}
                for rank, row in enumerate(result.actions, 1)
            ]
        for row in rows:
            cells = ({"video": result.video} | row).get
            self.table.writerow([_cell(cells(column, "")) for column in self.columns])
        self.stream.flush()


def writer(kind: str, stream: TextIO, timeline: bool) -> Writer:
    """The writer of a format: text, json, jsonl or csv."""
    if kind == "csv":
        return CsvWriter(stream, timeline)
    writers: dict[str, Callable[[TextIO], Writer]] = {
        "text": TextWriter,
        "json": JsonWriter,
        "jsonl": JsonLinesWriter,
    }
    return writers[kind](stream)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return csv_cell(value)
    return round(value, 6) if isinstance(value, float) else value


def clock(seconds: float) -> str:
    """A time as `m:ss.s`, or `h:mm:ss.s` from one hour on."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02}.{tenths % 10}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def create(path: str, resume: bool) -> TextIO:
    """Opens an output file; with `resume` its rows stay, but for a last line that is incomplete.

    Raises:
      UserError: it cannot be written; or it exists, is not empty, and `resume` is false.
    """
    try:
        if resume and os.path.exists(path):
            _drop_incomplete_line(path)
        elif os.path.exists(path) and os.path.getsize(path):
            raise UserError(
                f"--output={path}: this file exists; remove it, choose another, or add --resume"
            )
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", newline="")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"--output={path}: {error.strerror}; choose another file") from error


def _drop_incomplete_line(path: str) -> None:
    """Shortens a file to the end of its last complete line: the command was stopped while it wrote."""
    with open_regular(path):
        pass  # checks that it is a file
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - (1 << 16), 0)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def resumed(path: str, timeline: bool, actions: Collection[str]) -> dict[str, bool]:
    """The videos that an output file has, and whether each was read.

    Args:
      path: of JSON lines; a last line that is incomplete is left out. It need not exist.
      timeline: whether timelines are to be added.
      actions: the candidates, with `NONE` if there is a threshold.

    Raises:
      UserError: the file cannot be read, has another content, or is a result for other candidates.
    """
    known, found = set(actions), {}
    kind, other = ("segments", "actions") if timeline else ("actions", "segments")
    for number, row in _rows(path):
        where = f"--output={path}: line {number}"
        if not isinstance(row, dict) or not isinstance(row.get("video"), str):
            raise UserError(f"{where} is no result of this command; choose another file")
        if other in row:
            raise UserError(
                f"{where} has {other}, not {kind}; choose another file, or change --timeline"
            )
        entries = row.get(kind, [])
        if not isinstance(entries, list) or not known.issuperset(map(_action, entries)):
            raise UserError(
                f"{where} has an action that is not among the candidates; give the same candidates and "
                "--threshold as before, or choose another file"
            )
        found[row["video"]] = kind in row
    return found


def _action(entry: Any) -> str | None:
    """The action of an entry of a row; None if it has none."""
    name = entry.get("action") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None


def _rows(path: str) -> Iterator[tuple[int, Any]]:
    try:
        with open_regular(path) as file:
            lines = iter(lambda: file.readline(LIST_LIMIT), b"")
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n") and len(line) < LIST_LIMIT:
                    return
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    yield number, None
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--output={path}: {error.strerror}; choose another file") from error
