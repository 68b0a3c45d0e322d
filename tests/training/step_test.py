"""The training step: equal results on every mesh, with microbatches, with rematerialisation."""

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
from coco_jax.training.step import DROPOUT_STREAM, gradients, make_program


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
    """Compiled as a whole, which is much faster than one compilation per operation."""
    return model.losses(batch)


@pytest.fixture(scope="module")
def program_of(data_dir):
    """Returns the tiny config with changes and its program, which tests with the same changes share.

    On eight devices the mesh is data x fsdp x tensor = 2 x 2 x 2.
    """
    from conftest import tiny_config

    made = {}

    def make(devices=1, **changes):
        key = (devices, *sorted(changes.items()))
        if key not in made:
            config = tiny_config(data_dir, **changes)
            if devices == 8:
                config.mesh.update(data=2, fsdp=2, tensor=2)
            mesh = sharding.make_mesh(config, jax.devices()[:devices])
            made[key] = config, make_program(config, mesh)
        return made[key]

    return make


ALL_TERMS = {"model__lambda_invariant": 0.5}  # every term of the loss


def run(config, program, batches):
    """The losses of a step on each batch, and the parameters after them."""
    key = jax.random.key(config.seed)
    state, losses = program.init(key), []
    for batch in batches:
        state, terms = program.step(state, batch, key)
        losses.append(float(terms["loss"]))
    return np.array(losses), state.params


def test_eight_devices_give_the_same_losses_as_one(program_of):
    """data x fsdp x tensor = 2 x 2 x 2, six steps, on real batches of the benchmark."""
    from coco_jax.data.loader import TrainLoader

    one, program = program_of(**ALL_TERMS)
    task = make_task(one)
    loader = TrainLoader(task.dataset.records, task.plan.train, one)
    batches = []
    for step in range(6):
        local = next(loader)
        labels = task.seen_label[local["index"]].astype(np.int32)
        batches.append(Batch(video=local["video"], label=labels, **task.step_texts(step)))
    losses, _ = run(one, program, batches)
    sharded, sharded_params = run(*program_of(8, **ALL_TERMS), batches)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(sharded, losses, atol=1e-4)
    kernel = sharded_params["video"]["spatial"]["layers"][0]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def test_optimizer_moments_have_the_sharding_of_their_parameters(tiny):
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


@pytest.fixture(scope="module")
def gradient_of(program_of):
    """Returns the loss terms of a step, and a multiple of its gradient."""

    def measure(devices, **changes):
        config, program = program_of(devices, **ALL_TERMS, **changes)
        key = jax.random.key(0)
        state, terms = program.step(program.init(key), random_batch(config), key)
        # Adam's first moment after one step is a multiple of the (clipped) gradient.
        return jax.tree.map(np.asarray, (terms, state.opt_state[1].mu))

    return measure


@pytest.mark.parametrize("devices", [1, 8])
def test_microbatches_give_the_gradient_of_the_whole_batch(gradient_of, devices):
    """Every video is contrasted with the whole batch, also with microbatches."""
    whole, cut = gradient_of(1), gradient_of(devices, optimizer__microbatches=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, cut)


def test_microbatches_propagate_gradients_through_the_same_dropout_masks(tiny):
    """With dropout the gradient equals that of the loss over the same masked embeddings."""
    config = tiny(
        video_tower__dropout=0.5, video_tower__temporal="mean", ablation="label", data__batch=8
    )
    graph, params, rest = nnx.split(CoCo(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    batch, key = random_batch(config), jax.random.key(1)

    def model_of(params):
        return nnx.merge(graph, params, rest)

    def loss(params):
        video_key, text_key = jax.random.split(key)
        parts = zip(
            [batch["video"][i::2] for i in range(2)], jax.random.split(video_key), strict=True
        )
        model = model_of(params)
        v_2bD = jnp.stack([model.embed_videos(*part) for part in parts])
        v_BD = jnp.swapaxes(v_2bD, 0, 1).reshape(8, -1)
        return model.losses_of_embeddings(v_BD, batch, text_key)["loss"]

    want = jax.jit(jax.grad(loss))(params)
    got, _ = jax.jit(lambda params: gradients(model_of, params, batch, key, 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_dropout_and_initial_parameters_use_different_random_streams(tiny):
    """Parameters are initialised with `fold_in(key, n)` for small n."""
    key = jax.random.key(0)
    dropout = jax.random.fold_in(jax.random.fold_in(key, DROPOUT_STREAM), 0)
    initial = [jax.random.fold_in(key, n) for n in range(1000)]
    assert not any(bool((dropout == other).all()) for other in initial)
    assert DROPOUT_STREAM > 1_000_000


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_each_ablation_has_its_loss_terms_and_no_others(tiny, ablation):
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
def test_every_parameter_has_a_gradient(tiny, pool):
    config = tiny(cycle__pool=pool)
    graph, params, rest = nnx.split(CoCo(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    batch = random_batch(config)
    grads = jax.jit(jax.grad(lambda p: nnx.merge(graph, p, rest).losses(batch)["loss"]))(params)
    flat = {sharding.path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}
    # The bias of a key adds the same to all logits of a softmax, so its gradient is zero.
    without = {name for name, grad in flat.items() if not np.abs(grad).max() > 0}
    assert all("key/bias" in name for name in without), without


def test_bfloat16_applies_to_activations_only(tiny):
    config = tiny(model__dtype="bfloat16")
    model = CoCo(config, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype("float32")
    }
    terms = nnx.eval_shape(losses_of, model, random_batch(config))
    assert all(value.dtype == jnp.float32 for value in terms.values())
    video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.bfloat16)
    assert nnx.eval_shape(lambda m, x: m.video(x), model, video).dtype == jnp.bfloat16


def test_remat_does_not_change_losses(program_of):
    config, _ = program_of(**ALL_TERMS)
    batches = [random_batch(config, step) for step in range(2)]
    plain, _ = run(*program_of(**ALL_TERMS), batches)
    again, _ = run(*program_of(**ALL_TERMS, model__remat=True), batches)
    np.testing.assert_allclose(plain, again, rtol=1e-5)


def test_dropout_is_on_in_training_and_off_in_evaluation(tiny):
    config = tiny(video_tower__dropout=0.5)
    model = CoCo(config, rngs=nnx.Rngs(0))
    embed = nnx.jit(lambda model, *args: model.embed_videos(*args))
    video = random_batch(config)["video"]
    still = [embed(model, video) for _ in range(2)]
    noisy = [embed(model, video, jax.random.key(i)) for i in range(2)]
    np.testing.assert_array_equal(*still)
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3


def test_padding_does_not_change_a_text_embedding(tiny):
    config = tiny()
    model = CoCo(config, rngs=nnx.Rngs(0))
    embed = nnx.jit(lambda model, ids: model.embed_texts(ids))
    ids = jnp.zeros((1, 1, config.text.length), jnp.int32).at[0, 0, :3].set(jnp.array([5, 6, 7]))
    np.testing.assert_allclose(embed(model, ids), embed(model, ids[..., :3]), atol=1e-5)


def test_learning_rate_multipliers_scale_updates(tiny):
    frozen = tiny(
        optimizer__learning_rate_multipliers=((r"text/.*", 0.0), (r".*", 1.0)), optimizer__warmup=0,
        ablation="label", video_tower__temporal="mean",
    )  # fmt: skip
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


def test_mesh_that_does_not_fit_the_devices_is_an_error(tiny):
    config = tiny(mesh__fsdp=3)
    with pytest.raises(UserError, match=r"data=-1 x fsdp=3 x tensor=1 does not fit 8 devices"):
        sharding.make_mesh(config)


def test_models_and_step_import_without_tensorflow_clu_and_grain():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None\n"
        "sys.modules['clu'] = None; sys.modules['grain'] = None\n"
        "import coco_jax.models.coco, coco_jax.training.step, coco_jax.training.optimizer"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_and_its_cli_import_without_jax():
    """Therefore `coco-jax --help` and `import coco_jax` are fast."""
    import subprocess
    import sys

    code = "import sys; sys.modules['jax'] = None; import coco_jax, coco_jax.cli"
    subprocess.run([sys.executable, "-c", code], check=True)
