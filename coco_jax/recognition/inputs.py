"""What users give: lists of actions, and descriptions of actions."""

import collections
import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from coco_jax.data import starter
from coco_jax.errors import UserError
from coco_jax.files import LIST_LIMIT, parse_json, read_text

MAX_ACTIONS = 200_000
MAX_NAME = 1_000  # characters of an action
MAX_CAPTION = 100_000  # characters; a text tower reads the first 100 words or so


def check_actions(actions: Sequence[str]) -> None:
    """Checks candidate names.

    Raises:
      UserError: there are none or more than `MAX_ACTIONS`, one is empty, too long or not text, or two
        are equal but for upper and lower case.
    """
    if len(actions) > MAX_ACTIONS:
        raise UserError(f"{len(actions):,} actions; give at most {MAX_ACTIONS:,}")
    if not actions:
        raise UserError(
            'no actions to choose from; give some, e.g. --actions="juggling, rope skipping"'
        )
    if any(not action.strip() for action in actions):
        raise UserError("an action's name is empty; look for a stray comma or empty line")
    check_texts(actions, MAX_NAME, "an action's name")
    counts = collections.Counter(action.strip().casefold() for action in actions)
    repeated = sorted({a for a in actions if counts[a.strip().casefold()] > 1})
    if repeated:
        raise UserError(f"actions are listed twice: {', '.join(repeated[:6])}; name each once")


def check_texts(texts: Sequence[str], limit: int, what: str) -> None:
    """Raises a `UserError` if a text has more than `limit` characters, or has no UTF-8 encoding."""
    for text in texts:
        if len(text) > limit:
            raise UserError(
                f"{what} has {len(text):,} characters, more than {limit:,}: {text:.60}..."
            )
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise UserError(f"{what} is not UTF-8 text: {text:.60}; write it again")


def read_actions(listed: str | None, file: str | None) -> list[str]:
    """The candidates: from a comma-separated list, or from a file; "all" is the corpus of the package.

    A file has one action a line, or is a CSV file with a column `action`.

    Raises:
      UserError: both or neither are given, the file cannot be read, a name is empty or repeated.
    """
    if (listed is None) == (file is None):
        raise UserError('give the candidates with either --actions="x,y" or --actions_file=FILE')
    if listed is not None and listed.strip() == "all":
        return list(starter.load())
    if file is None:
        actions = (
            [name.strip() for name in (listed or "").split(",")] if (listed or "").strip() else []
        )
    else:
        actions = _read_actions_file(file)
    check_actions(actions)
    return actions


def _read_actions_file(file: str) -> list[str]:
    try:
        text = read_text(file, "utf-8-sig", LIST_LIMIT)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        columns = next(csv.reader(lines[:1]), [])
        if "action" in columns:
            rows = csv.DictReader(lines)
            return list(dict.fromkeys((row["action"] or "").strip() for row in rows))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--actions_file={file}: {_reason(error)}; give a UTF-8 text file"
        ) from error
    if file.lower().endswith((".csv", ".tsv")):
        raise UserError(
            f"--actions_file={file}: the table has no column 'action' (it has "
            f"{', '.join(columns):.200}); name the column so, or give a text file with one action a line"
        )
    return lines


def read_descriptions(file: str) -> dict[str, list[str]]:
    """Captions by action: JSON `{action: [caption, ...]}`, or CSV with `action` and `description`.

    Raises:
      UserError: the file is missing, is neither of the two, or is larger than `LIST_LIMIT`.
    """
    expected = "JSON {action: [caption, ...]} or CSV with the columns action,description"
    captions: dict[str, list[str]] = {}
    try:
        text = read_text(file, "utf-8-sig", LIST_LIMIT)
        if file.endswith(".csv"):
            table = csv.DictReader(io.StringIO(text, newline=""))
            if missing := {"action", "description"} - set(table.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for row in table:
                captions.setdefault(row["action"], []).append(row["description"])
        else:
            captions = parse_json(text)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--descriptions={file}: {_reason(error)}; give {expected}") from error
    if not are_captions(captions):
        raise UserError(
            f"--descriptions={file}: an action without a list of captions; give {expected}"
        )
    for texts in captions.values():
        check_texts(texts, MAX_CAPTION, f"--descriptions={file}: a caption")
    return captions


def are_captions(value: Any) -> bool:
    """Whether a value is `{action: [caption, ...]}`."""
    return isinstance(value, dict) and all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in value.values()
    )


def read_threshold(given: str | None, default: float | None) -> float | None:
    """The number that the flag --threshold, or a field of this name, means.

    Raises:
      UserError: it is no number, or the model has no default.
    """
    if given is None:
        return None
    if given != "default":
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"threshold={given:.40}: neither a number nor 'default'")
        return number
    if default is None:
        raise UserError(
            "threshold=default: nobody has measured one for this model; give a number, chosen on "
            "videos that are not those to be ranked"
        )
    return default


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join(str(reason).split())[:200]
