import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_jax.data.corpus import Corpus, DescriptionSampler
from coco_jax.data.tokenizers import END, PAD, UNKNOWN, Tokenizer, cached_tokenizer, train_tokenizer
from coco_jax.errors import UserError

TEXTS = [
    f"a {c} {s} {v}" for c in ("red", "blue") for s in ("disc", "bar") for v in ("falls", "spins")
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(TEXTS, 60), 30)


def test_training_again_gives_the_same_bytes(tokenizer):
    assert train_tokenizer(TEXTS, 60) == tokenizer.model


def test_ids_are_truncated_or_padded_and_have_an_end_mark(tokenizer):
    short, long, empty = tokenizer(["a red disc falls", "spins " * 100, ""])
    assert short[-1] == PAD and list(short).count(END) == 1
    assert PAD not in long and long[-1] == END
    assert empty[0] == END and (empty[1:] == PAD).all()


def test_case_does_not_matter(tokenizer):
    np.testing.assert_array_equal(*tokenizer(["A Red DISC", "a red disc"]))


@given(st.lists(st.text(), max_size=5))
def test_any_text_can_be_encoded(texts):
    tokenizer = Tokenizer(MODEL, 12)
    ids_NL = tokenizer(texts)
    assert ids_NL.shape == (len(texts), 12) and ids_NL.dtype == np.int32
    assert (ids_NL >= 0).all() and (ids_NL < tokenizer.size).all()
    assert UNKNOWN < END < tokenizer.size


MODEL = train_tokenizer(TEXTS, 60)


def test_stored_tokenizer_is_used_for_the_same_texts_only(tmp_path):
    first = cached_tokenizer(TEXTS, 60, 12, str(tmp_path))
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    assert cached_tokenizer(TEXTS, 60, 12, str(tmp_path)).model == first.model
    assert path.stat().st_mtime_ns == before
    cached_tokenizer(TEXTS[:-1], 60, 12, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_sampler_draws_only_descriptions_of_the_class(tokenizer):
    texts = {"x": TEXTS[:3], "y": TEXTS[3:4], "z": TEXTS[4:]}
    sampler = DescriptionSampler.of_tokens(texts, ["z", "x", "y"], tokenizer)
    own = {name: {tuple(row) for row in tokenizer(texts[name])} for name in texts}
    drawn = [sampler.draw(np.random.default_rng(seed), 4) for seed in range(30)]
    for i, name in enumerate(["z", "x", "y"]):
        seen = {tuple(row) for ids_KML in drawn for row in ids_KML[i]}
        assert seen == own[name]  # all of them occur in 120 draws


def test_mask_of_first_descriptions_is_false_for_missing_ones(tokenizer):
    sampler = DescriptionSampler.of_tokens({"x": TEXTS[:3], "y": TEXTS[3:4]}, ["x", "y"], tokenizer)
    ids_KML, mask_KM = sampler.first(2)
    assert mask_KM.tolist() == [[True, True], [True, False]]
    np.testing.assert_array_equal(ids_KML[0], tokenizer(TEXTS[:2]))


def test_class_without_description_is_an_error_that_names_it(tokenizer):
    with pytest.raises(UserError, match="1 of 2 classes have no description in the corpus: 'y'"):
        DescriptionSampler.of_tokens({"x": TEXTS}, ["x", "y"], tokenizer)


@given(st.integers(0, 1000), st.integers(2, 9))
def test_shuffling_gives_every_action_the_descriptions_of_another(seed, count):
    names = [f"action {i}" for i in range(count)]
    defined = {n: (f"what {n} is",) for n in names[1:]}
    corpus = Corpus({n: (f"of {n}",) for n in names}, {n: ("",) for n in names}, defined)
    shuffled = corpus.shuffled(seed)
    assert all(shuffled.texts[n] != corpus.texts[n] for n in names)
    # Definitions move with the captions of the same action.
    pairs = {shuffled.texts[n]: shuffled.definitions[n] for n in shuffled.definitions}
    assert pairs == {corpus.texts[n]: corpus.definitions[n] for n in defined}
    assert sorted(shuffled.texts.values()) == sorted(corpus.texts.values())


def test_descriptions_of_excluded_videos_are_removed_and_counted():
    corpus = Corpus({"x": ("a", "b", "c")}, {"x": ("v1", "", "v2")}, {"x": ("d",)})
    left, count = corpus.without_videos(["v2", "v9", ""])
    assert (left.texts, left.definitions, count) == ({"x": ("a", "b")}, {"x": ("d",)}, 1)
