"""The config's table of choices and the code that implements them agree."""

from coco_jax.config import CHOICES, FREE, POSITIVE, changes, default, flatten
from coco_jax.data.tokenizers import STYLES
from coco_jax.models.transformer import ACTIVATIONS


def test_each_choice_and_check_is_of_an_existing_field():
    fields = flatten(default().to_dict())
    assert set(CHOICES) <= set(fields) and set(POSITIVE) <= set(fields)
    assert all(fields[name] in values for name, values in CHOICES.items())


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
