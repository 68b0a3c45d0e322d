"""The training step and the embedding functions: pure functions over pytrees, jitted on a mesh."""

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
from coco_jax.config import uses_definitions
from coco_jax.models.closed_form import ClosedForm, EpisodeBatch
from coco_jax.models.coco import Batch, CoCo
from coco_jax.models.initial import ParamKeys
from coco_jax.training.optimizer import all_trainable, make_optimizer, schedule, trainable_mask

Params = dict[str, Any]
# Folded into the key of a run for dropout; initialisation folds in small numbers.
DROPOUT_STREAM = 0x64726F70


class State(NamedTuple):
    """The state that a training step updates."""

    step: jax.Array  # int32 scalar, number of completed steps
    params: Params  # float32
    opt_state: Any


class Program(NamedTuple):
    """The jitted functions of a run on one mesh.

    A closed form (`config.alignment`) has no text tower: `embed_labels`, `embed_texts` and
    `text_features` cannot be called.
    """

    mesh: Mesh
    init: Callable[[jax.Array], State]  # of a PRNG key
    step: Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]
    embed_videos: Callable[[Params, ArrayLike], jax.Array]
    embed_labels: Callable[[Params, ArrayLike], jax.Array]
    embed_texts: Callable[[Params, ArrayLike], jax.Array]
    text_features: Callable[[Params, ArrayLike], jax.Array]  # of the text tower, `X L` to `X W`
    scores: Callable[..., jax.Array]
    gather: Callable[[jax.Array], jax.Array]  # replicates a sharded array
    any: Callable[[jax.Array], jax.Array]  # whether a sharded array has an element other than 0
    fingerprint: Callable[[Any], jax.Array]  # of a pytree: uint32, a checksum of each array
    abstract: State  # shapes, dtypes and shardings


def make_program(config: ConfigDict, mesh: Mesh) -> Program:
    """Builds the jitted functions of a run. `step` donates its input state: do not use it afterwards.

    The functions do not depend on the seed: runs that differ only in the seed share the compiled code.
    """
    optimizer, learning_rate = make_optimizer(config), schedule(config)

    is_learned = config.alignment == "learned"

    def create(key: jax.Array) -> Any:
        if not is_learned:
            return ClosedForm(config)
        return CoCo(config, rngs=ParamKeys(key), mesh=mesh)

    # The structure only. `init` creates the parameters sharded, never all on one device.
    graph = nnx.graphdef(nnx.eval_shape(lambda: create(jax.random.key(0))))

    def model_of(params: Params) -> Any:
        return nnx.merge(graph, nnx.State(params))

    def init(key: jax.Array) -> State:
        params = nnx.to_pure_dict(nnx.state(create(key), nnx.Param))
        return State(jnp.int32(0), params, optimizer.init(params))

    def trainable_model(params: Params) -> Any:
        return model_of(stop_gradient_if_frozen(config, params))

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        # `key` also initialised the parameters, so dropout needs a different stream.
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, DROPOUT_STREAM), state.step)
        grads, terms = gradients(
            trainable_model, state.params, batch, dropout_key, config.optimizer.microbatches
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Outside the bounds the clipped temperature has no gradient, so it could not return.
        bounds = (math.log(config.model.tau_min), math.log(config.model.tau_max))
        params = params | {"log_tau": jnp.clip(params["log_tau"], *bounds)}
        measured = {
            "gradient_norm": optax.global_norm(grads),
            "learning_rate": learning_rate(state.step),
        }
        return State(state.step + 1, params, opt_state), terms | measured

    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.shard_params(shapes, mesh, config.mesh.rules)
    abstract = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec),
        shapes,
        shardings,
    )
    replicated = NamedSharding(mesh, P())
    by_video = NamedSharding(mesh, sharding.BATCH)
    # Videos are split over the devices; texts are replicated.
    batch_type = Batch if is_learned else EpisodeBatch
    batch_shardings = dict.fromkeys(batch_type.__annotations__, replicated) | {
        "video": by_video,
        "label": by_video,
    }
    jit = functools.partial(jax.jit, out_shardings=replicated)
    return Program(
        mesh=mesh,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            in_shardings=(shardings, batch_shardings, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
        ),
        embed_videos=jit(
            lambda params, video: model_of(params).embed_videos(video),
            in_shardings=(shardings.params, by_video),
        ),
        embed_labels=jit(
            lambda params, ids_KPL: model_of(params).embed_labels(ids_KPL),
            in_shardings=(shardings.params, replicated),
        ),
        embed_texts=jit(
            lambda params, ids_XYL: model_of(params).embed_texts(ids_XYL),
            in_shardings=(shardings.params, replicated),
        ),
        text_features=jit(
            lambda params, ids_XL: model_of(params).text(
                sharding.constrain(ids_XL, mesh, sharding.BATCH)
            ),
            in_shardings=(shardings.params, replicated),
        ),
        scores=jit(lambda params, *features: model_of(params).scores(*features)),
        gather=jit(lambda x: x),
        any=jit(jnp.any),
        fingerprint=jit(fingerprint),
        abstract=abstract,
    )


def stop_gradient_if_frozen(config: ConfigDict, params: Params) -> Params:
    """Stops the gradient at frozen parameters, so that the backward pass skips them."""
    if all_trainable(config):
        return params
    return jax.tree.map(
        lambda x, trainable: x if trainable else jax.lax.stop_gradient(x),
        params,
        trainable_mask(config, params),
    )


def gradients(
    model_of: Callable[[Params], Any],
    params: Params,
    batch: Any,
    key: jax.Array,
    microbatches: int,
) -> tuple[Params, dict[str, jax.Array]]:
    """The gradient of the loss over the whole batch, and the terms of the objective.

    With microbatches only the activations of one are in memory. The result is the same, except for
    rounding and dropout masks: each video is contrasted with the whole batch, and texts are embedded
    once. This is GradCache (arXiv 2101.06983): embed the videos without gradients, take
    the gradient of the loss with respect to their embeddings, then embed each microbatch again and
    propagate that gradient through the video tower.

    Args:
      model_of: builds the model, CoCo or ClosedForm, from its parameters.
      params: of the model.
      batch: of B videos and the texts of all classes.
      key: for dropout.
      microbatches: number of parts of the batch; must divide B.
    """

    def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        terms = model_of(params).losses(batch, key)
        return terms["loss"], terms

    if microbatches == 1:
        return jax.grad(loss, has_aux=True)(params)

    def embed(params: Params, video: jax.Array, key: jax.Array) -> jax.Array:
        return model_of(params).embed_videos(video, key)

    video_key, text_key = jax.random.split(key)
    # Microbatch i has videos i, i + microbatches, ...: no video moves to another device.
    video = batch["video"]
    parts = jnp.moveaxis(video.reshape(-1, microbatches, *video.shape[1:]), 1, 0)
    keys = jax.random.split(video_key, microbatches)
    _, v_IbD = jax.lax.scan(lambda _, part: (None, embed(params, *part)), None, (parts, keys))

    def loss_of_embeddings(
        params: Params, v_IbD: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        v_BD = jnp.moveaxis(v_IbD, 0, 1).reshape(-1, v_IbD.shape[-1])
        terms = model_of(params).losses_of_embeddings(v_BD, batch, text_key)
        return terms["loss"], terms

    (grads, v_grad_IbD), terms = jax.grad(loss_of_embeddings, (0, 1), has_aux=True)(params, v_IbD)

    def add_video_gradient(
        total: Params, part: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[Params, None]:
        video, key, v_grad_bD = part
        _, pull_back = jax.vjp(lambda params: embed(params, video, key), params)
        return jax.tree.map(jnp.add, total, pull_back(v_grad_bD)[0]), None

    grads, _ = jax.lax.scan(add_video_gradient, grads, (parts, keys, v_grad_IbD))
    return grads, terms


def fingerprint(tree: Any) -> jax.Array:
    """A uint32 checksum of each array, from its bits and their positions; the same on every mesh.

    Unlike sums of floats, sums of integers modulo 2^32 do not depend on the order.
    """

    def checksum(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        position = sum(
            (
                jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
                * jnp.uint32(math.prod(x.shape[axis + 1 :]))
                for axis in range(x.ndim)
            ),
            start=jnp.uint32(0),
        )
        return (bits * (2 * position + 1)).sum(dtype=jnp.uint32)  # an odd factor loses no bit

    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])


def abstract_batch(config: ConfigDict, seen: int, pool: int) -> Batch:
    """Shapes and dtypes of a batch of CoCo with `seen` seen classes and `pool` classes in the pool."""
    video, text = config.video_tower, config.text
    frozen = config.text_tower.trainable == "none"
    labels = len(text.templates) + uses_definitions(config)
    width, dtype = (config.text_tower.width, "bfloat16") if frozen else (text.length, "int32")

    def array(dtype: str, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def texts(classes: int, each: int) -> Any:
        return array(dtype, classes, each, width)

    count = config.data.batch
    if video.kind == "features":
        inputs = array("float32", count, video.feature_dim)
    else:
        inputs = array("uint8", count, video.frames, video.size, video.size, 3)
    return Batch(
        video=inputs,
        label=array("int32", count),
        label_ids=texts(seen, labels),
        description_ids=texts(seen, text.descriptions),
        pool_label_ids=texts(pool, labels),
        pool_description_ids=texts(pool, text.descriptions),
        episode=array("int32", seen),
    )


def model_flops(config: ConfigDict, batch: Any) -> float:
    """FLOPs of one training step over the whole batch, without rematerialisation.

    XLA counts the FLOPs of the lowered program in bfloat16 for one CPU device, without compiling it.

    Args:
      config: of the run.
      batch: the input of a step, or `abstract_batch`.
    """
    with jax.default_device(device := jax.local_devices(backend="cpu")[0]):
        plain = config.copy_and_resolve_references()
        plain.model.remat, plain.optimizer.microbatches = False, 1
        # In float32, programs for CPUs use Winograd's convolutions, and loop over the heads of
        # attention, which XLA counts once.
        plain.model.dtype = "bfloat16"
        plain.mesh.update(data=1, fsdp=1, tensor=1)
        program = make_program(
            plain, jax.make_mesh((1, 1, 1), sharding.AXES, (AxisType.Auto,) * 3, devices=[device])
        )
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        lowered = program.step.lower(  # type: ignore[attr-defined]
            program.abstract, shapes, jax.eval_shape(lambda: jax.random.key(0))
        )
        return float(lowered.cost_analysis()["flops"])


def global_batch(mesh: Mesh, local: Any) -> jax.Array:
    """Makes a global array, sharded by video, from the part of each process."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, sharding.BATCH), local)
