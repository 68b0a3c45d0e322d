"""The closed form as a model: its episodes, its cycle, and its scores, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax.config import default
from coco_jax.models.closed_form import ClosedForm, held_out_classes

SEEN, POOL, BLOCKS, WIDTH, FEATURES = 8, 5, 3, 6, 7


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_config(**changes):
    config = default()
    config.alignment, config.ablation = "episodic", "full"
    config.text.definitions = "always"
    config.text_tower.width, config.video_tower.feature_dim = WIDTH, FEATURES
    config.ridge.update(seen_classes=SEEN, neighbours=2)
    config.cycle.update(changes)
    return config


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {
        "texts": unit(rng.normal(size=(SEEN, BLOCKS, WIDTH))),
        "videos": rng.normal(size=(SEEN, FEATURES)) + 1,
        "video": rng.normal(size=(20, FEATURES)) + 1,
        "label": rng.integers(0, SEEN, 20),
        "pool": unit(rng.normal(size=(POOL, BLOCKS, WIDTH))),
    }


def make_model(config, data):
    model = ClosedForm(config)
    model.seen.texts[...] = jnp.asarray(data["texts"], jnp.float32)
    model.seen.videos[...] = jnp.asarray(data["videos"], jnp.float32)
    return model


def batch_of(data):
    return {
        "video": jnp.asarray(data["video"], jnp.float32),
        "label": jnp.asarray(data["label"], jnp.int32),
        "pool": jnp.asarray(data["pool"], jnp.float32),
    }


def weights(config):
    return np.array(config.ridge.weights) / sum(config.ridge.weights)


def predict(config, texts, seen_texts, v):
    """Predicted vectors, class by class."""
    mean, w = seen_texts.mean(0), weights(config)
    x, y = unit(texts - mean), unit(seen_texts - mean)

    def kernel(a, b):
        return np.exp(-sum(w[n] * (1 - a[n] @ b[n]) for n in range(BLOCKS)) / config.ridge.width)

    gram = np.array([[kernel(a, b) for b in y] for a in y]) + config.ridge.strength * np.eye(len(y))
    alpha = np.linalg.solve(gram, v)
    return unit(np.array([[kernel(a, b) for b in y] for a in x]) @ alpha)


def penalty(config, v, seen):
    return config.ridge.hubness * np.sort(v @ seen.T, axis=1)[:, -2:].mean(1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("pool", ["unseen", "episodic"])
@pytest.mark.parametrize("form", ["squared", "contrastive"])
def test_losses_of_an_episode_equal_their_definition(data, pool, form):
    """A quarter of the seen classes is predicted from the others; then the cycle through the pool."""
    config, key = make_config(pool=pool, form=form), jax.random.key(3)
    model = make_model(config, data)
    order = np.asarray(jax.random.permutation(key, SEEN))
    held_out, rest = order[:2], order[2:]
    mean = data["videos"][rest].mean(0)
    seen = unit(data["videos"][rest] - mean)
    v = predict(config, data["texts"][held_out], data["texts"][rest], seen)
    losses = []
    for video, label in zip(data["video"], data["label"], strict=True):
        if label in held_out:
            logits = (unit(video - mean) @ v.T - penalty(config, v, seen)) / config.model.tau
            losses.append(-np.log(softmax(logits)[held_out.tolist().index(label)]))
    got = nnx.jit(lambda model, batch, key: model.losses(batch, key))(model, batch_of(data), key)
    assert 0 < len(losses) < 20
    np.testing.assert_allclose(got["description"], np.mean(losses), rtol=1e-4)

    texts, text_mean = data["texts"], data["texts"][rest].mean(0)
    through = data["pool"] if pool == "unseen" else texts[held_out]
    x, y = unit(texts[rest] - text_mean), unit(through - text_mean)
    similarity = np.einsum("sbw,ubw,b->su", x, y, weights(config))
    rebuilt = softmax(similarity / config.cycle.tau_r) @ predict(config, through, texts[rest], seen)
    rebuilt = unit(rebuilt)
    want = np.square(rebuilt - seen).sum(1).mean()
    if form == "contrastive":
        want = -np.log(np.diag(softmax(rebuilt @ seen.T / config.model.tau))).mean()
    np.testing.assert_allclose(got["cycle"], want, rtol=1e-4)
    total = got["description"] + config.model.lambda_cycle * got["cycle"]
    np.testing.assert_allclose(got["loss"], total, rtol=1e-5)


def test_scores_are_cosines_minus_the_penalty(data):
    config = make_config()
    model = make_model(config, data)
    mean = data["videos"].mean(0)
    seen, v = unit(data["videos"] - mean), unit(data["video"] - mean)
    predicted = predict(config, data["pool"], data["texts"], seen)
    batch = batch_of(data)
    got = model.scores(model.embed_videos(batch["video"]), batch["pool"])
    np.testing.assert_allclose(got, v @ predicted.T - penalty(config, predicted, seen), atol=1e-5)


def test_only_constants_have_gradients(data):
    """The data of the seen classes are parameters, so that checkpoints have them."""
    from coco_jax.training.optimizer import trainable_mask

    config = make_config()
    config.text_tower.trainable = "none"
    mask = trainable_mask(config, nnx.to_pure_dict(nnx.state(make_model(config, data), nnx.Param)))
    assert not any(jax.tree.leaves(mask["seen"]))
    assert all(jax.tree.leaves({name: x for name, x in mask.items() if name != "seen"}))
    assert set(mask) == {"seen", "constants", "back", "log_tau"}


@pytest.mark.parametrize(("seen", "share", "count"), [(300, 0.25, 75), (3, 0.01, 1), (3, 0.99, 2)])
def test_an_episode_holds_out_some_but_not_all_classes(seen, share, count):
    assert held_out_classes(seen, share) == count


def test_coefficients_of_the_seen_vectors_give_the_predicted_vectors(data):
    config = make_config()
    model = make_model(config, data)
    texts = jnp.asarray(data["pool"], jnp.float32)
    seen_v = unit(data["videos"] - data["videos"].mean(0))
    got = unit(np.asarray(model.coefficients(texts)) @ seen_v)
    np.testing.assert_allclose(got, predict(config, data["pool"], data["texts"], seen_v), atol=1e-4)
