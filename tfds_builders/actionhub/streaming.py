"""Walks a file without holding it: its bytes unzipped and counted, its lines, a table's rows, or the
elements of one JSON document.

All know the line they are at, so that what cannot be read is named by file and line.
"""

import codecs
import contextlib
import csv
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

from coco_jax.errors import UserError

MAX_LINE = 1 << 20  # bytes; also of one element of a .json file
MAX_RATIO, MAX_BYTES = 200, 8 << 30  # a gz that passes both is refused
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator["Source"]:
    """A file to read from.

    Raises:
      UserError: it cannot be read, or what is read is not what it should be.
    """
    source = Source(path)
    try:
        yield source
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


class Source:
    """A file's bytes, unzipped, counted; knows the line it is at, and fails naming it."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.line = 1
        self._zipped = path.suffix.lower() == ".gz"
        self._file: Any = None
        self._bytes = 0

    def close(self) -> None:
        """Closes the file."""
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


def table(source: Source, dialect: str) -> Iterator[list[str]]:
    """A table's rows, its header first, blank ones left out; all are as long as the header."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    rows = csv.reader(source.lines(), dialect=dialect, strict=True)
    columns = 0
    while True:
        start = rows.line_num + 1
        try:
            values = next(rows, None)
        except csv.Error as error:
            source.line = start
            source.fail(f'not {dialect} ({error}); see to its quotes: " within them is written ""')
        if values is None:
            return
        source.line = start  # a row may span lines: errors name the first
        if not values:
            continue
        columns = columns or len(values)
        if len(values) != columns:
            source.fail(
                f"{len(values)} fields, but the header has {columns}; quote a field that "
                f"holds {'commas' if dialect == 'excel' else 'tabs'} or line breaks"
            )
        yield values


class Json:
    """Walks one JSON document, holding one element at a time; the source's line follows."""

    def __init__(self, source: Source):
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
            yield self.value()

    def names(self) -> Iterator[str]:
        """The object's names; the caller takes each one's value before asking for the next."""
        for _ in self._members("{}"):
            if self.peek() != '"':
                self._source.fail("not JSON (a name in double quotes is missing); repair the file")
            name = self.value()
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
            found = show(char) if char else "the end of the file"
            self._source.fail(
                f"not JSON ({' or '.join(wanted)} expected, {found} found); repair the file"
            )
        self._move(self._at + 1)
        return char

    def value(self) -> Any:
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
                problem = f"{what} ({reason(error)})"
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


def suffix(path: pathlib.Path) -> str:
    """The extension in small letters, without .gz."""
    name = path.name.lower().removesuffix(".gz")
    return pathlib.PurePath(name).suffix


def stem(path: pathlib.Path) -> str:
    """The name without extensions."""
    return pathlib.PurePath(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "nothing" if value is None else "a number")


def reason(error: ValueError) -> str:
    """Why a text is not JSON."""
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number far too long"


def show(text: str) -> str:
    """A text for a message: short, in quotes."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
