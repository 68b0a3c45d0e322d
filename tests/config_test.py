"""The config's table of choices and the code that implements them agree."""

from coco_jax.config import CHOICES, POSITIVE, default, flatten
from coco_jax.data.tokenizers import STYLES
from coco_jax.models.transformer import ACTIVATIONS


def test_each_choice_and_check_is_of_an_existing_field():
    fields = flatten(default().to_dict())
    assert set(CHOICES) <= set(fields) and set(POSITIVE) <= set(fields)
    assert all(fields[name] in values for name, values in CHOICES.items())


def test_choices_are_those_that_the_code_implements():
    assert set(CHOICES["text_tower.activation"]) == set(ACTIVATIONS)
    assert set(CHOICES["text.tokenizer_style"]) == {"own", *STYLES}
