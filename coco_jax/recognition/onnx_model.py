"""Converts a JAX function to ONNX with jax2onnx.

Before that, some operations are replaced by others with equal results: pooling, which jax2onnx writes
with more dimensions than ONNX Runtime supports; padding, which it cannot convert if the number of
clips is free; and of a choice between platforms, only the program for CPUs is kept.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.extend import core

from coco_jax.errors import UserError

# What jax2onnx raises for an operation that it cannot convert.
_UNCONVERTED = (
    NotImplementedError, TypeError, ValueError, KeyError, jax.core.InconclusiveDimensionOperation,
)  # fmt: skip


def to_onnx(function: Callable[[Any], jax.Array], shape: Sequence[int]) -> bytes:
    """An ONNX model with one input and one output.

    Args:
      function: of a batch of uint8 arrays; pure.
      shape: of one array. The size of the batch is free.

    Raises:
      UserError: jax2onnx is not installed, or cannot convert the function.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise UserError(
            '--format=onnx needs more packages: pip install "coco_jax[export]"'
        ) from error
    batch = jax.ShapeDtypeStruct((*export.symbolic_shape("B"), *shape), jnp.uint8)
    # Traced here, because jax2onnx replaces methods of Flax by others with fewer arguments.
    traced = jax.make_jaxpr(function)(batch)
    try:
        with _quiet():
            model = jax2onnx.to_onnx(lambda x: _evaluate(traced, [x])[0], [batch])
    except _UNCONVERTED as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--format=onnx: jax2onnx cannot convert this model ({reason}); use --format=stablehlo"
        ) from error
    return model.SerializeToString()


def _evaluate(traced: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluates a traced function; `_REPLACED` has the operations that are computed differently."""
    jaxpr = traced.jaxpr
    values = dict(zip(jaxpr.constvars, traced.consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def value(x: Any) -> Any:
        return x.val if isinstance(x, core.Literal) else values[x]

    for equation in jaxpr.eqns:
        inputs, params = [value(x) for x in equation.invars], equation.params
        name = equation.primitive.name
        if name in _REPLACED:
            outputs = [_REPLACED[name](*inputs, **params)]
        elif name in ("jit", "pjit"):
            outputs = _evaluate(params["jaxpr"], inputs)
        elif name == "remat2":  # of jax.checkpoint
            outputs = _evaluate(core.ClosedJaxpr(params["jaxpr"], []), inputs)
        elif name == "platform_index":
            outputs = [_index_of_cpu(params["platforms"])]
        elif name == "cond" and isinstance(inputs[0], int):
            outputs = _evaluate(params["branches"][inputs[0]], inputs[1:])
        else:
            outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values |= zip(equation.outvars, outputs, strict=True)
    return [value(x) for x in jaxpr.outvars]


def _index_of_cpu(platforms: Sequence[Sequence[str] | None]) -> int:
    """The branch of `jax.lax.platform_dependent` for CPUs; None stands for all other platforms."""
    return next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)


def _pad(x: Any, fill: Any, *, padding_config: Sequence[tuple[int, int, int]]) -> Any:
    """Pads by concatenation."""
    for axis, (low, high, inner) in enumerate(padding_config):
        if inner or low < 0 or high < 0:
            raise NotImplementedError("padding between values, and cropping by padding")
        if low or high:
            parts = [_filled(x, fill, axis, low), x, _filled(x, fill, axis, high)]
            x = jnp.concatenate([part for part in parts if part.shape[axis]], axis)
    return x


def _filled(x: Any, fill: Any, axis: int, size: int) -> Any:
    return jnp.broadcast_to(fill, (*x.shape[:axis], size, *x.shape[axis + 1 :])).astype(x.dtype)


def _max_pool(
    x: Any,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> Any:
    """The maximum of shifted arrays, axis by axis."""
    if any(d != 1 for d in (*base_dilation, *window_dilation)):
        raise NotImplementedError("pooling with dilation")
    x = _pad(x, -jnp.inf, padding_config=[(*pair, 0) for pair in padding])
    for axis, (size, stride) in enumerate(zip(window_dimensions, window_strides, strict=True)):
        if (size, stride) == (1, 1):
            continue
        last = (x.shape[axis] - size) // stride * stride  # start of the last window
        shifted = [jax.lax.slice_in_dim(x, at, at + last + 1, stride, axis) for at in range(size)]
        x = shifted[0]
        for other in shifted[1:]:
            x = jnp.maximum(x, other)
    return x


_REPLACED: dict[str, Callable[..., Any]] = {"pad": _pad, "reduce_window_max": _max_pool}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides warnings of jax2onnx about optional plugins and about shapes that it does not store."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
