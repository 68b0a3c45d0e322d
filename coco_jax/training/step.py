"""One training step and one embedding step: pure functions over pytrees, jitted onto a mesh."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from coco_jax import sharding
from coco_jax.models.coco import Batch, CoCo
from coco_jax.training.optimizer import all_trainable, make_optimizer, schedule, trainable_mask

Params = dict[str, Any]


class State(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # int32 scalar, steps done
    params: Params  # float32
    opt_state: Any


class Program(NamedTuple):
    """The compiled pieces of a run on one mesh, and where their arguments live."""

    mesh: Mesh
    init: Callable[[jax.Array], State]  # of a key
    step: Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]
    embed_videos: Callable[[Params, ArrayLike], jax.Array]
    embed_labels: Callable[[Params, ArrayLike], jax.Array]
    embed_texts: Callable[[Params, ArrayLike], jax.Array]
    text_features: Callable[[Params, ArrayLike], jax.Array]  # the text tower alone, ids X L to X W
    scores: Callable[..., jax.Array]
    gather: Callable[[jax.Array], jax.Array]  # a split array whole on every device
    any: Callable[[jax.Array], jax.Array]  # whether any element of a split array is not 0
    fingerprint: Callable[[State], jax.Array]  # uint32, one number an array
    abstract: State  # shapes, dtypes and shardings


def make_program(config: ConfigDict, mesh: Mesh) -> Program:
    """Builds the run's functions. `step` donates its state: keep only what it returns.

    The seed is no part of them: runs that differ in it alone share what was compiled.
    """
    optimizer, rate = make_optimizer(config), schedule(config)

    def create(key: jax.Array) -> CoCo:
        return CoCo(config, rngs=nnx.Rngs(params=key), mesh=mesh)

    # The structure alone: nothing of the model is ever made on one device.
    graph = nnx.graphdef(nnx.eval_shape(lambda: create(jax.random.key(0))))

    def model_of(params: Params) -> CoCo:
        return nnx.merge(graph, nnx.State(params))

    def init(key: jax.Array) -> State:
        params = nnx.to_pure_dict(nnx.state(create(key), nnx.Param))
        return State(jnp.int32(0), params, optimizer.init(params))

    def held(params: Params) -> Params:
        """Without gradients of what does not learn: the backward pass then leaves it out."""
        if all_trainable(config):
            return params
        return jax.tree.map(
            lambda x, free: x if free else jax.lax.stop_gradient(x),
            params,
            trainable_mask(config, params),
        )

    def loss(params: Params, batch: Batch, key: jax.Array):
        params = held(params)
        terms = model_of(params).losses(batch, key)
        return terms["loss"], terms

    def gradients(params: Params, batch: Batch, key: jax.Array):
        """Means over `accumulate` microbatches; the videos of each are contrasted among themselves."""
        grad = jax.grad(loss, has_aux=True)
        count = config.optimizer.microbatches
        if count == 1:
            return grad(params, batch, key)
        # Strided, so that each device's share of every microbatch is what it already holds.
        videos = {"video": batch["video"], "label": batch["label"]}
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), videos
        )

        def one(total, part):
            i, part = part
            got = grad(params, {**batch, **part}, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, got), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad, params, {**batch, **first}, key))
        total, _ = jax.lax.scan(one, zeros, (jnp.arange(count), parts))
        return jax.tree.map(lambda x: x / count, total)

    def step(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        grads, terms = gradients(state.params, batch, jax.random.fold_in(key, state.step))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Kept within its bounds: outside, the clipped temperature would have no gradient.
        bounds = (math.log(config.model.tau_min), math.log(config.model.tau_max))
        params = params | {"log_tau": jnp.clip(params["log_tau"], *bounds)}
        measured = {"gradient_norm": optax.global_norm(grads), "rate": rate(state.step)}
        return State(state.step + 1, params, opt_state), terms | measured

    shapes = jax.eval_shape(init, jax.random.key(0))
    places = sharding.shard_params(shapes, mesh, config.mesh.rules)
    abstract = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, places
    )
    everywhere = NamedSharding(mesh, P())
    split = NamedSharding(mesh, sharding.BATCH)
    # Videos are split over the devices, texts are the same everywhere.
    batch_places = dict.fromkeys(Batch.__annotations__, everywhere) | {
        "video": split,
        "label": split,
    }
    jit = functools.partial(jax.jit, out_shardings=everywhere)
    return Program(
        mesh=mesh,
        init=jax.jit(init, out_shardings=places),
        step=jax.jit(
            step,
            in_shardings=(places, batch_places, everywhere),
            out_shardings=(places, everywhere),
            donate_argnums=0,
        ),
        embed_videos=jit(
            lambda params, video: model_of(params).embed_videos(video),
            in_shardings=(places.params, split),
        ),
        embed_labels=jit(
            lambda params, ids_KPL: model_of(params).embed_labels(ids_KPL),
            in_shardings=(places.params, everywhere),
        ),
        embed_texts=jit(
            lambda params, ids_XYL: model_of(params).embed_texts(ids_XYL),
            in_shardings=(places.params, everywhere),
        ),
        text_features=jit(
            lambda params, ids_XL: model_of(params).text(
                sharding.constrain(ids_XL, mesh, sharding.BATCH)
            ),
            in_shardings=(places.params, everywhere),
        ),
        scores=jit(lambda params, *features: model_of(params).scores(*features)),
        gather=jit(lambda x: x),
        any=jit(jnp.any),
        fingerprint=jit(fingerprint),
        abstract=abstract,
    )


def fingerprint(tree: Any) -> jax.Array:
    """A number of the bits of each array and their places; the same on every mesh.

    Sums of integers modulo 2^32 do not depend on their order, as sums of floats would.
    """

    def one(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = sum(
            (
                jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
                * jnp.uint32(math.prod(x.shape[axis + 1 :]))
                for axis in range(x.ndim)
            ),
            start=jnp.uint32(0),
        )
        return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)  # odd factors lose no bit

    return jnp.stack([one(leaf) for leaf in jax.tree.leaves(tree)])


def abstract_batch(config: ConfigDict, seen: int, pool: int) -> Batch:
    """Shapes and dtypes of a step's batch for so many seen classes and classes of the pool."""
    video, text = config.video_tower, config.text
    frozen = config.text_tower.trainable == "none"
    width, dtype = (config.text_tower.width, "bfloat16") if frozen else (text.length, "int32")

    def of(dtype: str, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def texts(classes: int, each: int) -> Any:
        return of(dtype, classes, each, width)

    count = config.data.batch
    clips = (count, video.frames, video.size, video.size, 3)
    return Batch(
        video=of("float32", count, video.feature_dim) if video.kind == "features" else of("uint8", *clips),
        label=of("int32", count),
        label_ids=texts(seen, len(text.templates)),
        description_ids=texts(seen, text.descriptions),
        pool_label_ids=texts(pool, len(text.templates)),
        pool_description_ids=texts(pool, text.descriptions),
        episode=of("int32", seen),
    )  # fmt: skip


def model_flops(config: ConfigDict, batch: Batch) -> float:
    """FLOPs that one step needs over the whole batch, nothing computed twice (no rematerialisation).

    Counted by XLA on the program as written, on one CPU device; nothing is compiled. `batch` is
    what a step takes, or `abstract_batch`.
    """
    with jax.default_device(device := jax.local_devices(backend="cpu")[0]):
        plain = config.copy_and_resolve_references()
        plain.model.remat, plain.optimizer.microbatches = False, 1
        plain.mesh.update(data=1, fsdp=1, tensor=1)
        program = make_program(plain, jax.make_mesh(
            (1, 1, 1), sharding.AXES, (AxisType.Auto,) * 3, devices=[device]
        ))  # fmt: skip
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        lowered = program.step.lower(  # type: ignore[attr-defined]
            program.abstract, shapes, jax.eval_shape(lambda: jax.random.key(0))
        )
        return float(lowered.cost_analysis()["flops"])


def global_batch(mesh: Mesh, local: Any) -> jax.Array:
    """One global array, split over the mesh, of what each process holds of it."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, sharding.BATCH), local)
