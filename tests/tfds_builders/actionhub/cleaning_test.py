"""Tests of the cleaning steps: examples for each step, and properties of all steps together."""

import itertools
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coco_jax.errors import UserError
from tfds_builders.actionhub import cleaning
from tfds_builders.actionhub.readers import Row

GOOD = "A man in a helmet slides down an icy track on a small sled."


def clean(texts, steps=cleaning.STEPS, action="luge"):
    report = cleaning.Report(steps)
    rows = [(i, t if isinstance(t, Row) else Row(action, t, "s", "v")) for i, t in enumerate(texts)]
    kept = sorted(cleaning.clean(rows, report))
    return [row if isinstance(texts[key], Row) else row.description for key, row in kept], report


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("unicode", "She schÃ¶pft water &amp; pours it.", "She schöpft water & pours it."),
        ("unicode", "a “quoted” cafe\u0301 with\x07 a bell", 'a "quoted" café with a bell'),
        ("urls", "See https://example.org/a?b=c, then jump.", "See  , then jump."),
        ("urls", "more at www.example.co.uk/page. Then he jumps.", "more at  . Then he jumps."),
        ("urls", "mail me@example.org or example.com/x now", "mail   or   now"),
        ("urls", "from youtu.be/dQw4w9WgXcQ, a jump", "from  , a jump"),
        ("emoji", "He jumps 🤸🏽‍♂️ and claps 👏", "He jumps   and claps  "),
        ("emoji", "keycap 1️⃣ and heart ❤️!", "keycap   and heart  !"),
        ("spaces", " two\n lines\tand\u00a0more ", "two lines and more"),
    ],
)
def test_step_corrects_a_text_and_counts_it(step, before, after):
    kept, report = clean([GOOD, before], [step])
    assert kept == [GOOD, after]
    assert report.steps == {step: {"in": 2, "changed": 1, "dropped": 0}}


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("urls", "https://example.org/video"),
        ("emoji", "🛷🛷"),
        ("language", "Ein Mann rodelt mit einem Helm die Eisbahn hinunter."),
        ("language", "Un homme en casque descend la piste"),
        ("language", "一个戴头盔的男人从冰道上滑下来"),
        ("language", "Мужчина в шлеме катится по льду"),
        ("length", "luge sled"),
        ("length", "slide " * 201),
        ("length", "a b " + "slide" * 1000),
    ],
)
def test_step_drops_a_text_and_counts_it(step, text):
    kept, report = clean([GOOD, text], [step])
    assert kept == [GOOD]
    assert report.steps == {step: {"in": 2, "changed": 0, "dropped": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "a man ski jumping",
        "a man zumba",
        "people do capoeira",
        "situp on mat",
        "luge",
        "He jumps.In the water e.g. he swims.Then he rests.",
        "at 3.5 m/s, a 10:30 run; 1/2 turn",
        "A café owner's naïve jeté, 5 °C",
    ],
)
def test_short_and_unusual_english_texts_are_unchanged(text):
    steps = [s for s in cleaning.STEPS if s != "length"]
    action = next((a for a in ("zumba", "capoeira", "situp") if a in text), "jump")
    assert clean([text], steps, action)[0] == [text]


def test_first_of_several_duplicates_of_one_action_is_kept():
    rows = [
        Row("luge", GOOD, "s", "first"),
        Row("luge", GOOD.upper() + "!", "s", "second"),
        Row("bobsleigh", GOOD, "s", "third"),
    ]
    kept, report = clean(rows)
    assert [row.video_id for row in kept] == ["first", "third"]
    assert report.steps["duplicates"] == {"in": 3, "changed": 0, "dropped": 1}


def test_near_duplicates_are_dropped_and_similar_texts_kept():
    long = f"{GOOD} Snow flies up behind him at every turn."
    texts = [
        long,
        long.replace("small", "tall"),
        "A man is jumping.",
        "A woman is jumping.",
        "A woman in a helmet runs up a sandy hill with a big sled.",
    ]
    kept, report = clean(texts)
    assert kept == [texts[0], *texts[2:]]
    assert report.steps["near_duplicates"] == {"in": 5, "changed": 0, "dropped": 1}
    assert report.steps["duplicates"]["dropped"] == 0


def test_near_duplicates_agree_with_exact_jaccard_similarity():
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfk", "aeiou", ["st", "mp", "ll"])]
    texts: list[str] = []
    for _ in range(600):
        text = draw.choices(words, k=draw.randint(6, 20))
        if texts and draw.random() < 0.3:
            text = draw.choice(texts).split()
            text[draw.randrange(len(text))] = draw.choice(words)
        texts.append(" ".join(text))
    kept = set(clean(texts, ["near_duplicates"])[0])
    pieces = {t: {t[i : i + 5] for i in range(len(t) - 4)} for t in texts}
    seen: list[str] = []
    wrong = dropped = 0
    for candidate in dict.fromkeys(texts):
        best = max(
            (len(pieces[candidate] & pieces[o]) / len(pieces[candidate] | pieces[o]) for o in seen),
            default=0.0,
        )
        dropped += candidate not in kept
        # MinHash only estimates the similarity: texts near the threshold are not checked.
        wrong += (candidate in kept and best > 0.95) or (candidate not in kept and best < 0.72)
        seen += [candidate] * (candidate in kept)
    assert dropped > 20
    assert wrong == 0


# Pieces of text that the steps act on, which random characters would rarely contain.
RELEVANT_PIECES = [
    *("&amp;", "&am", "p;", "&lt;", "Ã©", "\u0301", "e", "“", "\x1b[31m", " ", "\n", "\u00a0", "."),
    *("🤸🏽‍♂️", "👏", "\ufe0f", "1️⃣", "http://a.bc", "://", "www", "x.com", "@", "/"),
    *("a man", "jumps", "Der Mann"),
]
CHARS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
TEXT = st.lists(st.one_of(st.sampled_from(RELEVANT_PIECES), CHARS), max_size=8).map("".join)
ROWS = st.lists(
    st.builds(Row, st.sampled_from(["luge", "ski jump"]), TEXT, st.just("s"), st.just("v")),
    max_size=8,
)
SUBSET = st.sets(st.sampled_from(cleaning.STEPS)).map(
    lambda chosen: [step for step in cleaning.STEPS if step in chosen]
)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, steps=SUBSET)
@example([Row("luge", "&a👏mp;amp; http://a👏b", "s", "v")] * 2, list(cleaning.STEPS))
def test_cleaning_is_idempotent_and_its_counts_add_up(rows, steps):
    kept, report = clean(rows, steps)
    assert clean(rows, steps)[0] == kept
    again, second = clean(kept, steps)
    assert sorted(again) == sorted(kept)
    for count in second.steps.values():
        assert count == {"in": len(kept), "changed": 0, "dropped": 0}
    entering = len(rows)
    for count in report.steps.values():
        assert count["in"] == entering
        assert count["changed"] + count["dropped"] <= entering
        entering -= count["dropped"]
    assert entering == len(kept) if steps else kept == rows


@pytest.mark.parametrize(
    "piece", ["a", "a.", "a-", "é", "a@", "http://", "&amp;", "👏", "a://", " x"]
)
def test_very_long_row_is_cleaned_within_ten_seconds(piece):
    start = time.monotonic()
    clean([piece * ((1 << 18) // len(piece))], cleaning.STEPS)
    assert time.monotonic() - start < 10


def test_grouping_by_action_keeps_all_rows_and_removes_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning, "_PARTS", 3)
    rows = [
        (i, Row(f"action {i % 50}", f"this is number {i} of them", "s", "")) for i in range(500)
    ]
    report = cleaning.Report(["duplicates"])
    cleaned = cleaning.clean(rows, report, tmp_path)
    first = next(cleaned)
    assert [p.name.startswith("cleaning.") for p in tmp_path.iterdir()] == [True]
    assert sorted([first, *cleaned]) == rows
    assert list(tmp_path.iterdir()) == []


def test_interrupted_cleaning_removes_its_files(tmp_path):
    cleaned = cleaning.clean([(0, Row("luge", GOOD, "s", ""))], cleaning.Report(), tmp_path)
    next(cleaned)
    cleaned.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_table_has_one_line_per_step():
    _, report = clean([GOOD, GOOD])
    lines = report.table().splitlines()
    assert [line.split()[0] for line in lines] == ["cleaning", *cleaning.STEPS]
    assert lines[-2].split() == ["duplicates", "2", "0", "1"]


@pytest.mark.parametrize(
    ("option", "steps"),
    [
        ("all", cleaning.STEPS),
        ("none", ()),
        ("length, urls", ("urls", "length")),
        ("-language", tuple(s for s in cleaning.STEPS if s != "language")),
        ("all,-emoji,-urls", tuple(s for s in cleaning.STEPS if s not in ("emoji", "urls"))),
    ],
)
def test_cleaning_option_selects_steps(option, steps):
    assert cleaning.chosen(option) == steps


@pytest.mark.parametrize("option", ["", "speling", "-none", "none,urls", "urls,-emoji", "-"])
def test_invalid_cleaning_option_gives_a_one_line_error(option):
    with pytest.raises(UserError, match="invalid; use all, none, steps to run") as caught:
        cleaning.chosen(option)
    assert "\n" not in str(caught.value)
