"""Prints text from outside: names of files, actions and classes, messages of libraries, model cards."""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator

# Control characters can move the cursor and colour text, so that a name looks like a line of the
# program. Format characters can reverse the order of what is shown; half a surrogate pair cannot be
# encoded; line and paragraph separators end a line.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # format characters of Persian and Indic scripts and of emoji


def printable(text: str) -> str:
    r"""The text with control characters, and others that change a terminal, as escapes: `\x1b`, `\n`.

    The result is one line that any UTF-8 terminal shows as it is. Letters of all scripts and emoji stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _ESCAPED and char not in _JOINERS
        else char
        for char in text
    )


def csv_cell(text: str) -> str:
    r"""The text for a cell of a CSV file: `printable`, and not a formula for any spreadsheet.

    Spreadsheets compute cells that begin with `=`, `+`, `-` or `@`, some also after spaces or with these
    characters in full width; an apostrophe in front makes them text.
    """
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(tuple("=+-@＝＋－＠")) else shown


@contextlib.contextmanager
def output_may_close() -> Iterator[None]:
    """Exits with code 1, without a traceback, if the reader of stdout has closed it, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
