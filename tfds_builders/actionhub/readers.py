"""Reads a corpus of action descriptions from files, one row at a time.

The files are `*.json`, `*.jsonl`, `*.csv`, `*.tsv`, `*.yml`, and `ACTION.txt` with one description per
line; each may be gzipped (`*.gz`). README.md describes the formats. The files of class descriptions that
others published are recognised by their fields. This module does not need TensorFlow.
"""

import collections
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from coco_jax.errors import UserError
from tfds_builders.actionhub import streaming

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".yml", ".yaml")
ALIASES = {
    "action": ("action", "label", "class"),
    "description": ("description", "caption", "text"),
    "source": ("source",),
    "video_id": ("video_id", "youtube_id", "vid", "id"),
    "kind": ("kind",),
}
KINDS = ("caption", "definition")
_BROKEN = "half a surrogate pair"  # a key of the metadata
MAX_YAML = 8 << 20  # bytes; the parser holds the whole file, about 50 times as much
MAX_DEPTH = 20  # of YAML
# Columns and fields of published files, in lower case.
_EZ_CLIP = {"class name": "action", "gpt3 discription": "description"}
_ER = {"word", "defn"}
_STDD = (
    "xprompt_oo",
    "xprompt_ao",
    "xprompt_aa",
)  # phrases on objects, the action and objects, steps
_STDD_LISTS = ("obj_en_li", "sub_act_en_li")  # names of objects, and of steps
_SENTENCE = re.compile(r".*[.!?][\"')\]]*(?=\s|$)", re.DOTALL)


class Row(NamedTuple):
    """A description of an action.

    Attributes:
      action: name of the action.
      description: the text.
      source: where the description comes from.
      video_id: id of the video that it describes; "" if unknown.
      kind: "definition" if it says what the action is, "caption" if it says what a video shows.
    """

    action: str
    description: str
    source: str
    video_id: str
    kind: str = KINDS[0]


class Tally:
    """Counts the rows that are read and kept.

    Attributes:
      actions: number of stored rows of each action.
      skipped: number of skipped rows for each reason.
      whole: number of rows read that have an action and a description.
      metadata: the counts, as stored in the dataset's metadata. The dict is updated while rows are
        counted, so it may be passed on beforehand.
    """

    def __init__(self):
        self.actions: collections.Counter[str] = collections.Counter()
        self.skipped: collections.Counter[str] = collections.Counter()
        self.whole = 0
        self._report: dict[str, Any] = {"read": 0, "kept": 0, "skipped": self.skipped}
        self.metadata: dict[str, Any] = {"actions": self.actions, "report": self._report}

    def check(self, row: Row) -> bool:
        """Counts a row that was read; returns False if it cannot be stored."""
        self._report["read"] += 1
        if reason := _problem(row):
            self.skipped[reason] += 1
            return False
        self.whole += 1
        return True

    def store(self, row: Row) -> None:
        """Counts a row that is stored."""
        self._report["kept"] += 1
        self.actions[row.action] += 1


def files(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the corpus files of a directory, sorted by name; hidden files are left out.

    Raises:
      UserError: there are none.
    """
    paths = []
    if directory.is_dir():
        paths = [p for p in directory.iterdir() if streaming.suffix(p) in FORMATS and p.is_file()]
        paths = sorted(p for p in paths if not p.name.startswith("."))
    if not paths:
        raise UserError(
            f"{directory}: no corpus file found; put {', '.join(f'*{f}' for f in FORMATS)} files "
            "there (each may be gzipped, *.gz) or give another directory with --manual_dir"
        )
    return paths


def read(directory: pathlib.Path, tally: Tally | None = None) -> Iterator[tuple[int, Row]]:
    """Yields (key, row) of every row kept in a directory; a key is unique: file, then row."""
    tally = tally or Tally()
    for index, path in enumerate(files(directory)):
        for number, row in enumerate(read_file(path)):
            if tally.check(row):
                yield index << 40 | number, row
    if not tally.whole:
        skipped = ", ".join(f"{reason} {count}" for reason, count in tally.skipped.items())
        raise UserError(
            f"{directory}: no row can be used (skipped: {skipped or 'none'}); add rows that have "
            "both an action and a description"
        )


def read_file(path: pathlib.Path, suffix: str = "") -> Iterator[Row]:
    """Yields every row of a file, including rows with empty fields.

    Whitespace at both ends of a text is removed. Rows without a source get the name of the file.

    Args:
      path: the file.
      suffix: of its format, such as ".csv"; by default that of its name.

    Raises:
      UserError: the file cannot be read, or a row has an unknown form.
    """
    with streaming.opened(path) as source:
        yield from _READERS[suffix or streaming.suffix(path)](source)


def _json_rows(source: streaming.Source) -> Iterator[Row]:
    """Reads a list of row objects, or `{action: [description or row object, ...]}`."""
    document = streaming.Json(source)
    top = document.peek()
    if top == "[":
        for value in document.elements():
            yield _object_row(source, value)
    elif top == "{":
        for action in document.names():
            if document.peek() != "[":
                source.fail(
                    f"{streaming.show(action)} is not a list; write {{action: [description, ...]}}, a "
                    "list of row objects, or a .jsonl file with one row per line"
                )
            for value in document.elements():
                yield _described_row(source, action, value)
    else:
        source.fail("not a JSON list or object; use a format of tfds_builders/actionhub/README.md")
    if document.peek():
        source.fail(
            "text after the end of the JSON value; name a file with one row per line *.jsonl"
        )


def _jsonl_rows(source: streaming.Source) -> Iterator[Row]:
    for line in source.lines():
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:  # raised for a number of thousands of digits too
            source.fail(f"not JSON ({streaming.reason(error)}); write one row object per line")
        yield _object_row(source, value)


def _table_rows(source: streaming.Source, dialect: str) -> Iterator[Row]:
    rows = streaming.table(source, dialect)
    header = tuple(next(rows, ()))
    is_ez_clip = set(_EZ_CLIP) <= {name.strip().lower() for name in header}
    if is_ez_clip:
        header = tuple(_EZ_CLIP.get(name.strip().lower(), name) for name in header)
    if header:
        _columns(source, header)
    for values in rows:
        row = _row(source, dict(zip(header, values, strict=True)))
        yield row._replace(description=whole_sentences(row.description)) if is_ez_clip else row


def _text_rows(source: streaming.Source) -> Iterator[Row]:
    action = streaming.stem(source.path).replace("_", " ").strip()
    for line in source.lines():
        if description := line.strip():
            yield Row(action, description, source.path.name, "")


def _yaml_rows(source: streaming.Source) -> Iterator[Row]:
    """Reads `{action: {"label": name, list: [phrase, ...], ...}}`, the files of STDD."""
    classes = streaming.parse_yaml(source, MAX_YAML, MAX_DEPTH)
    if not isinstance(classes, dict):
        source.fail("not a mapping of actions; use a format of tfds_builders/actionhub/README.md")
    for action, fields in classes.items():
        known = [
            name for name in (*_STDD, *_STDD_LISTS) if isinstance(fields, dict) and name in fields
        ]
        if not known:
            source.fail(
                f"{streaming.show(str(action))} has none of the lists "
                f"{', '.join((*_STDD, *_STDD_LISTS))}; use a format of tfds_builders/actionhub/README.md"
            )
        label = fields.get("label") if isinstance(fields.get("label"), str) else action
        for name in known:
            phrases = _phrases(source, str(action), fields[name])
            if name in _STDD_LISTS:  # a list of names is one text
                phrases = [", ".join(phrases)] if phrases else []
            joint = ": " if name in _STDD_LISTS else " "
            for phrase in phrases:
                yield Row(action.strip(), f"{label}{joint}{phrase}", source.path.name, "")


def _phrases(source: streaming.Source, action: str, values: Any) -> list[str]:
    """The texts of a list; an empty field of YAML is "", and "a: b" in a list is {"a": "b"}."""
    if values == "":
        return []
    if not isinstance(values, list):
        source.fail(f"{streaming.show(action)} has {streaming.kind(values)} instead of a list")
    found = []
    for value in values:
        if isinstance(value, dict) and all(isinstance(part, str) for part in value.values()):
            value = ", ".join(f"{name}: {part}" for name, part in value.items())
        if not isinstance(value, str):
            source.fail(f"{streaming.show(action)} has {streaming.kind(value)} in a list of texts")
        found.append(value.strip())
    return [value for value in found if value]


_READERS: dict[str, Callable[[streaming.Source], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": functools.partial(_table_rows, dialect="excel"),
    ".tsv": functools.partial(_table_rows, dialect="excel-tab"),
    ".txt": _text_rows,
    ".yml": _yaml_rows,
    ".yaml": _yaml_rows,
}


def _object_row(source: streaming.Source, value: Any) -> Row:
    if not isinstance(value, dict):
        source.fail(
            f"expected a row object, found {streaming.kind(value)}; use a format of "
            "tfds_builders/actionhub/README.md"
        )
    if {name.lower() for name in value} >= _ER:
        fields = {name.lower(): text for name, text in value.items()}
        value = {"action": fields["word"], "description": fields["defn"], "kind": "definition"}
    return _row(source, value)


def _described_row(source: streaming.Source, action: str, value: Any) -> Row:
    if isinstance(value, str):
        return Row(action.strip(), value.strip(), source.path.name, "")
    if not isinstance(value, dict):
        source.fail(
            f"expected a description or a row object under an action, found {streaming.kind(value)}; "
            "use a format of tfds_builders/actionhub/README.md"
        )
    if any(str(name).strip().lower() in ALIASES["action"] for name in value):
        source.fail(
            f"a row under {streaming.show(action)} has its own action; put such rows into a top-level "
            "list"
        )
    return _row(source, {"action": action, **value})


def _row(source: streaming.Source, values: Mapping[str, Any]) -> Row:
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
            source.fail(f"{name} is {streaming.kind(value)}; write a string")
    action, description, where, video_id, kind = fields
    kind = kind.lower() or KINDS[0]
    if kind not in KINDS:
        source.fail(
            f"kind is {streaming.show(kind)}; write {' or '.join(KINDS)}, or rename the column"
        )
    return Row(action, description, where or source.path.name, video_id, kind)


def _columns(source: streaming.Source, names: tuple[str, ...]) -> Sequence[str | None]:
    """The columns of a file for the fields of a row; None for those it lacks."""
    columns = _match(names)
    missing = [
        name for name in ("action", "description") if columns[list(ALIASES).index(name)] is None
    ]
    if missing:
        wanted = " and ".join(f"{name} (or {', '.join(ALIASES[name][1:])})" for name in missing)
        shown = ", ".join(streaming.show(name) for name in names[:10]) or "none"
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        source.fail(f"no column {wanted}; found {shown}{more}; rename a column or add it")
    return columns


@functools.lru_cache(maxsize=1024)
def _match(names: tuple[str, ...]) -> tuple[str | None, ...]:
    known = {name.strip().lower(): name for name in reversed(names)}
    return tuple(
        next((known[alias] for alias in aliases if alias in known), None)
        for aliases in ALIASES.values()
    )


def whole_sentences(text: str) -> str:
    """A text without its last sentence if that is unfinished; unchanged if it has no other sentence."""
    found = _SENTENCE.match(text)
    return found[0] if found else text


def _problem(row: Row) -> str:
    """Says why a row cannot be stored; "" if it can."""
    if not row.action:
        return "no action"
    if not row.description:
        return "no description"
    try:
        "".join(row).encode("utf-8")
    except UnicodeEncodeError:
        return _BROKEN  # such as "\ud83d" alone in JSON, which has no UTF-8 encoding
    return ""
