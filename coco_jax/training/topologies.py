"""Compiles the steps of a config for TPU and GPU topologies that this machine does not have.

The compiler is that of the target: libtpu for TPUs, jax[cuda13] for NVIDIA GPUs (no GPU or driver is
needed). No data is needed either, only the numbers of classes. coco_jax/compile.py is the command.
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
# What the compiler asks of a GPU: (device kind, compute capability, cores, bytes, bytes/s, GHz).
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
    """What one device of the topology does for one step, as the compiler says."""

    arguments: int  # bytes: parameters, optimizer moments, the batch
    temporaries: int  # bytes
    code: int  # bytes
    peak: int  # bytes, all of it
    flops: float | None
    moved: float | None  # bytes read and written
    collectives: dict[str, tuple[int, int]]  # by kind: how many, bytes
    compute: float | None  # seconds of the compiler's estimated cycles
    links: float  # seconds that the collectives' bytes need at the least

    @property
    def seconds(self) -> float | None:
        """The estimated time of a step, nothing overlapped; None where there is no estimate."""
        return None if self.compute is None else self.compute + self.links


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology, which this machine need not have.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    if name in GPUS:
        # Autotuning would run kernels on a GPU.
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
                platform="cuda", topology_name=topology, target_config=target,
                topology=f"1x{hosts}x{count // hosts}",
            ).devices  # fmt: skip
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology={topology}: {reason}; TPUs are written v5e:16x16, v5p:2x2x2, v6e:4x4 and need "
            "requirements-compile.txt, GPUs h100:8, a100:8 and need jax[cuda13]"
        ) from error


def computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """The computations of a compiled module's text: their names and lines; the entry is ENTRY."""
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
    """Bytes of an HLO shape such as `f32[400,512]{1,0}` or of the tuple of several."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count * BYTES.get(dtype, 0)
    return total


def group_size(line: str) -> int:
    """How many devices one group of a collective has."""
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
    """Cycles that the compiler estimated, and collectives by kind: how many, bytes.

    Bytes are of the whole array that a collective combines: its result, of a reduce-scatter its
    operand. The body of a loop counts `repeats` times: loops are over microbatches.
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
                if op == "all-gather-start":  # its result is a pair of operand and result
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
    """Memory, FLOPs, collectives and estimated time of a compiled step."""
    memory, counts = compiled.memory_analysis(), compiled.cost_analysis() or {}
    cycles, collectives = walk(compiled.as_text(), repeats)
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # A ring sends what all devices combine twice, what it only gathers or scatters once.
    sent = sum(number * (2 if kind == "all-reduce" else 1)
               for kind, (_, number) in collectives.items())  # fmt: skip
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + kept,
        code=memory.generated_code_size_in_bytes,
        peak=memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept
        + memory.generated_code_size_in_bytes,
        # XLA counts the body of a loop once. With microbatches the videos' part is in loops; the
        # texts and the optimizer, which are not, are counted too often: an upper bound.
        flops=counts["flops"] * repeats if "flops" in counts else None,
        moved=counts["bytes accessed"] * repeats if "bytes accessed" in counts else None,
        collectives=collectives,
        compute=cycles / chip.clock if chip.clock else None,
        links=sent / chip.link,
    )  # fmt: skip


def compile_steps(config: ConfigDict, devices: list[Any], seen: int, pool: int) -> dict[str, Cost]:
    """Compiles the step of training and those of evaluation for devices that this machine need not have.

    Raises:
      UserError: the config does not fit the devices, or a step their memory.
    """
    import jax
    import jax.numpy as jnp

    from coco_jax import sharding
    from coco_jax.training.step import abstract_batch, make_program

    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise UserError(f"{kind!r} is not known; add it to coco_jax/training/chips.py")
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
    """What to change where a step does not fit, the cheapest first."""
    tried = []
    if not config.model.remat:
        tried.append("--config.model.remat=True")
    if config.model.dtype == "float32":
        tried.append("--config.model.dtype=bfloat16")
    tried.append(f"--config.optimizer.microbatches={2 * config.optimizer.microbatches}")
    tried.append(f"--config.mesh.fsdp={2 * max(config.mesh.fsdp, 1)}")
    return f"try {', then '.join(tried)}, or a smaller --batch_per_device"


def show(config: ConfigDict, devices: list[Any], costs: dict[str, Cost], model: float) -> str:
    """The costs as text. `model` is the FLOPs of a whole training step."""
    kind, chip = devices[0].device_kind, CHIPS[devices[0].device_kind]
    mesh = " x ".join(f"{axis}={config.mesh[axis]}" for axis in ("data", "fsdp", "tensor"))
    lines = [
        f"{len(devices)} x {kind}, {chip.memory / 2**30:.0f} GiB each; mesh {mesh}, "
        f"{config.data.batch} videos a step, {config.optimizer.microbatches} microbatches; per device:"
    ]
    gib = 2.0**30
    for name, x in costs.items():
        lines.append(f"\n{name}: fits ({100 * x.peak / chip.memory:.0f}% of the memory)")
        lines.append(
            f"  memory       {x.peak / gib:.2f} GiB: arguments {x.arguments / gib:.2f}, "
            f"temporaries {x.temporaries / gib:.2f}, code {x.code / gib:.2f}"
        )
        if x.flops is not None and x.moved is not None:
            lines.append(f"  work         {x.flops / 1e12:.3f} TFLOP, {x.moved / 1e9:.1f} GB moved")
        for what, (count, number) in x.collectives.items():
            lines.append(f"  {what:12} {count} of {number / 2**20:.1f} MiB together")
        if x.seconds is None or x.compute is None:
            lines.append("  time         the GPUs' compiler gives no estimate, nor counts of FLOPs")
            continue
        lines.append(
            f"  time         {1000 * x.seconds:.1f} ms: {1000 * x.compute:.1f} of the compiler's cycles "
            f"at {chip.clock / 1e9:.2f} GHz, {1000 * x.links:.1f} of its links, nothing overlapped"
        )
        if name == "training step":
            share = model / len(devices) / x.seconds / chip.flops
            lines.append(
                f"  utilisation  {100 * share:.1f}% MFU at that time ({model / len(devices) / 1e12:.3f} "
                f"TFLOP needed a device), {config.data.batch / x.seconds:.0f} clips/s"
            )
    return "\n".join(lines)
