"""Matching of action names, on the class lists of the benchmarks if they are in shared/annotations."""

import collections
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_jax.data import action_names

SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared"
KINETICS = {n: f"kinetics/label_map_k{n}.txt" for n in (400, 600, 700)}
MAPS = [*KINETICS.values(), "ucf101/label_map.txt", "hmdb51/label_map.txt"]
DEFINED = [
    "kinetics/classes620_label_defn.json",
    "ucf101/classes_label_defn.json",
    "hmdb51/classes_label_defn.json",
]


def lines(name):
    path = SHARED / "annotations" / name
    if not path.is_file():
        pytest.skip(f"no annotations: {path} is absent")
    if path.suffix == ".json":
        return [entry["word"] for entry in json.loads(path.read_text())]
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo-yo"),
        ("HandstandPushups", "hand stand push-ups"),
        ("PushUps", "pushup"),
        ("ride_bike", "Riding a Bike"),
        ("passing American football (in game)", "PASSING AMERICAN FOOTBALL IN GAME"),
        ("massaging person's head", "massaging person’s heads"),
        ("making bed", "making the bed"),
        ("run 100 metres", "Run100Metres"),
        ("ｌｕｇｅ", "luge."),
    ],
)
def test_spellings_of_the_same_name_have_the_same_key(one, other):
    assert action_names.normal(one) == action_names.normal(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("playing cards", "playing card games"),
        ("waking up", "baby waking up"),
        ("passing American football (in game)", "passing American football (not in game)"),
        ("curling", "curling (sport)"),
        ("dog walking man", "man walking dog"),
        ("run 100 metres", "run 200 metres"),
        ("dying hair", "dyeing hair"),
    ],
)
def test_different_names_have_different_keys(one, other):
    assert action_names.normal(one) != action_names.normal(other)


@pytest.mark.parametrize("name", MAPS + DEFINED)
def test_all_classes_of_a_benchmark_have_different_keys(name):
    groups = collections.defaultdict(list)
    for label in lines(name):
        groups[action_names.normal(label)].append(label)
    assert [group for group in groups.values() if len(group) > 1] == []
    assert "" not in groups


@pytest.mark.parametrize("name", MAPS)
def test_each_respelled_class_matches_only_itself(name):
    labels = lines(name)
    ways = [
        str.upper,
        lambda s: s.replace(" ", "_"),
        lambda s: s.replace(" ", "-") + ".",
        lambda s: "the " + s,
    ]
    for way in ways:
        result = action_names.match(map(way, labels), labels)
        assert result.found == {way(label): label for label in labels}
        assert not result.unmatched_classes


def test_the_two_class_lists_of_ucf101_match():
    folders, words = lines("ucf101/label_map.txt"), lines("ucf101/classes_label_defn.json")
    result = action_names.match(words, folders)
    assert len(result.found) == len(set(result.found.values())) == 101
    assert not result.unmatched_actions + result.unmatched_classes
    assert result.found["hand stand pushups"] == "HandstandPushups"
    assert all(
        word.replace(" ", "") == label.lower() for word, label in result.found.items()
    )  # checked without `normal`


def test_the_two_class_lists_of_hmdb51_match():
    result = action_names.match(
        lines("hmdb51/classes_label_defn.json"), lines("hmdb51/label_map.txt")
    )
    assert result.found == {label.replace("_", " "): label for label in result.found.values()}
    assert len(result.found) == 51


def test_renamed_agrees_with_the_class_lists():
    k400, k600, defined = map(lines, [KINETICS[400], KINETICS[600], DEFINED[0]])
    assert len(set(defined)) == 620
    assert set(action_names.RENAMED.values()) == set(k600) - set(defined)
    assert set(action_names.RENAMED) <= set(k400) - set(k600)
    assert len(action_names.RENAMED) == 12


def test_each_class_of_kinetics_600_matches_one_of_the_620():
    result = action_names.match(lines(KINETICS[600]), lines(DEFINED[0]))
    assert not result.unmatched_actions
    assert not result.ambiguous
    assert len(set(result.found.values())) == 600
    back = {new: old for old, new in action_names.RENAMED.items()}
    assert result.found == {label: back.get(label, label) for label in result.found}


def test_waking_up_and_baby_waking_up_of_kinetics_700_stay_different():
    result = action_names.match(["waking up", "BabyWakingUp"], lines(KINETICS[700]))
    assert result.found == {"waking up": "waking up", "BabyWakingUp": "baby waking up"}


def test_no_two_classes_of_kinetics_400_match_the_same_one_of_600():
    result = action_names.match(lines(KINETICS[400]), lines(KINETICS[600]))
    times = collections.Counter(result.found.values())
    assert [label for label, count in times.items() if count > 1] == []
    assert {result.found[old] for old in action_names.RENAMED} == set(action_names.RENAMED.values())


def test_final_brackets_are_compared_only_if_both_names_have_them():
    classes = ["curling (sport)", "pass (in game)", "pass (not in game)", "fencing"]
    result = action_names.match(["Curling", "pass", "pass (at home)", "fencing (sport)"], classes)
    assert result.found == {"Curling": "curling (sport)", "fencing (sport)": "fencing"}
    assert result.ambiguous == {"pass": ["pass (in game)", "pass (not in game)"]}
    assert result.unmatched_actions == ["pass (at home)"]
    assert result.unmatched_classes == ["pass (in game)", "pass (not in game)"]


def test_action_that_matches_two_classes_is_ambiguous():
    result = action_names.match(["clap", "claps", "clapping hands"], ["clap", "clapping"])
    assert result.found == {"clap": "clap"}
    assert result.ambiguous == {"claps": ["clap", "clapping"]}
    # The rule of equal letters comes before that of equal keys.
    assert action_names.match(["CLAP"], ["clap", "clapping"]).found == {"CLAP": "clap"}
    assert result.unmatched_actions == ["clapping hands"]


@pytest.mark.parametrize("name", ["", "!?", "()", "(", "🏂"])
def test_name_without_words_matches_nothing(name):
    result = action_names.match([name], ["luge", "..."])
    assert result.found == {}
    assert result.unmatched_actions == [name]


NAME = st.text(st.characters(codec="utf-8"), max_size=20)


@given(actions=st.lists(NAME, max_size=6), classes=st.lists(NAME, max_size=6))
def test_every_name_is_in_exactly_one_part_of_the_result(actions, classes):
    result = action_names.match(actions, classes)
    accounted = [*result.found, *result.unmatched_actions, *result.ambiguous]
    assert sorted(accounted) == sorted(set(actions))
    assert set(classes) == set(result.found.values()) | set(result.unmatched_classes)
    assert not set(result.found.values()) & set(result.unmatched_classes)


@given(NAME)
def test_key_ignores_surrounding_space(name):
    assert action_names.normal(f" {name}\t") == action_names.normal(name)
