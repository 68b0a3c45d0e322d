"""Compiles the steps of a config for TPU and GPU topologies that this machine does not have.

Needs the compiler of the target: libtpu for TPUs, jax[cuda13] for NVIDIA GPUs (without a GPU or driver).
Needs no data, only the numbers of classes. The command is coco_jax/compile.py.
"""

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from coco_jax.config import uses_descriptions
from coco_jax.errors import UserError
from coco_jax.training.chips import CHIPS, Chip

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
# Properties of GPUs: (device kind, compute capability, cores, memory in bytes, bytes/s, GHz).
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 85_052_489_728, 2_039_000_000_000, 1.41),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 84_978_434_048, 3_352_320_000_000, 1.98),
}
TARGET = """platform_name: "CUDA" device_description_str: "{kind}" 
dnn_version_info {{ major: 9 minor: 8 }} gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }} core_count: {cores}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} clock_rate_ghz: {ghz}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: {fpus}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin} l2_cache_size: {l2}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}"""


class Cost(NamedTuple):
    """The cost of one step on one device, as estimated by the compiler."""

    arguments: int  # bytes: parameters, optimizer moments, the batch
    temporaries: int  # bytes
    code: int  # bytes
    peak: int  # bytes, the sum of the three above
    flops: float | None
    moved: float | None  # bytes read and written in device memory
    collectives: dict[str, tuple[int, int]]  # by kind: (count, bytes)
    compute: float | None  # seconds, from the compiler's cycle estimates; None if there are none
    links: float  # seconds to send the collectives' bytes at the links' full bandwidth

    @property
    def seconds(self) -> float | None:
        """The estimated time of a step if nothing overlaps; None without cycle estimates (GPUs)."""
        return None if self.compute is None else self.compute + self.links


def devices_of(topology: str) -> list[Any]:
    """Descriptions of the devices of a topology, for compilation only.

    Args:
      topology: such as "v5e:4x4" or "h100:8".

    Raises:
      UserError: the topology does not exist, or its compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    if name in GPUS:
        # Autotuning needs a GPU to run kernels on.
        flags = " --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
    import jax
    from jax.experimental import topologies

    try:
        if name in GPUS:
            kind, (major, minor), cores, memory, bandwidth, ghz = GPUS[name]
            hopper = major >= 9
            target = TARGET.format(
                kind=kind, major=major, minor=minor, cores=cores, memory=memory, bandwidth=bandwidth,
                ghz=ghz, fpus=128 if hopper else 64, shared=233_472 if hopper else 167_936,
                optin=232_448 if hopper else 166_912, l2=(50 if hopper else 40) << 20,
            )  # fmt: skip
            count = int(shape)
            hosts = max(count // 8, 1)
            return topologies.get_topology_desc(
                platform="cuda",
                topology_name=topology,
                target_config=target,
                topology=f"1x{hosts}x{count // hosts}",
            ).devices
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology={topology}: {reason}; use v5e:16x16, v5p:2x2x2, v6e:4x4 or another TPU "
            "topology "
            "(pip install -r requirements-compile.txt), or h100:8 or a100:8 (pip install jax[cuda13])"
        ) from error


def computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (name, lines) of each computation in the HLO text of a module; the entry is "ENTRY"."""
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and line.endswith("{"):
            first = line.split()[0]
            name, lines = first if first == "ENTRY" else first.lstrip("%"), []
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def size(shape: str) -> int:
    """Bytes of an HLO shape such as `f32[400,512]{1,0}`, or of a tuple of shapes."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count * BYTES.get(dtype, 0)
    return total


def group_size(line: str) -> int:
    """The number of devices in one replica group of a collective, from its HLO line."""
    if got := re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", got[1]))
        count = 1
        for axis in re.findall(r"'(\w+)'", got[2]):
            count *= int(sizes[axis])
        return count
    if got := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(got[1])
    got = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return got[1].count(",") + 1 if got else 1


def walk(text: str, repeats: int) -> tuple[int, dict[str, tuple[int, int]]]:
    """Sums estimated cycles and collectives over the HLO text of a compiled module.

    Args:
      text: the module.
      repeats: how often the body of a loop runs. All loops are over microbatches.

    Returns:
      Estimated cycles, and (count, bytes) of collectives by kind. Bytes are those of the whole array:
      of the result, for a reduce-scatter of the operand.
    """
    parts = dict(computations(text))
    cycles, found = 0, dict.fromkeys(KINDS, (0, 0))

    def visit(name: str, times: int) -> None:
        nonlocal cycles
        for line in parts.get(name, ()):
            cycles += times * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            got = re.match(r"\s*(?:ROOT )?%?\S+ = (.*?) ([a-z-]+)\(", line)
            if not got:
                continue
            shape, op = got.groups()
            kind = op.removesuffix("-start")
            if kind in KINDS:
                number, group = size(shape), group_size(line)
                if op == "all-gather-start":  # the result is (operand, result)
                    number = number * group // (group + 1)
                elif op == "collective-permute-start":
                    number //= 2
                elif kind == "reduce-scatter":
                    number *= group
                found[kind] = (found[kind][0] + times, found[kind][1] + times * number)
            for inner in re.findall(r"calls=%?([\w.-]+)", line):
                visit(inner, times)
            for inner in re.findall(r"body=%?([\w.-]+)", line):
                visit(inner, times * repeats)

    visit("ENTRY", 1)
    return cycles, {kind: both for kind, both in found.items() if both[0]}


def measure(compiled: Any, chip: Chip, repeats: int = 1) -> Cost:
    """The cost of a compiled step.

    Args:
      compiled: a `jax.stages.Compiled`.
      chip: the device that it was compiled for.
      repeats: how often the body of a loop runs, which is the number of microbatches.
    """
    memory, counts = compiled.memory_analysis(), compiled.cost_analysis() or {}
    cycles, collectives = walk(compiled.as_text(), repeats)
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # On a ring, an all-reduce sends its bytes twice, the other collectives once.
    sent = sum(
        number * (2 if kind == "all-reduce" else 1) for kind, (_, number) in collectives.items()
    )
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + kept,
        code=memory.generated_code_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + kept
        + memory.generated_code_size_in_bytes,
        # XLA counts the body of a loop once. With microbatches only the video tower is in loops, so
        # multiplying everything by `repeats` is an upper bound.
        flops=counts["flops"] * repeats if "flops" in counts else None,
        moved=counts["bytes accessed"] * repeats if "bytes accessed" in counts else None,
        collectives=collectives,
        compute=cycles / chip.clock if chip.clock else None,
        links=sent / chip.link,
    )


def compile_steps(config: ConfigDict, devices: list[Any], seen: int, pool: int) -> dict[str, Cost]:
    """Compiles the training step and the evaluation steps.

    Args:
      config: of the run.
      devices: from `devices_of`.
      seen: number of seen classes.
      pool: number of classes in the pool of the cycle, the unseen classes.

    Returns:
      The cost of each step on one device, by name.

    Raises:
      UserError: the mesh does not fit the devices, or a step does not fit the memory of a device.
    """
    import jax
    import jax.numpy as jnp

    from coco_jax import sharding
    from coco_jax.training.step import abstract_batch, make_program

    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise UserError(
            f"no data about the device {kind!r}; add it to CHIPS in coco_jax/training/chips.py"
        )
    program = make_program(config, sharding.make_mesh(config, devices))
    batch, params = abstract_batch(config, seen, pool), program.abstract.params
    count, dim, many = seen + pool, config.model.dim, config.text.eval_descriptions

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    features = [array(1024, dim), array(count, dim)]
    if uses_descriptions(config):
        features += [array(count, many, dim), jax.ShapeDtypeStruct((count, many), jnp.bool_)]
    else:
        features += [None, None]
    key = jax.eval_shape(lambda: jax.random.key(0))
    jobs = {
        "training step": (program.step, (program.abstract, batch, key)),
        "evaluation: videos": (program.embed_videos, (params, batch["video"])),
        "evaluation: scores of 1024": (program.scores, (params, *features)),
    }
    costs = {}
    for name, (function, arguments) in jobs.items():
        repeats = config.optimizer.microbatches if name == "training step" else 1
        try:
            compiled = function.lower(*arguments).compile()  # type: ignore[attr-defined]
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            got = re.search(
                r"[Uu]sed ([\d.]+\w) of ([\d.]+\w) hbm"
                r"|\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)",
                str(error),
            )
            needs = str(error).splitlines()[0][:200]
            if got:
                needs = f"it needs {got[1] or got[3]} of {got[2] or got[4]}"
            raise UserError(f"{name}: does not fit {kind}: {needs}; {remedies(config)}") from error
        costs[name] = measure(compiled, CHIPS[kind], repeats)
        if costs[name].peak > CHIPS[kind].memory:
            needs = f"it needs {costs[name].peak / 2**30:.1f} GiB"
            raise UserError(f"{name}: does not fit {kind}: {needs}; {remedies(config)}")
    return costs


def remedies(config: ConfigDict) -> str:
    """Flags that reduce memory, the cheapest first, as part of an error message."""
    flags = []
    if not config.model.remat:
        flags.append("--config.model.remat=True")
    if config.model.dtype == "float32":
        flags.append("--config.model.dtype=bfloat16")
    flags.append(f"--config.optimizer.microbatches={2 * config.optimizer.microbatches}")
    flags.append(f"--config.mesh.fsdp={2 * max(config.mesh.fsdp, 1)}")
    return f"try {', then '.join(flags)}, or a smaller --batch_per_device"


def show(config: ConfigDict, devices: list[Any], costs: dict[str, Cost], model: float) -> str:
    """Formats costs as text.

    Args:
      config: of the run.
      devices: all devices of the topology.
      costs: from `compile_steps`.
      model: FLOPs that the model needs for a training step, over all devices.
    """
    kind, chip = devices[0].device_kind, CHIPS[devices[0].device_kind]
    mesh = " x ".join(f"{axis}={config.mesh[axis]}" for axis in ("data", "fsdp", "tensor"))
    lines = [
        f"{len(devices)} x {kind}, {chip.memory / 2**30:.0f} GiB each; mesh {mesh}, "
        f"{config.data.batch} videos per step, microbatches: {config.optimizer.microbatches}; "
        "per device:"
    ]
    gib = 2.0**30
    for name, x in costs.items():
        lines.append(f"\n{name}: fits ({100 * x.peak / chip.memory:.0f}% of the memory)")
        lines.append(
            f"  memory       {x.peak / gib:.2f} GiB: arguments {x.arguments / gib:.2f}, "
            f"temporaries {x.temporaries / gib:.2f}, code {x.code / gib:.2f}"
        )
        if x.flops is not None and x.moved is not None:
            lines.append(
                f"  work         {x.flops / 1e12:.3f} TFLOP, {x.moved / 1e9:.1f} GB read and written"
            )
        for what, (count, number) in x.collectives.items():
            lines.append(f"  {what:12} {count}, {number / 2**20:.1f} MiB in total")
        if x.seconds is None or x.compute is None:
            lines.append(
                "  time         no estimate: the GPU compiler reports neither cycles nor FLOPs"
            )
            continue
        lines.append(
            f"  time         {1000 * x.seconds:.1f} ms estimated: {1000 * x.compute:.1f} for operations "
            f"at {chip.clock / 1e9:.2f} GHz, {1000 * x.links:.1f} for collectives, without overlap"
        )
        if name == "training step":
            share = model / len(devices) / x.seconds / chip.flops
            lines.append(
                f"  utilisation  {100 * share:.1f}% MFU at that time ({model / len(devices) / 1e12:.3f} "
                f"TFLOP needed per device), {config.data.batch / x.seconds:.0f} clips/s"
            )
    return "\n".join(lines)
