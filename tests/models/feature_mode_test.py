"""CoCo on stored features of videos and texts: centring, noise, the linear tower, definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax.config import default
from coco_jax.models.coco import CoCo, add_noise

FEATURES, WIDTH = 64, 16


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def make():
    def make_model(**changes):
        config = default()
        config.ablation = "label+desc"
        config.video_tower.update(kind="features", feature_dim=FEATURES, linear=True)
        config.text_tower.update(trainable="none", width=WIDTH, heads=2, depth=1)
        config.text.vocabulary = 20
        config.model.update(dim=8, dtype="float32", centre=True)
        for name, value in changes.items():
            section, field = name.split("__")
            config[section][field] = value
        model = CoCo(config, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        model.seen.video[...] = jnp.asarray(rng.normal(size=FEATURES), jnp.float32)
        model.seen.texts[...] = jnp.asarray(rng.normal(size=(3, WIDTH)) / 8, jnp.float32)
        return model

    return make_model


@pytest.fixture
def inputs():
    """Features of 5 videos, and of 4 texts of each of 3 classes."""
    rng = np.random.default_rng(1)
    return (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 64), (3, 4, 16)))


def test_embeddings_are_projections_of_centred_features(make, inputs):
    model, (videos, texts) = make(), inputs
    mean, means = np.asarray(model.seen.video[...]), np.asarray(model.seen.texts[...])
    want = unit(unit(videos - mean) @ np.asarray(model.video_out.kernel[...]))
    np.testing.assert_allclose(model.embed_videos(videos), want, atol=1e-5)
    kernel = np.asarray(model.text_out.kernel[...])
    for embed, mean in ((model.embed_texts, means[2]), (model.embed_labels, means[0])):
        z = unit(unit(unit(np.asarray(texts)) - mean) @ kernel)
        z = z if embed == model.embed_texts else unit(z.mean(1))
        np.testing.assert_allclose(embed(texts), z, atol=1e-5)


def test_labels_include_the_definition(make, inputs):
    """The last text of a class; it has as much weight as all prompts together."""
    _, texts = inputs
    means = np.asarray(make().seen.texts[...])
    model = make(text__definitions="always")
    kernel = np.asarray(model.text_out.kernel[...])
    prompts, definition = (
        unit(unit(unit(np.asarray(x)) - mean) @ kernel)
        for x, mean in ((texts[:, :3], means[0]), (texts[:, 3], means[1]))
    )
    want = unit(unit(prompts.mean(1)) + definition)
    np.testing.assert_allclose(model.embed_labels(texts), want, atol=1e-5)


def test_noise_is_drawn_anew_in_training_and_absent_in_evaluation(make, inputs):
    noisy, plain = make(data__feature_noise=1.0, text__feature_noise=1.0), make()
    videos, texts = inputs
    for method, x in (("embed_videos", videos), ("embed_texts", texts), ("embed_labels", texts)):
        embed, without = getattr(noisy, method), getattr(plain, method)
        one, two = (np.asarray(embed(x, jax.random.key(n))) for n in (0, 1))
        assert np.abs(one - two).max() > 0.1
        np.testing.assert_array_equal(embed(x), without(x))
        np.testing.assert_array_equal(without(x, jax.random.key(0)), without(x))


def test_noise_has_the_given_share_of_the_norm():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 300)), jnp.float32) * 5
    noise = add_noise(x, 0.5, jax.random.key(0)) - x
    share = np.linalg.norm(noise, axis=1) / np.linalg.norm(x, axis=1)
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(noise.ravel(), x.ravel())[0, 1]) < 0.02
