"""The text feature cache: contents, missing texts, damage, and sampling."""

import numpy as np
import pytest

from coco_jax.data import text_feature_cache
from coco_jax.errors import UserError

WIDTH = 8


def encode(texts):
    """Replaces a tower: random features, seeded by the text."""
    return np.stack([np.random.default_rng(list(t.encode())).normal(size=WIDTH) for t in texts])


def counting():
    seen = []

    def counted(texts):
        seen.extend(texts)
        return encode(texts)

    return counted, seen


def test_cached_features_are_those_of_the_tower_in_bfloat16(tmp_path):
    texts = [f"a text {n}" for n in range(10)] + ["", "日本語 🤸", "a text 3"]
    cache = text_feature_cache.fill(tmp_path / "bank", texts, encode, WIDTH, batch=4)
    got = cache.features(texts)
    assert got.dtype == text_feature_cache.BFLOAT16 and got.shape == (13, WIDTH)
    np.testing.assert_array_equal(got, encode(texts).astype(text_feature_cache.BFLOAT16))
    np.testing.assert_allclose(got.astype(np.float32), encode(texts), rtol=2**-8)
    assert len(cache.features_NW) == 12  # each text once
    assert isinstance(cache.features_NW.base.base, np.memmap) or isinstance(
        cache.features_NW, np.memmap
    )


def test_only_missing_texts_are_encoded(tmp_path):
    encoder, seen = counting()
    text_feature_cache.fill(tmp_path / "b", ["x", "y"], encoder, WIDTH)
    text_feature_cache.fill(tmp_path / "b", ["y", "x"], encoder, WIDTH)
    assert seen == ["x", "y"]
    cache = text_feature_cache.fill(tmp_path / "b", ["z", "x", "w"], encoder, WIDTH)
    assert seen == ["x", "y", "z", "w"]
    np.testing.assert_array_equal(
        cache.features(["w", "x", "y"]), encode(["w", "x", "y"]).astype(text_feature_cache.BFLOAT16)
    )


def test_changed_text_is_not_found(tmp_path):
    cache = text_feature_cache.fill(tmp_path / "b", ["a man runs"], encode, WIDTH)
    with pytest.raises(KeyError, match="1 texts are not in the cache"):
        cache.features(["a man runs."])


def test_interrupted_fill_leaves_no_files_and_can_be_repeated(tmp_path):
    def dies(texts):
        if "y" in texts:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        text_feature_cache.fill(tmp_path / "b", ["x", "y"], dies, WIDTH, batch=1)
    assert not list(tmp_path.iterdir())
    assert len(text_feature_cache.fill(tmp_path / "b", ["x", "y"], encode, WIDTH).features_NW) == 2


def test_damaged_cache_is_an_error(tmp_path):
    text_feature_cache.fill(tmp_path / "b", ["x", "y"], encode, WIDTH)
    path = tmp_path / "b" / text_feature_cache.FEATURES
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="text feature cache is damaged"):
        text_feature_cache.fill(tmp_path / "b", ["x"], encode, WIDTH)


def test_sampler_draws_features_of_the_descriptions_of_each_class(tmp_path):
    texts = {"run": ["a", "b", "c"], "jump": ["d"], "swim": ["e", "f"]}
    cache = text_feature_cache.fill(
        tmp_path / "b", [t for some in texts.values() for t in some], encode, WIDTH
    )
    drawn = cache.sampler(texts, ["swim", "run", "jump"])
    feature = {t: encode([t])[0].astype(text_feature_cache.BFLOAT16).tobytes() for t in "abcdef"}
    found = drawn.draw(np.random.default_rng(0), 50)
    assert found.shape == (3, 50, WIDTH) and found.dtype == text_feature_cache.BFLOAT16
    for rows_MW, name in zip(found, ("swim", "run", "jump"), strict=True):
        assert {row.tobytes() for row in rows_MW} == {feature[t] for t in texts[name]}
    first, shown = drawn.first(2)
    assert shown.tolist() == [[True, True], [True, True], [True, False]]
    assert first[1, 1].tobytes() == feature["b"]
    with pytest.raises(UserError, match="1 of 1 classes have no description"):
        cache.sampler(texts, ["fly"])


def test_key_depends_on_every_part_and_on_their_boundaries():
    keys = {
        text_feature_cache.key(parts)
        for parts in ([b"a", b"b"], [b"ab", b""], [b"", b"ab"], [b"a", b"c"], [b"a"])
    }
    assert len(keys) == 5
