"""Compiles a config for TPU or GPU topologies that this machine does not have, and estimates the cost.

    pip install -r requirements-compile.txt
    python -m coco_jax.compile --config=configs/k400_zsar.py --topology=v5e:16x16

Reports memory, FLOPs, collectives, and for TPUs the compiler's estimate of the time of a step.
"""

import os

from absl import flags
from ml_collections import config_flags

from coco_jax.command import run_command
from coco_jax.errors import UserError


def define_flags() -> None:
    """Defines the flags of the command."""
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file, or the name of a config in the package."
    )
    flags.DEFINE_string(
        "topology", None, "Devices. TPU: v5e:16x16, v5p:2x2x2, v6e:4x4 ...; GPU: h100:8, a100:8."
    )
    flags.DEFINE_integer("seen", 400, "Number of seen classes.", 1)
    flags.DEFINE_integer(
        "unseen", 160, "Number of unseen classes; also used as the pool of the cycle.", 1
    )
    flags.DEFINE_integer(
        "batch_per_device", None, "Sets config.data.batch to this times the number of devices.", 1
    )


def command(argv: list[str]) -> None:
    """Compiles and prints; exit code 2 if a step does not fit the memory."""
    del argv
    from coco_jax.training import topologies
    from coco_jax.training.step import abstract_batch, model_flops

    values = flags.FLAGS
    config, seen, pool = values.config, values.seen, values.unseen
    if config.alignment != "learned":
        raise UserError(f"config.alignment: {config.alignment!r} is for one device; set 'learned'")
    if not values.topology:
        raise UserError("--topology is missing, e.g. --topology=v5e:2x4")
    devices = topologies.devices_of(values.topology)
    if values.batch_per_device:
        config.data.batch = values.batch_per_device * len(devices)
    costs = topologies.compile_steps(config, devices, seen, pool)
    model = model_flops(config, abstract_batch(config, seen, pool))
    print(topologies.show(config, devices, costs, model))


def set_environment() -> None:
    """Sets what libtpu and JAX read when they are imported."""
    # libtpu asks the machine for its type of TPU; without one the type must be given.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        JAX_PLATFORMS="cpu",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
    )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # compiling needs no driver


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    set_environment()
    define_flags()
    run_command(command, "coco_jax.compile")


if __name__ == "__main__":
    main()
