"""Tests of published weights in a run: sharding, trainable parameters, interpolation, presets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from coco_jax import presets, sharding, weights
from coco_jax.config import validate
from coco_jax.models.coco import CoCo
from coco_jax.sharding import path_of
from coco_jax.training.checkpoint import Checkpoints
from coco_jax.training.optimizer import trainable_mask
from coco_jax.training.step import make_program
from tests.helpers import towers
from tests.training.step_test import random_batch


def tiny(config):
    """A CLIP so small that a step takes milliseconds."""
    presets.apply(config, "clip_b16")
    config.video_tower.update(size=16, patch=8, width=16, heads=2, depth=1, frames=2)
    config.text.update(length=6, vocabulary=50, templates=("{}",), descriptions=2)
    config.text_tower.update(width=16, heads=2, depth=1)
    config.model.dim = 8
    config.data.batch = 8
    config.optimizer.update(steps=4, warmup=0)


def checkpoint(config) -> dict[str, np.ndarray]:
    """A random CLIP checkpoint of the config's size."""
    rng, found = np.random.default_rng(0), {}

    def put(name, *shape):
        found[name] = (0.2 * rng.normal(size=shape)).astype(np.float32)

    def pair(name, rows, columns):
        put(f"{name}.weight", *((rows, columns) if columns else (rows,)))
        put(f"{name}.bias", rows)

    for part, tower in (("vision_model", config.video_tower), ("text_model", config.text_tower)):
        width = tower.width
        for i in range(tower.depth):
            layer = f"{part}.encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                pair(f"{layer}.self_attn.{name}", width, width)
            pair(f"{layer}.layer_norm1", width, 0)
            pair(f"{layer}.layer_norm2", width, 0)
            pair(f"{layer}.mlp.fc1", 4 * width, width)
            pair(f"{layer}.mlp.fc2", width, 4 * width)
    video, text = config.video_tower.width, config.text_tower.width
    put("vision_model.embeddings.class_embedding", video)
    put("vision_model.embeddings.patch_embedding.weight", video, 3, 8, 8)
    put("vision_model.embeddings.position_embedding.weight", 5, video)
    for name in ("vision_model.pre_layrnorm", "vision_model.post_layernorm"):
        pair(name, video, 0)
    put("visual_projection.weight", config.model.dim, video)
    put("text_model.embeddings.token_embedding.weight", config.text.vocabulary, text)
    put("text_model.embeddings.position_embedding.weight", config.text.length, text)
    pair("text_model.final_layer_norm", text, 0)
    put("text_projection.weight", config.model.dim, text)
    found["logit_scale"] = np.array(2.0, np.float32)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    save_file(checkpoint(towers.make_config(tiny, path)), path)
    return path


def program_of(config, devices=1):
    return make_program(config, sharding.make_mesh(config, jax.devices()[:devices]))


def flat(params):
    return {path_of(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}


def test_loaded_parameters_keep_the_sharding_of_the_rules(path):
    config = towers.make_config(tiny, path)
    config.mesh.update(data=2, fsdp=2, tensor=2)
    program = program_of(config, 8)
    params = program.init(jax.random.key(0)).params
    loaded = weights.load(config, params)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), loaded, params)
    kernel = loaded["video"]["spatial"]["layers"][0]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    wanted = checkpoint(config)["vision_model.encoder.layers.0.mlp.fc1.weight"].T
    np.testing.assert_array_equal(kernel, wanted)
    np.testing.assert_allclose(loaded["log_tau"], -2.0)


CASES = {  # (video_tower.trainable, text_tower.trainable, temporal): tower parameters that train
    ("none", "none", "transformer"): r"video/temporal/",
    ("lora", "lora", "divided"): r"(video|text)/.*/lora_|video/spatial/.*/mixer/",
    ("all", "none", "mean"): r"video/",
}


@pytest.mark.parametrize(("video", "text", "temporal"), CASES)
def test_only_trainable_parameters_change_and_have_moments(path, video, text, temporal):
    import re

    config = towers.make_config(
        tiny,
        path,
        video_tower__trainable=video,
        text_tower__trainable=text,
        video_tower__temporal=temporal,
    )
    program = program_of(config)
    key = jax.random.key(0)
    state = program.init(key)
    state = state._replace(params=weights.load(config, state.params))
    before = flat(state.params)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    wanted = [
        name
        for name in before
        if name.startswith(("video_out", "text_out", "log_tau"))
        or re.match(CASES[video, text, temporal], name)
    ]
    batch = random_batch(config)
    for _ in range(2):  # modules behind a zero weight get a gradient in the second step only
        state, _ = program.step(state, batch, key)
    after = flat(state.params)
    moved = {name for name in before if (before[name] != after[name]).any()}
    silent = {
        name for name in wanted if name.endswith("key/bias")
    }  # a key's bias does not change a softmax
    assert set(wanted) - moved <= silent and moved <= set(wanted)
    # Two moments for each trainable parameter that is not a scalar.
    assert sorted(x.shape for x in moments) == sorted(
        2 * [before[name].shape for name in wanted if before[name].ndim]
    )


def test_run_with_frozen_parameters_is_restored(path, tmp_path):
    config = towers.make_config(
        tiny, path, video_tower__trainable="lora", text_tower__trainable="none"
    )
    program = program_of(config)
    key = jax.random.key(0)
    state, _ = program.step(program.init(key), random_batch(config), key)
    wanted = jax.tree.map(np.asarray, state)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1, program)
    checkpoints.save(state, config, 1)
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path / "checkpoints", 1, program).restore()
    jax.tree.map(np.testing.assert_array_equal, wanted, jax.tree.map(np.asarray, restored))


def test_interpolation_between_trained_and_published_weights(path):
    config = towers.make_config(
        tiny,
        path,
        video_tower__temporal="divided",
        video_tower__trainable="lora",
        optimizer__learning_rate=0.01,
    )
    program, key = program_of(config), jax.random.key(0)
    start = weights.load(config, program.init(key).params)
    kept = jax.tree.map(np.asarray, start)
    state = program.init(key)._replace(params=start)
    batch = random_batch(config)
    for _ in range(3):
        state, _ = program.step(state, batch, key)
    video = batch["video"]
    outs = {}
    for share in (0.0, 0.5, 1.0):
        config.eval.interpolate = share
        params = weights.interpolate(config, state.params, kept)
        outs[share] = np.asarray(program.embed_videos(params, video))
        np.testing.assert_array_equal(params["log_tau"], state.params["log_tau"])
    np.testing.assert_array_equal(outs[0.0], program.embed_videos(state.params, video))
    # At 1.0 added modules are the identity: the published tower, applied to each frame.
    plain = towers.make_config(tiny, path)
    want = np.asarray(towers.load(plain).embed_videos(video))
    np.testing.assert_allclose(outs[1.0], want, atol=1e-5)
    gaps = {share: np.abs(out - want).mean() for share, out in outs.items()}
    assert gaps[1.0] < 1e-5 < gaps[0.5] < gaps[0.0]


def test_config_without_weights_returns_the_same_parameters(tiny):
    config = tiny()
    params = {"video": jnp.ones(3)}
    assert weights.load(config, params) is params
    assert all(jax.tree.leaves(trainable_mask(config, params)))


def check_forward(config):
    """Checks the output shapes of both towers with `jax.eval_shape`."""
    graph, params, rest, _ = towers.shapes_of(config)
    video = (2, config.video_tower.frames, config.video_tower.size, config.video_tower.size, 3)
    clip = jax.ShapeDtypeStruct(video, jnp.uint8)
    if config.video_tower.kind == "features":
        clip = jax.ShapeDtypeStruct((2, config.video_tower.feature_dim), jnp.float32)
    ids = jax.ShapeDtypeStruct((3, 2, config.text.length), jnp.int32)

    def both(params, clip, ids) -> tuple[jax.Array, jax.Array]:
        model: CoCo = nnx.merge(graph, nnx.State(params), rest)
        return model.embed_videos(clip), model.embed_texts(ids)

    v, t = jax.eval_shape(both, params, clip, ids)
    assert (v.shape, t.shape) == ((2, config.model.dim), (3, 2, config.model.dim))


PRESETS = {  # published number of parameters in millions: (video tower, text tower)
    "clip_b32": (87.8, 63.4),
    "clip_b16": (86.2, 63.4),
    "clip_l14": (304, 124),
    "open_clip_h14": (632, 354),
    "siglip_b16": (92.9, 110),
    "siglip_l16": (316, 336),
    "siglip2_b16": (92.9, 282),
    "siglip2_l16": (316, 565),
    "siglip2_so400m": (428, 708),
    "videoprism_base": (138, 110),
    "minilm": (0, 22.6),
    "bert_base": (0, 109),
    "mpnet": (0, 109),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_number_of_parameters(preset):
    """Counts parameters by shape, and runs an abstract forward pass."""
    config = towers.make_config(preset, "/weights")
    config.model.dtype = "bfloat16"
    config.data.name = "some"
    config.text.tokenizer = "/weights"
    if not config.video_tower.weights:
        config.video_tower.kind = "features"
    if preset == "videoprism_base":
        config.video_tower.frames = 16
    validate(config)
    depths = config.video_tower.depth, config.text_tower.depth
    # All layers have the same size, so two depths determine the total.
    sizes = []
    for depth in (1, 2):
        config.video_tower.depth = config.text_tower.depth = depth
        shapes = towers.shapes_of(config)[-1]
        sizes.append(
            [
                sum(
                    int(np.prod(s))
                    for n, s in shapes.items()
                    if n.startswith((f"{p}/", f"{p}_out/"))
                )
                for p in ("video", "text")
            ]
        )
    check_forward(config)
    one, two = np.array(sizes)
    counts = one + (np.array(depths) - 1) * (two - one)
    for part, count, millions in zip(("video", "text"), counts, PRESETS[preset], strict=True):
        if millions:
            assert count / 1e6 == pytest.approx(millions, rel=0.02), part
