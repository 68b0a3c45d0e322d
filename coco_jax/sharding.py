"""Where things live: a mesh from the config, and rules from parameter paths to its axes."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from coco_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # videos and texts are split over both; `tensor` sees them whole
CLASSES = P("tensor")  # embeddings of the classes, gathered from the axes above, and their scores


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `config.mesh`; one axis may be -1 and takes the devices that remain.

    Raises:
      UserError: the axes do not multiply to the number of devices or do not divide the batch, or the
        devices do not have the dtype.
    """
    devices = jax.devices() if devices is None else list(devices)
    if config.model.dtype == "float16" and devices[0].platform == "cpu":
        raise UserError(
            "config.model.dtype: XLA has no attention in float16 for CPUs; use bfloat16 or float32"
        )
    shape = [config.mesh[axis] for axis in AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(len(devices) // -int(np.prod(shape)), 1)
    if int(np.prod(shape)) != len(devices):
        axes = " x ".join(f"{axis}={config.mesh[axis]}" for axis in AXES)
        raise UserError(
            f"config.mesh: {axes} does not fit {len(devices)} devices; choose axes whose product it is"
        )
    split = shape[0] * shape[1]
    if config.data.batch % (split * config.optimizer.microbatches):
        raise UserError(
            f"config.data.batch: {config.data.batch} videos in {config.optimizer.microbatches} "
            f"microbatches does not divide over data x fsdp = {split}; choose a multiple"
        )
    if split % jax.process_count():
        raise UserError(
            f"config.mesh: data x fsdp = {split} does not divide over {jax.process_count()} "
            "processes, each of which reads its own videos"
        )
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices)


def constrain(x: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
    """Asks the compiler to lay an array out as `spec` says; without a mesh the array as it is."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def path_of(path: tuple[Any, ...]) -> str:
    """A pytree path as `video/spatial/layers/0/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shard_params(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Sequence[str | None]]]) -> Any:
    """The NamedSharding of each array: of the first rule whose expression matches its whole path.

    An axis that does not divide its dimension is dropped, and what no rule matches is replicated:
    small models run on big meshes. Optimizer moments have their parameter's path as a suffix, so
    the expressions are matched at any `/` of the path.
    """
    compiled = [(re.compile(rf"(.*/)?{expression}"), axes) for expression, axes in rules]

    def sharding_of(path: Any, leaf: Any) -> NamedSharding:
        name = path_of(path)
        for expression, axes in compiled:
            if expression.fullmatch(name) and len(axes) == leaf.ndim:
                sizes = zip(axes, leaf.shape, strict=True)
                fits = [a if a and n % mesh.shape[a] == 0 else None for a, n in sizes]
                return NamedSharding(mesh, P(*fits))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(sharding_of, tree)
