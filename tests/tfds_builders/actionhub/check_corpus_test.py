"""Tests of the rules of the corpus `starter`: its texts keep them, and a planted violation is found."""

import contextlib
import functools
import itertools
import re
import types

import pytest

from coco_jax.data import starter
from coco_jax.errors import UserError
from tests.helpers.runs import ROOT
from tfds_builders.actionhub import check_corpus

ANNOTATIONS = ROOT.parent / "shared" / "annotations"
LUGE = starter.load()["luge"]


@functools.cache
def report():
    return check_corpus.check(starter.load())


def broken(**changes):
    """The problems of a corpus of one action, except that there is only one."""
    texts = {changes.pop("action", "luge"): LUGE._replace(**changes)}
    return check_corpus.check(texts).problems[1:]


def with_caption(text):
    return broken(captions=(*LUGE.captions[:-1], text))


def test_texts_keep_every_rule():
    assert report().problems == []


def test_every_class_of_the_benchmarks_is_covered():
    if not ANNOTATIONS.is_dir():
        pytest.skip(f"no class lists: {ANNOTATIONS} is absent")
    classes = check_corpus.read_classes(ANNOTATIONS)
    assert [len(names) for names in classes.values()] == [400, 600, 700, 101, 51]
    covered = check_corpus.Report()
    for benchmark, names in classes.items():
        check_corpus.check_coverage(starter.load(), benchmark, names, covered)
    assert covered.problems == []
    assert list(covered.figures.values()) == [f"{len(n)} of {len(n)}" for n in classes.values()]


def test_the_page_shows_the_report():
    page = (ROOT / "tfds_builders" / "actionhub" / "README.md").read_text()
    shown = {line.strip() for line in page.splitlines()}
    assert [line for line in report().text().splitlines() if line not in shown] == []


def test_one_action_without_fault_breaks_no_rule():
    assert broken() == []
    assert check_corpus.check({"luge": LUGE}).problems == ["1 actions, not 1211"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("She slides down the ice.", "5 words, not 8 to 25"),
        ("She slides down the ice " * 6, "30 words, not 8 to 25"),
        ("She slides down the ice track with a caf\u00e9 sticker.", "not ASCII"),
        ("Er liegt auf dem Schlitten und rast die Eisbahn hinunter.", "changed by cleaning"),
        ("Her run down the ice track is on www.example.com today.", "changed by cleaning"),
        (LUGE.captions[0].upper(), "share over half of their words"),
        (LUGE.captions[0].upper(), "changed by cleaning"),
    ],
)
def test_a_bad_caption_is_found(text, problem):
    assert any(problem in found for found in with_caption(text)), with_caption(text)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"definition": "Going down ice."}, "3 words, not 15 to 35"),
        ({"definition": "The act of " + LUGE.definition}, "begins with 'The act of'"),
        ({"captions": LUGE.captions[:7]}, "7 captions, fewer than 8"),
        (
            {"captions": tuple(f"Luge run {c}" for c in LUGE.captions)},
            "captions begin with 'luge run'",
        ),
        ({"captions": tuple(f"A luge: {c}" for c in LUGE.captions)}, "captions name the action"),
    ],
)
def test_a_bad_action_is_found(changes, problem):
    assert any(problem in found for found in broken(**changes)), broken(**changes)


def test_a_text_of_another_action_is_found():
    texts = {"luge": LUGE, "sledding": LUGE._replace(captions=LUGE.captions[:-1])}
    problems = check_corpus.check(texts).problems
    assert sum("sledding: a duplicate of another action" in p for p in problems) == len(
        LUGE.captions
    )


def test_a_text_with_the_words_of_another_action_s_is_found():
    texts = dict(itertools.islice(starter.load().items(), 50))
    (one, texts_of_one), (other, texts_of_other) = list(texts.items())[:2]
    taken = "Perhaps: " + texts_of_one.captions[0].upper()
    texts[other] = texts_of_other._replace(captions=(*texts_of_other.captions[1:], taken))
    problems = [p for p in check_corpus.check(texts).problems if "shares" in p]
    assert len(problems) == 1
    assert re.match(rf"{other}: shares 9\d% of its words with one of {one}: ", problems[0])


def test_a_class_without_an_action_of_its_own_is_found():
    found = check_corpus.Report()
    check_corpus.check_coverage({"luge": LUGE}, "Winter", ["luge", "LUGE", "curling"], found)
    assert found.problems == ["Winter: curling: no action", "Winter: luge: the action of 2 classes"]
    assert found.figures == {"classes of Winter covered": "2 of 3"}


@pytest.mark.parametrize(
    ("text", "action", "named"),
    [
        ("He does fifty push-ups in a row.", "push up", True),
        ("Pushups on one hand", "push up", True),
        ("She brushes her long hair", "brushing hair", True),
        ("She brushes her teeth", "brushing hair", False),
        ("Her hair is long", "brushing hair", False),
    ],
)
def test_a_text_that_names_its_action(text, action, named):
    assert check_corpus.names_action(text, action) == named


@pytest.mark.parametrize("problems", [[], ["luge: too fast"]])
def test_command_prints_the_report_and_fails_on_a_broken_rule(monkeypatch, capsys, problems):
    shown = check_corpus.Report({"actions": "1"}, problems)
    monkeypatch.setattr(check_corpus, "check", lambda texts: shown)
    monkeypatch.setattr(check_corpus.flags, "FLAGS", types.SimpleNamespace(annotations=None))
    with pytest.raises(UserError, match="1 broken") if problems else contextlib.nullcontext():
        check_corpus.command([])
    assert capsys.readouterr().out.splitlines() == [
        "actions       1",
        f"broken rules  {len(problems)}",
        *problems,
    ]


def test_error_on_missing_class_lists_names_them(tmp_path):
    with pytest.raises(UserError, match=r"kinetics/label_map_k400\.txt: No such file"):
        check_corpus.read_classes(tmp_path)
