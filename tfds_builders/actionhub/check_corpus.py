"""Checks the corpus `starter` by the rules of its page, and prints the report that the page shows.

    python -m tfds_builders.actionhub.check_corpus --annotations=FOLDER

`FOLDER` has the class lists of the benchmarks, which are not part of this project: `LISTS` names them.
Without the flag, every rule but coverage is checked. The exit code is 2 if a text breaks a rule.
"""

import collections
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from absl import flags

from coco_jax.command import run_command
from coco_jax.data import action_names, starter
from coco_jax.errors import UserError
from tfds_builders.actionhub import cleaning
from tfds_builders.actionhub.readers import Row

ACTIONS = 1211
DEFINITION_WORDS, CAPTION_WORDS = (15, 35), (8, 25)
MIN_CAPTIONS = 8
MAX_SHARED = 0.5  # of the words of two captions of one action
MAX_BEGINNINGS = 3  # captions of one action that begin with the same two words
# Of MMAction2 (tools/data), one class a line.
LISTS = {
    "Kinetics-400": "kinetics/label_map_k400.txt",
    "Kinetics-600": "kinetics/label_map_k600.txt",
    "Kinetics-700": "kinetics/label_map_k700.txt",
    "UCF101": "ucf101/label_map.txt",
    "HMDB51": "hmdb51/label_map.txt",
}

_WORD = re.compile(r"\w+(?:['-]\w+)*")
_SMALL = {
    *("a", "an", "and", "at", "by", "for", "from", "her", "his", "in", "into", "is", "not", "of"),
    *("off", "on", "or", "out", "the", "their", "to", "up", "with"),
}
_PLAIN = re.compile(r"[ -~]+")
_BAD_STARTS = ("the act of", "an act of")

Texts = Mapping[str, starter.StarterAction]


@dataclasses.dataclass
class Report:
    """What was counted, as lines of a table, and a line for each broken rule."""

    figures: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """The table, then the problems."""
        width = max(map(len, self.figures))
        lines = [f"{name:<{width}}  {value}" for name, value in self.figures.items()]
        return "\n".join(
            [*lines, f"{'broken rules':<{width}}  {len(self.problems)}", *self.problems]
        )


def check(texts: Texts, classes: Mapping[str, Collection[str]] | None = None) -> Report:
    """Applies every rule.

    Args:
      texts: the corpus.
      classes: the classes of benchmarks, by the benchmark's name, that the corpus must cover.
    """
    report = Report()
    captions = [caption for action in texts.values() for caption in action.captions]
    definitions = [action.definition for action in texts.values()]
    report.figures["actions, definitions"] = f"{len(texts):,}, {len(definitions):,}"
    if len(texts) != ACTIONS:
        report.problems.append(f"{len(texts)} actions, not {ACTIONS}")
    per_action = [len(action.captions) for action in texts.values()]
    report.figures["captions"] = f"{len(captions):,}; {_range(per_action)} an action"
    report.figures["words of a definition"] = _range([len(words(t)) for t in definitions])
    report.figures["words of a caption"] = _range([len(words(t)) for t in captions])
    report.figures["different words"] = f"{len({w.lower() for t in captions for w in words(t)}):,}"
    _check_each(texts, report)
    _check_all(texts, report)
    for benchmark, names in (classes or {}).items():
        _check_coverage(texts, benchmark, names, report)
    return report


def words(text: str) -> list[str]:
    """The words of a text; "push-up" is one."""
    return _WORD.findall(text)


def names_action(text: str, action: str) -> bool:
    """Whether a text has all words of an action's name, in any form and order."""
    name = {action_names.normal(word) for word in _split(action) if word.lower() not in _SMALL}
    in_text = [action_names.normal(word) for word in (*_split(text), *words(text))]
    return name <= set(in_text) or action_names.normal("".join(words(action))) in in_text


def read_classes(folder: pathlib.Path) -> dict[str, list[str]]:
    """The classes of each benchmark of `LISTS`.

    Raises:
      UserError: a list is not there.
    """
    found = {}
    for benchmark, name in LISTS.items():
        try:
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(
                f"--annotations={folder}: {name}: {error.strerror}; put the lists of MMAction2 there"
            ) from error
        found[benchmark] = [line.strip() for line in lines if line.strip()]
    return found


def _check_each(texts: Texts, report: Report) -> None:
    """The rules for one action at a time."""
    named, worst = 0, 0.0
    for action, (definition, captions) in texts.items():
        fail = lambda problem, action=action: report.problems.append(f"{action}: {problem}")
        if definition.lower().startswith(_BAD_STARTS):
            fail(f"begins with {definition[:10]!r}: {definition}")
        if len(captions) < MIN_CAPTIONS:
            fail(f"{len(captions)} captions, fewer than {MIN_CAPTIONS}")
        limits = [(definition, DEFINITION_WORDS), *((text, CAPTION_WORDS) for text in captions)]
        for text, (least, most) in limits:
            if not least <= len(words(text)) <= most:
                fail(f"{len(words(text))} words, not {least} to {most}: {text}")
            if not _PLAIN.fullmatch(text):
                fail(f"not ASCII: {text!a}")
        count = sum(names_action(text, action) for text in captions)
        named, worst = named + count, max(worst, count / max(1, len(captions)))
        if 2 * count > len(captions):
            fail(f"{count} of {len(captions)} captions name the action, more than half")
        for one, other in _pairs_that_share(captions):
            fail(f"captions share over half of their words: {one!r}, {other!r}")
        beginnings = collections.Counter(" ".join(words(text)[:2]).lower() for text in captions)
        for beginning, count in beginnings.items():
            if count > MAX_BEGINNINGS:
                fail(f"{count} captions begin with {beginning!r}, more than {MAX_BEGINNINGS}")
    total = sum(len(action.captions) for action in texts.values())
    report.figures["captions that name their action"] = (
        f"{named / max(1, total):.0%}; at most {worst:.0%} of an action's"
    )


def _check_all(texts: Texts, report: Report) -> None:
    """The rules of cleaning: English, no address, no duplicate within or across actions."""
    rows = [
        (key, Row(action, text, "starter", ""))
        for key, (action, text) in enumerate(
            (action, text) for action, t in texts.items() for text in (t.definition, *t.captions)
        )
    ]
    within = cleaning.Report()
    _dropped(rows, within, "dropped or changed by cleaning", report)
    duplicates = ("duplicates", "near_duplicates")
    across = cleaning.Report(duplicates)
    whole = [(key, row._replace(action="all")) for key, row in rows]
    _dropped(whole, across, "a duplicate of another action's text", report, dict(rows))
    for step in ("language", *duplicates):
        report.figures[f"cleaning: {step.replace('_', '-')}"] = f"{within.steps[step]['dropped']}"
    count = sum(across.steps[step]["dropped"] for step in duplicates)
    report.figures["duplicates, near-duplicates across actions"] = f"{count}"


def _dropped(
    rows: list[tuple[int, Row]],
    steps: cleaning.Report,
    problem: str,
    report: Report,
    names: Mapping[int, Row] | None = None,
) -> None:
    kept = dict(cleaning.clean(rows, steps))
    for key, row in rows:
        if kept.get(key) != row:
            action = (names or {key: row})[key].action
            report.problems.append(f"{action}: {problem}: {row.description}")


def _check_coverage(texts: Texts, benchmark: str, classes: Collection[str], report: Report) -> None:
    known = action_names.Classes(texts)
    hits = {name: known.hits(name) for name in classes}
    for name, found in hits.items():
        if len(found) != 1:
            report.problems.append(f"{benchmark}: {name}: {found or 'no action'}")
    taken = collections.Counter(found[0] for found in hits.values() if len(found) == 1)
    for action, count in taken.items():
        if count > 1:
            report.problems.append(f"{benchmark}: {action}: the action of {count} classes")
    covered = sum(len(found) == 1 for found in hits.values())
    report.figures[f"classes of {benchmark} covered"] = f"{covered} of {len(hits)}"


def _pairs_that_share(captions: Iterable[str]) -> Iterator[tuple[str, str]]:
    sets = [({word.lower() for word in words(text)} - _SMALL, text) for text in captions]
    for (one, first), (other, second) in itertools.combinations(sets, 2):
        if len(one & other) > MAX_SHARED * len(one | other):
            yield first, second


def _split(text: str) -> list[str]:
    return [part for word in words(text) for part in word.split("-")]


def _range(counts: list[int]) -> str:
    if not counts:
        return "none"
    return f"{min(counts)} to {max(counts)}, {sum(counts) / len(counts):.1f} on average"


def define_flags() -> None:
    """Defines the command-line flags."""
    flags.DEFINE_string(
        "annotations", None, f"Folder with the class lists {', '.join(LISTS.values())}."
    )


def command(argv: list[str]) -> None:
    """Prints the report.

    Raises:
      UserError: a text breaks a rule, or a class list is missing.
    """
    del argv
    folder = flags.FLAGS.annotations
    report = check(starter.load(), read_classes(pathlib.Path(folder)) if folder else None)
    print(report.text())
    if report.problems:
        raise UserError(f"{len(report.problems)} broken rules; mend these texts")


def main() -> None:
    """Parses sys.argv and runs the command."""
    define_flags()
    run_command(command, "tfds_builders.actionhub.check_corpus")


if __name__ == "__main__":
    main()
