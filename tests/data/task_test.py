"""The data of a run: the classes of its auxiliary pool."""

import numpy as np
import pytest

from coco_jax.data import dataset as datasets
from coco_jax.data import task
from coco_jax.data.corpus import Corpus
from coco_jax.data.dataset import Dataset, Records
from coco_jax.errors import UserError

SPORTS = Dataset(
    "sports",
    ("pushup", "JumpingJack", "yoga", "run"),
    {"1": {"seen": ["JumpingJack", "yoga"], "unseen": ["pushup", "run"]}},
    Records(
        (), np.repeat(np.arange(4), 2), tuple(f"v{n}" for n in range(8)), ("train", "test") * 4
    ),
)


@pytest.fixture
def auxiliary(tiny, tmp_path, monkeypatch):
    """Makes the task of a run on SPORTS with an auxiliary pool and descriptions of these actions."""

    def make(actions):
        texts = {name: (f"someone does {name}", "a clip of it") for name in actions}
        corpus = Corpus(texts, {name: ("", "") for name in actions})
        monkeypatch.setattr(datasets, "open_dataset", lambda config: SPORTS)
        monkeypatch.setattr(task, "load_corpus", lambda name, data_dir: corpus)
        config = tiny(cycle__pool="auxiliary", data__dir=str(tmp_path), text__vocabulary=80)
        return task.make_task(config)

    return make


def test_auxiliary_pool_excludes_classes_of_the_dataset_in_other_spellings(auxiliary):
    """Otherwise, training would use texts of unseen classes."""
    respelt = ["push up", "Push-Ups", "jumping jacks", "Running"]
    made = auxiliary([*SPORTS.classes, *respelt, "juggling", "pull up"])
    assert made.classes["pool"] == ["juggling", "pull up"]


def test_auxiliary_pool_without_an_action_is_an_error(auxiliary):
    with pytest.raises(UserError, match=r"config.cycle.pool: .*use 'unseen' or 'episodic'"):
        auxiliary([*SPORTS.classes, "push up"])


def test_classes_find_their_descriptions_in_other_spellings(auxiliary):
    made = auxiliary(["push ups", "Jumping Jack", "Yoga", "running", "juggling"])
    assert made.classes["pool"] == ["juggling"]
    (first, _), _ = made.descriptions["unseen"].first(2)  # of pushup
    np.testing.assert_array_equal(first[0], made.tokenizer(["someone does push ups"])[0])


def test_class_without_a_description_is_an_error(auxiliary):
    with pytest.raises(UserError, match="1 of 2 classes have no description in the corpus: 'run'"):
        auxiliary(["push ups", "Jumping Jack", "Yoga", "runway walking"])
