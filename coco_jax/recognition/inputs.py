"""What users give: lists of actions, and descriptions of actions."""

import collections
import csv
import io
import json
from collections.abc import Sequence

from coco_jax import files
from coco_jax.errors import UserError


def check_actions(actions: Sequence[str]) -> None:
    """Checks candidate names.

    Raises:
      UserError: there are none, one is empty, or two are equal but for upper and lower case.
    """
    if not actions:
        raise UserError(
            'no actions to choose from; give some, e.g. --actions="juggling, rope skipping"'
        )
    if any(not action.strip() for action in actions):
        raise UserError("an action's name is empty; look for a stray comma or empty line")
    counts = collections.Counter(action.strip().casefold() for action in actions)
    repeated = sorted({a for a in actions if counts[a.strip().casefold()] > 1})
    if repeated:
        raise UserError(f"actions are listed twice: {', '.join(repeated[:6])}; name each once")


def read_actions(listed: str | None, file: str | None) -> list[str]:
    """The candidates: from a comma-separated list, or from a file.

    A file has one action a line, or is a CSV file with a column `action`.

    Raises:
      UserError: both or neither are given, the file cannot be read, a name is empty or repeated.
    """
    if (listed is None) == (file is None):
        raise UserError('give the candidates with either --actions="x,y" or --actions_file=FILE')
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
        text = files.read_text(file, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"--actions_file={file}: {error}; give a UTF-8 text file") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    columns = next(csv.reader(lines[:1]), [])
    if "action" in columns:
        rows = csv.DictReader(lines)
        return list(dict.fromkeys((row["action"] or "").strip() for row in rows))
    if file.lower().endswith((".csv", ".tsv")):
        raise UserError(
            f"--actions_file={file}: the table has no column 'action' (it has {', '.join(columns)}); "
            "name the column so, or give a text file with one action a line"
        )
    return lines


def read_descriptions(file: str) -> dict[str, list[str]]:
    """Captions by action: JSON `{action: [caption, ...]}`, or CSV with `action` and `description`.

    Raises:
      UserError: the file is missing or is neither of the two.
    """
    expected = "JSON {action: [caption, ...]} or CSV with the columns action,description"
    captions: dict[str, list[str]] = {}
    try:
        text = files.read_text(file, encoding="utf-8-sig")
        if file.endswith(".csv"):
            for row in csv.DictReader(io.StringIO(text, newline="")):
                captions.setdefault(row["action"], []).append(row["description"])
        else:
            captions = json.loads(text)
    except KeyError as error:
        raise UserError(f"--descriptions={file}: no column {error}; give {expected}") from error
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"--descriptions={file}: {error}; give {expected}") from error
    if not isinstance(captions, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in captions.values()
    ):
        raise UserError(
            f"--descriptions={file}: an action without a list of captions; give {expected}"
        )
    return captions
