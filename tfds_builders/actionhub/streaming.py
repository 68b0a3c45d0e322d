"""Reads lines, table rows or JSON elements of a file one at a time, in constant memory.

All readers keep track of the line number, so that errors name the file and the line.
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

MAX_LINE = 1 << 20  # maximum bytes of a line, and of an element of a .json file
# A gzip file raises if its content exceeds both: this multiple of its size, and this many bytes.
MAX_RATIO, MAX_BYTES = 200, 8 << 30
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator["Source"]:
    """Opens a file for reading; the context turns errors of decoding and decompression into `UserError`.

    Raises:
      UserError: the file cannot be read, is not UTF-8, or is a damaged gzip file.
    """
    source = Source(path)
    try:
        yield source
    except UnicodeDecodeError:
        source.fail("not UTF-8; convert it, for example with `iconv -f latin1 -t utf-8`")
    except RecursionError:
        source.fail("nested too deeply; use a format of tfds_builders/actionhub/README.md")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        source.fail(f"damaged or truncated gzip file ({error}); download or compress it again")
    except OSError as error:
        source.fail(f"cannot be read ({error.strerror}); check the file and its permissions")
    finally:
        source.close()


class Source:
    """A file that is decompressed while it is read.

    Attributes:
      path: path of the file.
      line: number of the current line, from 1.
    """

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
        """Raises a `UserError` that names the file and the current line."""
        raise UserError(f"{self.path}:{self.line}: {message}") from None

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes; returns b"" at the end."""
        return self._counted(self._open().read(size))

    def lines(self) -> Iterator[str]:
        """Yields decoded lines with their line ends; a byte order mark is removed."""
        file, number = self._open(), 0
        while data := self._counted(file.readline(MAX_LINE + 1)):
            self.line = number = number + 1
            if len(data) > MAX_LINE:
                self.fail("line longer than 1 MiB; write one row per line")
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
                    f"decompresses to more than {MAX_BYTES >> 30} GiB and {ratio:.0f} times its size; "
                    "decompress it yourself if you trust it"
                )
        return data


def table(source: Source, dialect: str) -> Iterator[list[str]]:
    """Yields the rows of a table, first its header; blank rows are left out.

    Args:
      source: the file.
      dialect: "excel" for comma-separated, "excel-tab" for tab-separated values.

    Raises:
      UserError: a row has more or fewer fields than the header, or wrong quotes.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    rows = csv.reader(source.lines(), dialect=dialect, strict=True)
    columns = 0
    while True:
        start = rows.line_num + 1
        try:
            values = next(rows, None)
        except csv.Error as error:
            source.line = start
            source.fail(f'not {dialect} ({error}); correct the quotes: write " inside quotes as ""')
        if values is None:
            return
        source.line = start  # a row may span several lines; errors name the first
        if not values:
            continue
        columns = columns or len(values)
        if len(values) != columns:
            source.fail(
                f"{len(values)} fields, but the header has {columns}; quote fields that "
                f"contain {'commas' if dialect == 'excel' else 'tabs'} or line breaks"
            )
        yield values


class Json:
    """Parses a JSON document one element at a time and updates the line number of the source."""

    def __init__(self, source: Source):
        self._source = source
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._buffer, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not whitespace; "" at the end."""
        while True:
            self._move(_SPACE.match(self._buffer, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._ended:
                return ""
            self._fill(_CHUNK)

    def elements(self) -> Iterator[Any]:
        """Yields the elements of the list at the current position."""
        for _ in self._members("[]"):
            yield self.value()

    def names(self) -> Iterator[str]:
        """Yields the names of the object at the current position.

        The caller must read the value of each name before requesting the next name.
        """
        for _ in self._members("{}"):
            if self.peek() != '"':
                self._source.fail("not JSON (expected a name in double quotes); correct the file")
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
                f"not JSON (expected {' or '.join(wanted)}, found {found}); correct the file"
            )
        self._move(self._at + 1)
        return char

    def value(self) -> Any:
        """Reads one element. A number may be cut off by the end of the buffer; no format uses those."""
        self.peek()
        while True:
            line, problem = self._source.line, "element longer than 1 MiB"
            held = len(self._buffer) - self._at
            try:
                value, end = self._parse(self._buffer, self._at)
                held = end - self._at
            except ValueError as error:
                value, end = None, 0
                at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                line += self._buffer.count("\n", self._at, at)
                what = "not JSON" if self._ended else "no complete element in 1 MiB"
                problem = f"{what} ({reason(error)})"
            if held > MAX_LINE or (self._ended and not end):
                self._source.line = line
                self._source.fail(f"{problem}; correct the file")
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


def parse_yaml(source: Source, limit: int, depth: int) -> Any:
    """Parses a YAML document; all its scalars are strings, and tags are ignored.

    Args:
      source: the file.
      limit: maximum number of its bytes, after decompression.
      depth: maximum nesting of lists and mappings.

    Raises:
      UserError: it is not YAML, larger or nested more deeply, or has aliases, which can stand for more
        text than fits in memory.
    """
    import yaml

    data = bytearray()
    while block := source.read(_CHUNK):
        data += block
        if len(data) > limit:
            source.fail(f"larger than {limit >> 20} MiB; split it into several files")
    text, level = data.decode("utf-8-sig"), 0
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # builds strings, lists and dicts only
    try:
        for event in yaml.parse(text, Loader=loader):
            source.line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                source.fail("aliases (*NAME) are not read; write the text itself")
            level += isinstance(event, yaml.CollectionStartEvent)
            level -= isinstance(event, yaml.CollectionEndEvent)
            if level > depth:
                source.fail(f"nested more than {depth} times; use the format of STDD")
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        source.line = mark.line + 1 if mark else source.line
        problem = getattr(error, "problem", None) or "a character that is not allowed"
        source.fail(f"not YAML ({problem}); correct the file")


def suffix(path: pathlib.Path) -> str:
    """The extension of a file name in lower case, ignoring .gz."""
    name = path.name.lower().removesuffix(".gz")
    return pathlib.PurePath(name).suffix


def stem(path: pathlib.Path) -> str:
    """The file name without its extension and .gz."""
    return pathlib.PurePath(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def kind(value: Any) -> str:
    """The type of a JSON value, for an error message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def reason(error: ValueError) -> str:
    """The reason of a JSON parsing error, for an error message."""
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number with too many digits"


def show(text: str) -> str:
    """Quotes and shortens a text, for an error message."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
