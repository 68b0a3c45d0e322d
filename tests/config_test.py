"""The config's table of choices and the code that implements them agree."""

import json

import pytest

from coco_jax.config import (
    BOUNDS,
    CHOICES,
    DEFAULTS,
    FREE,
    changes,
    default,
    flatten,
    load_stored,
    validate,
)
from coco_jax.data.tokenizers import STYLES
from coco_jax.errors import UserError
from coco_jax.models.transformer import ACTIVATIONS


def test_each_choice_and_check_is_of_an_existing_field():
    fields = flatten(default().to_dict())
    assert set(CHOICES) <= set(fields)
    assert all(fields[name] in values for name, values in CHOICES.items())


def test_every_number_has_bounds_of_its_type_which_its_default_is_within():
    numbers = {field: x for field, x in DEFAULTS.items() if type(x) in (int, float)}
    assert set(BOUNDS) == set(numbers) - {"version"}
    for field, (low, high) in BOUNDS.items():
        assert low <= numbers[field] <= high
        assert {type(low), type(high)} == {type(numbers[field])}, field


def test_choices_are_those_that_the_code_implements():
    assert set(CHOICES["text_tower.activation"]) == set(ACTIVATIONS)
    assert set(CHOICES["text.tokenizer_style"]) == {"own", *STYLES}


def test_changes_lists_only_fields_that_affect_the_result():
    old, new = default(), default()
    new.log_every, new.mesh.fsdp, new.optimizer.learning_rate = 1, 4, 0.5
    assert changes(old.to_dict(), new.to_dict()) == ["optimizer.learning_rate: 0.001 -> 0.5"]
    assert all(
        any(field.startswith(free) for field in flatten(default().to_dict())) for free in FREE
    )


def stored(**fields):
    """A config.json with these fields; `video_tower__size` stands for video_tower.size."""
    config = default()
    config.data.name, config.text.corpus = "motion_zsar", "actionhub/motion"
    tree = json.loads(config.to_json())
    for name, value in fields.items():
        *sections, last = name.split("__")
        parent = tree
        for section in sections:
            parent = parent.setdefault(section, {})
        parent[last] = value
    return tree


def test_stored_config_is_read_with_the_types_of_the_defaults():
    config = load_stored(stored(model__tau=1, data__test_splits=["1", "2"]), "config.json")
    assert config.model.tau == 1.0 and isinstance(config.model.tau, float)
    assert config.data.test_splits == ("1", "2")
    assert flatten(config.to_dict()).keys() == DEFAULTS.keys()


DEEP: list = []
for _ in range(980):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text__length", -1, r"config.text.length: -1 must be from 1 to 4,096"),
        ("video_tower__size", 48.5, "config.video_tower.size: 48.5 is not a whole number"),
        ("video_tower__heads", "x", "'x' is not a whole number"),
        ("video_tower__heads", True, "True is not a whole number"),
        ("video_tower__frames", None, "None is not a whole number"),
        ("video_tower__depth", 10**6, "1000000 must be from 0 to 128"),
        ("video_tower__depth", -3, "-3 must be from 0 to 128"),
        ("video_tower__width", 10**9, "1000000000 must be from 1 to 65,536"),
        ("text_tower__mlp_ratio", "x", "'x' is not a number"),
        ("model__tau", float("nan"), "nan must be from 1e-06 to 1e"),
        ("model__tau", 10**400, "must be from|too large"),
        ("model__dtype", "float99", "'float99' is not one of float32"),
        ("model__dtype", None, "None is not text"),
        ("model__remat", 1, "1 is neither True nor False"),
        ("seed", -1, "-1 must be from 0"),
        ("data__name", 5, "5 is not text"),
        ("data__name", "a\0", "NUL character"),
        ("data", 5, "no field config.data"),
        ("data__name", {"a": 1}, "no field config.data.name.a"),
        ("ablation", "x" * 5_000, "more than 4,096 characters"),
        ("text__templates", ["{0.__class__}"], r"'\{0.__class__\}' must be text with one \{\}"),
        ("text__templates", ["{"], "must be text with one"),
        ("text__templates", ["a video"], "must be text with one"),
        ("text__templates", ["{} {}"], "must be text with one"),
        ("text__templates", [5], "must be text with one"),
        ("text__templates", [], "no template"),
        ("text__templates", "{}", "is not a list"),
        ("text__templates", ["{}"] * 2_000, "more than 1,000 elements"),
        ("video_tower__mean", [0.5], "must be three numbers"),
        ("video_tower__std", [0, 1, 1], "must be three numbers from 1e-06"),
        ("mesh__rules", [["x", ["nobody"]]], "an axis of the mesh or None"),
        ("mesh__rules", [5], "an axis of the mesh or None"),
        ("mesh__fsdp", 0, "an axis of 0 devices"),
        ("optimizer__learning_rate_multipliers", [[1, 2]], "factor from 0"),
        ("optimizer__learning_rate_multipliers", [["x", "y"]], "factor from 0"),
        ("cycle__stop_gradient", [["x"]], "is not one of seen"),
        ("text__templates", DEEP, "must be text with one|nested too deeply"),
        ("version", [], "has version"),
    ],
)
def test_stored_config_that_does_not_fit_is_a_one_line_error_with_the_field(field, value, message):
    with pytest.raises(UserError, match=message) as caught:
        load_stored(stored(**{field: value}), "runs/x/config.json")
    line = str(caught.value)
    assert line.startswith("runs/x/config.json: ") and "\n" not in line and len(line) < 400


def test_clip_larger_than_the_memory_is_an_error():
    tower = {"video_tower__size": 4_096, "video_tower__frames": 64}
    with pytest.raises(UserError, match="64 frames of 4096 x 4096 pixels has more than"):
        load_stored(stored(**tower), "config.json")


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(a|aa)+$",
        "(a*){2,}b",
        "((a)|b)*c",
        ".*.*.*.*.*x",
        "(a|a)" * 30 + "x",
        "a?" * 30 + "a" * 30,
        ".{1,60}" * 5,
        "a" * 5_000,
    ],
)
def test_expression_that_could_take_very_long_to_match_is_an_error(expression):
    config = default()
    config.data.name, config.text.corpus = "motion_zsar", "actionhub/motion"
    config.mesh.rules = ((expression, (None,)),)
    with pytest.raises(UserError, match=r"config.mesh.rules: .*could take very long to match"):
        validate(config)
    config.mesh.rules = ()
    config.optimizer.learning_rate_multipliers = ((expression, 1.0),)
    with pytest.raises(UserError, match=r"learning_rate_multipliers: .*could take very long"):
        validate(config)


def test_expressions_of_ordinary_use_are_accepted():
    config = default()
    config.data.name, config.text.corpus = "motion_zsar", "actionhub/motion"
    config.optimizer.learning_rate_multipliers = (
        (r"(video|text)/.*/layers/(0|1|2|3|4|5|6|7|8|9|10|11)/.*", 0.1),
        (r".*/(query|key|value|out)/lora_[ab]", 2.0),
        (r"(?!video/temporal/).*", 0.0),
    )
    validate(config)
