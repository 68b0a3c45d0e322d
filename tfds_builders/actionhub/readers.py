"""Reads a corpus of action descriptions from files, one row at a time, never a whole file.

Taken: `*.json`, `*.jsonl`, `*.csv`, `*.tsv`, and `ACTION.txt` with one description a line, each
also gzipped as `*.gz`. README.md shows every form. Pure Python: nothing of TensorFlow is needed.
"""

import codecs
import collections
import csv
import functools
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from coco_jax.errors import UserError

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
ALIASES = {
    "action": ("action", "label", "class"),
    "description": ("description", "caption", "text"),
    "source": ("source",),
    "video_id": ("video_id", "youtube_id", "vid", "id"),
}
MAX_LINE = 1 << 20  # bytes; also of one element of a .json file
MAX_RATIO, MAX_BYTES = 200, 8 << 30  # a gz that passes both is refused
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_BROKEN = "half a surrogate pair"


class Row(NamedTuple):
    """A description, its action, where it came from, and of which video ('' when unknown)."""

    action: str
    description: str
    source: str
    video_id: str


class Tally:
    """Counts rows as they are read; `metadata` is alive, so it may be handed out beforehand."""

    def __init__(self):
        self.actions: collections.Counter[str] = collections.Counter()
        self.skipped: collections.Counter[str] = collections.Counter()
        self._report: dict[str, Any] = {"read": 0, "kept": 0, "skipped": self.skipped}
        self.metadata: dict[str, Any] = {"actions": self.actions, "report": self._report}

    def check(self, row: Row) -> bool:
        """Counts a row; True when it is to be kept."""
        self._report["read"] += 1
        if reason := _flaw(row):
            self.skipped[reason] += 1
            return False
        self._report["kept"] += 1
        self.actions[row.action] += 1
        return True


def files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The directory's corpus files, sorted by name; those whose names start with a dot are not."""
    found = []
    if directory.is_dir():
        found = [p for p in directory.iterdir() if _suffix(p) in FORMATS and p.is_file()]
        found = sorted(p for p in found if not p.name.startswith("."))
    if not found:
        raise UserError(
            f"{directory}: no corpus file found; place {', '.join(f'*{f}' for f in FORMATS)} files "
            "there (each may be gzipped, *.gz) or name another directory with --manual_dir"
        )
    return found


def read(directory: pathlib.Path, tally: Tally | None = None) -> Iterator[tuple[int, Row]]:
    """Yields (key, row) of every row kept in a directory; a key is unique: file, then row."""
    tally = tally or Tally()
    for index, path in enumerate(files(directory)):
        for number, row in enumerate(read_file(path)):
            if tally.check(row):
                yield index << 40 | number, row
    if not tally.actions:
        skipped = ", ".join(f"{reason} {count}" for reason, count in tally.skipped.items())
        raise UserError(
            f"{directory}: no row kept (skipped: {skipped or 'none'}); its files hold no row with "
            "both an action and a description"
        )


def read_file(path: pathlib.Path) -> Iterator[Row]:
    """Yields every row of one file, those with empty fields too.

    Text is stripped of white space at both ends; a row that names no source gets the file's name.
    """
    source = _Source(path)
    try:
        yield from _READERS[_suffix(path)](source)
    except UnicodeDecodeError:
        source.fail("not UTF-8; convert it, as with `iconv -f latin1 -t utf-8`")
    except RecursionError:
        source.fail("nested too deep to be rows; see README.md for the forms taken")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        source.fail(f"not a whole gzip file ({error}); fetch or compress it again")
    except OSError as error:
        source.fail(f"cannot be read ({error.strerror}); check the file and its permissions")
    finally:
        source.close()


class _Source:
    """A file's bytes, unzipped, counted; knows the line it is at, and fails naming it."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.line = 1
        self._zipped = path.suffix.lower() == ".gz"
        self._file: Any = None
        self._bytes = 0

    def close(self) -> None:
        if self._file:
            self._file.close()

    def fail(self, message: str) -> NoReturn:
        """Raises the one-line error."""
        raise UserError(f"{self.path}:{self.line}: {message}") from None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; b'' at the end."""
        return self._counted(self._open().read(size))

    def lines(self) -> Iterator[str]:
        """Decoded lines with their ends, a byte order mark left out."""
        file, number = self._open(), 0
        while data := self._counted(file.readline(MAX_LINE + 1)):
            self.line = number = number + 1
            if len(data) > MAX_LINE:
                self.fail("a line longer than 1 MiB; one row a line is expected, so split it")
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            yield data.decode("utf-8")

    def _open(self) -> Any:
        if not self._file:
            opener: Any = gzip.open if self._zipped else open
            self._file = opener(self.path, "rb")
        return self._file

    def _counted(self, data: bytes) -> bytes:
        self._bytes += len(data)
        if self._zipped and self._bytes > MAX_BYTES:
            ratio = self._bytes / self.path.stat().st_size
            if ratio > MAX_RATIO:
                self.fail(
                    f"a gzip that has grown {ratio:.0f} times, past {MAX_BYTES >> 30} GiB; "
                    "unzip it yourself if it is meant to"
                )
        return data


def _json_rows(source: _Source) -> Iterator[Row]:
    """A list of row objects, or {action: [description or object, ...]}."""
    document = _Json(source)
    top = document.peek()
    if top == "[":
        for value in document.elements():
            yield _object_row(source, value)
    elif top == "{":
        for action in document.names():
            if document.peek() != "[":
                source.fail(
                    f"{_show(action)} holds no list; expected {{action: [description, ...]}}, "
                    "or a list of row objects, or, one row a line, a .jsonl file"
                )
            for value in document.elements():
                yield _described_row(source, action, value)
    else:
        source.fail("not a JSON list or object; see README.md for the forms taken")
    if document.peek():
        source.fail("text after the end of the JSON; a file of one row a line is a .jsonl")


def _jsonl_rows(source: _Source) -> Iterator[Row]:
    for line in source.lines():
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:  # also a number of thousands of digits
            source.fail(f"not JSON ({_reason(error)}); expected one row object a line")
        yield _object_row(source, value)


def _table_rows(source: _Source, dialect: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    table = csv.reader(source.lines(), dialect=dialect, strict=True)
    header: tuple[str, ...] = ()
    while True:
        start = table.line_num + 1
        try:
            values = next(table, None)
        except csv.Error as error:
            source.line = start
            source.fail(f'not {dialect} ({error}); see to its quotes: " within them is written ""')
        if values is None:
            return
        source.line = start  # a row may span lines: errors name the first
        if not values:
            continue
        if not header:
            header = tuple(values)
            _columns(source, header)
            continue
        if len(values) != len(header):
            source.fail(
                f"{len(values)} fields, but the header has {len(header)}; quote a field that "
                f"holds {'commas' if dialect == 'excel' else 'tabs'} or line breaks"
            )
        yield _row(source, dict(zip(header, values, strict=True)))


def _text_rows(source: _Source) -> Iterator[Row]:
    action = _stem(source.path).replace("_", " ").strip()
    for line in source.lines():
        if description := line.strip():
            yield Row(action, description, source.path.name, "")


_READERS: dict[str, Callable[[_Source], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": functools.partial(_table_rows, dialect="excel"),
    ".tsv": functools.partial(_table_rows, dialect="excel-tab"),
    ".txt": _text_rows,
}


class _Json:
    """Walks one JSON document, holding one element at a time; the source's line follows."""

    def __init__(self, source: _Source):
        self._source = source
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._buffer, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no space, '' at the end."""
        while True:
            self._move(_SPACE.match(self._buffer, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._ended:
                return ""
            self._fill(_CHUNK)

    def elements(self) -> Iterator[Any]:
        """The list's elements."""
        for _ in self._members("[]"):
            yield self._value()

    def names(self) -> Iterator[str]:
        """The object's names; the caller takes each one's value before asking for the next."""
        for _ in self._members("{}"):
            if self.peek() != '"':
                self._source.fail("not JSON (a name in double quotes is missing); repair the file")
            name = self._value()
            self._take(":")
            self.peek()
            yield name

    def _members(self, brackets: str) -> Iterator[None]:
        self._take(brackets[0])
        if self.peek() == brackets[1]:
            self._take(brackets[1])
            return
        while True:
            yield
            if self._take("," + brackets[1]) == brackets[1]:
                return

    def _take(self, wanted: str) -> str:
        char = self.peek()
        if not char or char not in wanted:
            found = _show(char) if char else "the end of the file"
            self._source.fail(
                f"not JSON ({' or '.join(wanted)} expected, {found} found); repair the file"
            )
        self._move(self._at + 1)
        return char

    def _value(self) -> Any:
        """One whole element. A number cut by the buffer's end is no matter: none is taken."""
        self.peek()
        while True:
            line, problem = self._source.line, "an element longer than 1 MiB"
            held = len(self._buffer) - self._at
            try:
                value, end = self._parse(self._buffer, self._at)
                held = end - self._at
            except ValueError as error:
                value, end = None, 0
                at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                line += self._buffer.count("\n", self._at, at)
                what = "not JSON" if self._ended else "no whole element in 1 MiB"
                problem = f"{what} ({_reason(error)})"
            if held > MAX_LINE or (self._ended and not end):
                self._source.line = line
                self._source.fail(f"{problem}; repair the file")
            if end:
                self._move(end)
                return value
            self._fill(max(held, _CHUNK))

    def _move(self, to: int) -> None:
        self._source.line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _fill(self, size: int) -> None:
        data = self._source.read(size)
        self._ended = not data
        try:
            text = self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            self._source.line += self._buffer.count("\n", self._at)
            self._source.line += error.object.count(b"\n", 0, error.start)
            raise
        self._buffer, self._at = self._buffer[self._at :] + text, 0


def _object_row(source: _Source, value: Any) -> Row:
    if not isinstance(value, dict):
        source.fail(f"a row object expected, {_kind(value)} found; see README.md for the forms")
    return _row(source, value)


def _described_row(source: _Source, action: str, value: Any) -> Row:
    if isinstance(value, str):
        return Row(action.strip(), value.strip(), source.path.name, "")
    if not isinstance(value, dict):
        source.fail(f"a description or an object expected, {_kind(value)} found under an action")
    if any(str(name).strip().lower() in ALIASES["action"] for name in value):
        source.fail(
            f"under {_show(action)} a row names its own action; put such rows in a top-level list"
        )
    return _row(source, {"action": action, **value})


def _row(source: _Source, values: Mapping[str, Any]) -> Row:
    fields = []
    for name, column in zip(ALIASES, _columns(source, tuple(values)), strict=True):
        value = values[column] if column is not None else None
        if isinstance(value, str):
            fields.append(value.strip())
        elif value is None:
            fields.append("")
        elif name in ("source", "video_id") and type(value) in (int, float):
            fields.append(str(value))
        else:
            source.fail(f"{name} is {_kind(value)}; a text is expected")
    action, description, where, video_id = fields
    return Row(action, description, where or source.path.name, video_id)


def _columns(source: _Source, names: tuple[str, ...]) -> Sequence[str | None]:
    """What the file calls action, description, source and video_id; None where it has none."""
    columns = _match(names)
    missing = [
        name for name in ("action", "description") if columns[list(ALIASES).index(name)] is None
    ]
    if missing:
        wanted = " and ".join(f"{name} (or {', '.join(ALIASES[name][1:])})" for name in missing)
        shown = ", ".join(_show(name) for name in names[:10]) or "none"
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        source.fail(f"no column {wanted}; found {shown}{more}; rename or add it")
    return columns


@functools.lru_cache(maxsize=1024)
def _match(names: tuple[str, ...]) -> tuple[str | None, ...]:
    known = {name.strip().lower(): name for name in reversed(names)}
    return tuple(
        next((known[alias] for alias in aliases if alias in known), None)
        for aliases in ALIASES.values()
    )


def _flaw(row: Row) -> str:
    """Why a row cannot be kept, '' when it can."""
    if not row.action:
        return "no action"
    if not row.description:
        return "no description"
    try:
        "".join(row).encode("utf-8")
    except UnicodeEncodeError:
        return _BROKEN  # "\ud83d" alone in JSON: no UTF-8 can hold it
    return ""


def _suffix(path: pathlib.Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return pathlib.PurePath(name).suffix


def _stem(path: pathlib.Path) -> str:
    return pathlib.PurePath(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "nothing" if value is None else "a number")


def _reason(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number far too long"


def _show(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
