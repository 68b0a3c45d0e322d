"""The step as a function: what meshes, microbatches, seeds and precision may and may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax import sharding
from coco_jax.config import ABLATIONS
from coco_jax.data.task import make_task
from coco_jax.errors import UserError
from coco_jax.models.coco import Batch, CoCo
from coco_jax.training.step import make_program


def random_batch(config, seed=0, seen=6, pool=4) -> Batch:
    rng = np.random.default_rng(seed)
    batch, text, video = config.data.batch, config.text, config.video_tower

    def ids(count, each):
        return rng.integers(1, text.vocabulary, (count, each, text.length), dtype=np.int32)

    made = Batch(
        video=rng.integers(
            0, 256, (batch, video.frames, video.size, video.size, 3), dtype=np.uint8
        ),
        label=rng.integers(0, seen, batch, dtype=np.int32),
        label_ids=ids(seen, len(text.templates)),
        description_ids=ids(seen, text.descriptions),
        pool_label_ids=ids(pool, len(text.templates)),
        pool_description_ids=ids(pool, text.descriptions),
        episode=rng.permutation(seen).astype(np.int32),
    )
    return jax.tree.map(jnp.asarray, made)


@nnx.jit
def losses_of(model, batch):
    """One compilation of the whole is much quicker than one of each operation."""
    return model.losses(batch)


def run(config, steps, devices=1, batches=None):
    """The losses of some steps and the parameters after them."""
    program = make_program(config, sharding.make_mesh(config, jax.devices()[:devices]))
    key = jax.random.key(config.seed)
    state, losses = program.init(key), []
    for step in range(steps):
        batch = random_batch(config, step) if batches is None else batches[step]
        state, terms = program.step(state, batch, key)
        losses.append(float(terms["loss"]))
    return np.array(losses), state.params


def test_eight_devices_give_the_loss_curve_of_one(tiny):
    """data x fsdp x tensor = 2 x 2 x 2, 20 steps, on real batches of the benchmark."""
    from coco_jax.data.loader import TrainLoader

    one = tiny(optimizer__steps=20, model__lambda_invariant=0.5)
    task = make_task(one)
    loader = TrainLoader(task.dataset.records, task.plan.train, one)
    batches = []
    for step in range(20):
        local = next(loader)
        labels = task.seen_label[local["index"]].astype(np.int32)
        batches.append(Batch(video=local["video"], label=labels, **task.step_texts(step)))
    eight = one.copy_and_resolve_references()
    eight.mesh.update(data=2, fsdp=2, tensor=2)
    losses, _ = run(one, 20, 1, batches)
    sharded, sharded_params = run(eight, 20, 8, batches)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(sharded, losses, atol=1e-4)
    kernel = sharded_params["video"]["spatial"]["layers"][0]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def test_the_optimizer_s_moments_lie_where_their_parameters_do(tiny):
    config = tiny()
    config.mesh.update(data=2, fsdp=2, tensor=2)
    program = make_program(config, sharding.make_mesh(config))
    state = program.abstract
    where = {
        sharding.path_of(path): leaf.sharding.spec
        for path, leaf in jax.tree.leaves_with_path(state.params)
    }
    moments = state.opt_state[1].mu
    for path, leaf in jax.tree.leaves_with_path(moments):
        assert leaf.sharding.spec == where[sharding.path_of(path)]
    assert any("fsdp" in str(spec) for spec in where.values())


def test_microbatches_sum_to_the_gradient_of_their_mean_loss(tiny):
    """The loss is the mean over microbatches, and so is its gradient."""
    config = tiny(optimizer__steps=1)
    batch = random_batch(config)
    whole, _ = run(config, 1, 1, [batch])
    cut = tiny(optimizer__steps=1, optimizer__microbatches=4)
    got, _ = run(cut, 1, 1, [batch])
    model = CoCo(config, rngs=nnx.Rngs(params=jax.random.key(0)))
    parts = [
        losses_of(model, {**batch, "video": batch["video"][i::4], "label": batch["label"][i::4]})[
            "loss"
        ]
        for i in range(4)
    ]
    np.testing.assert_allclose(got[0], np.mean(parts), rtol=1e-4)
    # With one video a class nothing but the number of candidates differs; Adam hides a scale, so
    # the gradient's norm is looked at: 4 copies of a microbatch have the gradient of one.
    same = {
        **batch,
        "video": jnp.repeat(batch["video"][:4], 4, 0),
        "label": jnp.repeat(batch["label"][:4], 4),
    }
    program = make_program(cut, sharding.make_mesh(cut, jax.devices()[:1]))
    key = jax.random.key(0)
    _, terms = program.step(program.init(key), same, key)
    part = {**batch, "video": batch["video"][:4], "label": batch["label"][:4]}
    alone = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
    _, one = alone.step(alone.init(key), part, key)
    np.testing.assert_allclose(terms["gradient_norm"], one["gradient_norm"], rtol=1e-3)
    assert abs(got[0] - whole[0]) > 1e-6  # contrasted within a microbatch: fewer negatives


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_has_its_terms_and_no_others(tiny, ablation):
    config = tiny(ablation=ablation)
    model = CoCo(config, rngs=nnx.Rngs(0))
    terms = losses_of(model, random_batch(config))
    expected = {"loss", "tau", "label"}
    expected |= {"description"} if ablation in ("label+desc", "full") else set()
    expected |= {"cycle"} if ablation in ("label+cycle", "full") else set()
    assert set(terms) == expected
    weights = {
        "label": 1.0,
        "description": config.model.lambda_desc,
        "cycle": config.model.lambda_cycle,
    }
    total = sum(weights[name] * terms[name] for name in expected - {"loss", "tau"})
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-6)


@pytest.mark.parametrize("pool", ["unseen", "episodic"])
def test_every_parameter_gets_a_gradient(tiny, pool):
    config = tiny(cycle__pool=pool)
    graph, params, rest = nnx.split(CoCo(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    batch = random_batch(config)
    grads = jax.jit(jax.grad(lambda p: nnx.merge(graph, p, rest).losses(batch)["loss"]))(params)
    flat = {sharding.path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}
    # Softmax does not see what a key's bias adds to all of its scores.
    silent = {name for name, grad in flat.items() if not np.abs(grad).max() > 0}
    assert all("key/bias" in name for name in silent), silent


def test_bfloat16_is_of_activations_alone(tiny):
    config = tiny(model__dtype="bfloat16")
    model = CoCo(config, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype("float32")
    }
    terms = nnx.eval_shape(losses_of, model, random_batch(config))
    assert all(value.dtype == jnp.float32 for value in terms.values())
    video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.bfloat16)
    assert nnx.eval_shape(lambda m, x: m.video(x), model, video).dtype == jnp.bfloat16


def test_remat_changes_memory_and_no_number(tiny):
    plain, _ = run(tiny(), 2)
    again, _ = run(tiny(model__remat=True), 2)
    np.testing.assert_allclose(plain, again, rtol=1e-5)


def test_dropout_is_on_in_training_and_off_in_evaluation(tiny):
    config = tiny(video_tower__dropout=0.5)
    model = CoCo(config, rngs=nnx.Rngs(0))
    video = random_batch(config)["video"]
    still = [model.embed_videos(video) for _ in range(2)]
    noisy = [model.embed_videos(video, jax.random.key(i)) for i in range(2)]
    np.testing.assert_array_equal(*still)
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3


def test_a_padded_text_is_the_text(tiny):
    """Padding is never looked at: more of it changes nothing."""
    config = tiny()
    model = CoCo(config, rngs=nnx.Rngs(0))
    ids = jnp.zeros((1, 1, config.text.length), jnp.int32).at[0, 0, :3].set(jnp.array([5, 6, 7]))
    np.testing.assert_allclose(model.embed_texts(ids), model.embed_texts(ids[..., :3]), atol=1e-5)


def test_groups_scale_the_rate_of_their_parameters(tiny):
    frozen = tiny(
        optimizer__learning_rate_multipliers=((r"text/.*", 0.0), (r".*", 1.0)), optimizer__warmup=0
    )
    program = make_program(frozen, sharding.make_mesh(frozen, jax.devices()[:1]))
    key = jax.random.key(0)
    before = jax.tree.map(np.asarray, program.init(key).params)
    state, _ = program.step(program.init(key), random_batch(frozen), key)
    moved = {
        sharding.path_of(path): bool((np.asarray(leaf) != old).any())
        for (path, leaf), old in zip(
            jax.tree.leaves_with_path(state.params), jax.tree.leaves(before), strict=True
        )
    }
    assert not any(moved[name] for name in moved if name.startswith("text/"))
    assert moved["video/embed/kernel"] and moved["text_out/kernel"]


def test_a_mesh_that_does_not_fit_says_so(tiny):
    config = tiny(mesh__fsdp=3)
    with pytest.raises(UserError, match=r"data=-1 x fsdp=3 x tensor=1 does not fit 8 devices"):
        sharding.make_mesh(config)


def test_models_import_without_tensorflow():
    """A GPU machine without TensorFlow can run the step (docs: the design's promise)."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None\n"
        "sys.modules['clu'] = None; sys.modules['grain'] = None\n"
        "import coco_jax.models.coco, coco_jax.training.step, coco_jax.sharding, coco_jax.training.optimizer"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_imports_in_half_a_second():
    import subprocess
    import sys
    import time

    subprocess.run([sys.executable, "-c", "import coco_jax"], check=True)  # writes bytecode
    times = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import coco_jax"], check=True)
        times.append(time.monotonic() - began)
    assert min(times) < 0.5
