"""Checks the corpus `starter` by the rules of its page, and prints the report that the page shows.

    python -m tfds_builders.actionhub.check_corpus --annotations=FOLDER

`FOLDER` has the class lists of the benchmarks, which are not part of this project: `LISTS` names them.
Without the flag, every rule but coverage is checked. The exit code is 2 if a text breaks a rule.
"""

import collections
import dataclasses
import itertools
import math
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
# Of the words of two texts (Jaccard similarity, without small words): of one action, of two actions.
MAX_SHARED, MAX_SHARED_ACROSS = 0.5, 0.6
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
        width = max(map(len, [*self.figures, "broken rules"]))
        lines = [f"{name:<{width}}  {value}" for name, value in self.figures.items()]
        return "\n".join(
            [*lines, f"{'broken rules':<{width}}  {len(self.problems)}", *self.problems]
        )


def check(texts: Texts) -> Report:
    """Applies every rule but that of coverage."""
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
    return report


def check_coverage(texts: Texts, benchmark: str, classes: Collection[str], report: Report) -> None:
    """Every class of a benchmark has exactly one action, which no other class of it has.

    Args:
      texts: the corpus.
      benchmark: the benchmark's name, for the report.
      classes: its classes.
      report: the figures and problems are added to it.
    """
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
        if not _PLAIN.fullmatch(action):
            fail(f"not ASCII: {action!a}")
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
    _check_shared([row for _, row in rows], report)


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


def _check_shared(rows: list[Row], report: Report) -> None:
    """No two texts of different actions share too many words."""
    sets = [_content(row.description) for row in rows]
    counts = collections.Counter(word for content in sets for word in content)
    # Two sets that share so much have a word in common among the rarest few of each.
    index: dict[str, list[int]] = collections.defaultdict(list)
    most = 0.0
    for i, content in enumerate(sets):
        rarest = sorted(content, key=lambda word: (counts[word], word))
        prefix = rarest[: len(content) - math.ceil(MAX_SHARED_ACROSS * len(content)) + 1]
        for j in {j for word in prefix for j in index[word]}:
            shared = len(content & sets[j]) / len(content | sets[j])
            if rows[i].action != rows[j].action:
                most = max(most, shared)
                if shared > MAX_SHARED_ACROSS:
                    report.problems.append(
                        f"{rows[i].action}: shares {shared:.0%} of its words with one of "
                        f"{rows[j].action}: {rows[i].description!r}, {rows[j].description!r}"
                    )
        for word in prefix:
            index[word].append(i)
    report.figures["words shared by texts of two actions"] = f"at most {most:.0%}"


def _pairs_that_share(captions: Iterable[str]) -> Iterator[tuple[str, str]]:
    sets = [(_content(text), text) for text in captions]
    for (one, first), (other, second) in itertools.combinations(sets, 2):
        if len(one & other) > MAX_SHARED * len(one | other):
            yield first, second


def _content(text: str) -> set[str]:
    return {word.lower() for word in words(text)} - _SMALL


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
    report = check(starter.load())
    for benchmark, classes in (read_classes(pathlib.Path(folder)) if folder else {}).items():
        check_coverage(starter.load(), benchmark, classes, report)
    print(report.text())
    if report.problems:
        raise UserError(f"{len(report.problems)} broken rules; mend these texts")


def main() -> None:
    """Parses sys.argv and runs the command."""
    define_flags()
    run_command(command, "tfds_builders.actionhub.check_corpus")


if __name__ == "__main__":
    main()
