"""Loads checkpoints into our towers and compares them with a reference."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coco_jax import config as configs
from coco_jax import presets, weights
from coco_jax.config import flatten
from coco_jax.models.coco import CoCo
from coco_jax.sharding import path_of
from coco_jax.weights.table import fill
from tests.helpers import references

assert references  # importing it makes torchvision importable


def make_config(preset, path="", **changes):
    """The defaults with a preset (its name, or a function of the config), float32, weights from `path`.

    `changes` are fields such as `video_tower__depth=2`.
    """
    config = configs.default()
    if callable(preset):
        preset(config)
    else:
        presets.apply(config, preset)
    config.model.dtype = "float32"
    config.video_tower.frames = 2
    config.ablation = "label"
    for tower in (config.video_tower, config.text_tower):
        if tower.weights:
            tower.weights = str(path)
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


_KNOWN: dict[str, tuple] = {}


def shapes_of(config):
    """Structure, abstract parameters, the rest, and all parameters' shapes by path.

    Cached for configs that differ only in the paths of checkpoints.
    """
    key = config.copy_and_resolve_references()
    key.video_tower.weights = key.text_tower.weights = key.text.tokenizer = ""
    name = repr(sorted(flatten(key.to_dict()).items()))
    if name not in _KNOWN:
        abstract = nnx.eval_shape(lambda: CoCo(config, rngs=nnx.Rngs(0)))
        graph, params, rest = nnx.split(abstract, nnx.Param, ...)
        pure = nnx.to_pure_dict(params)
        shapes = {path_of(p): x.shape for p, x in jax.tree.leaves_with_path(pure)}
        _KNOWN[name] = graph, pure, rest, shapes
    return _KNOWN[name]


def load(config):
    """CoCo with the checkpoints of the config; other parameters are zero."""
    graph, pure, _, shapes = shapes_of(config)
    filled = weights.published(config, shapes)
    params = jax.tree.map_with_path(
        lambda path, x: jnp.asarray(filled.get(path_of(path), np.zeros(x.shape, np.float32))), pure
    )
    return nnx.merge(graph, nnx.State(params))


def videos_of(model, video_BTHWC):
    """Projected, not normalised, vectors of videos whose pixels are normalised."""
    return model.video_out(model.video(jnp.asarray(video_BTHWC)))


def texts_of(model, ids_XL):
    """Projected, not normalised, vectors of texts."""
    return model.text_out(model.text(jnp.asarray(ids_XL, jnp.int32)))


def distance(got, want) -> float:
    """The largest relative error of a row."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return (np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max()


def embeddings_and_gradients(
    model, embed, inputs, direction
) -> tuple[jax.Array, dict[str, np.ndarray]]:
    """embed(model, inputs), and the gradients of its product with `direction`, by parameter path."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def total(params):
        out = embed(nnx.merge(graph, params, rest), inputs)
        return (out * direction).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(grads))
    return out, {path_of(p): np.asarray(x) for p, x in leaves}


def reference_gradients(reference, family, part, shapes) -> dict[str, np.ndarray]:
    """The gradients of a torch model, converted like its weights to our parameters, by path."""
    grads = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in reference.named_parameters()
    }
    return fill(family, part, grads, shapes, "gradients", False)


def check_text_tower(config, reference, family, ids, want_XD) -> None:
    """Compares our text tower, which loads `config`, with the reference: vectors and gradients.

    `ids` are the texts as our tower gets them, and `want_XD` the vectors of the reference.
    """
    rng = np.random.default_rng(1)
    direction = rng.normal(size=want_XD.shape).astype(np.float32)
    (want_XD * want_XD.new_tensor(direction)).sum().backward()
    wanted = reference_gradients(reference, family, "text", shapes_of(config)[-1])
    del wanted["text_out/kernel"]  # constant; the reference does not have it
    got, gradients = embeddings_and_gradients(load(config), texts_of, ids, direction)
    assert distance(got, want_XD.detach()) < 1e-5
    compare_gradients(gradients, wanted)


def perturb(reference) -> None:
    """Adds noise to all parameters of a torch module, so that none is 0 or 1."""
    for parameter in reference.parameters():
        parameter.data.add_(0.02 * parameter.new_empty(parameter.shape).normal_())


def compare_gradients(got, want, limit=1e-4) -> None:
    """Asserts that the gradient of every parameter equals that of the reference.

    The bias of a key adds the same to all scores of a query, and softmax does not depend on it: both
    gradients are zero except for rounding.
    """
    assert want
    whole = np.sqrt(sum(np.square(x).sum() for x in want.values()))
    for path, x in want.items():
        error = np.linalg.norm(got[path] - x)
        if path.endswith("key/bias"):
            assert error < 1e-5 * whole, path
        else:
            assert np.linalg.norm(x) > 0, path
            assert error / np.linalg.norm(x) < limit, (path, error / np.linalg.norm(x))


def clip_of(rng, batch=2, frames=2, size=32):
    """Random normalised frames in our layout (B, T, H, W, 3) and in torch's (B T, 3, H, W)."""
    video = rng.normal(size=(batch, frames, size, size, 3)).astype(np.float32)
    return video, np.ascontiguousarray(video.reshape(-1, size, size, 3).transpose(0, 3, 1, 2))
