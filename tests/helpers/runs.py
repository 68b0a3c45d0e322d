"""Runs commands as a user does, in separate processes, and reads what runs stored."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from conftest import QUICK_COMPILATION

ROOT = pathlib.Path(__file__).resolve().parents[2]
# For runs of many steps: the code is as fast as that of XLA's defaults, which take longer to compile.
OPTIMIZED = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
# A config file that returns the tiny config.
CONFIG = """
import sys
sys.path.insert(0, {root!r})
from conftest import tiny_config

def get_config():
    return tiny_config({data_dir!r}, **{changes!r})
"""


def environment(devices: int = 1, optimize: bool = False) -> dict[str, str]:
    """The environment of a child process: few devices; compiled quickly unless `optimize`."""
    compilation = OPTIMIZED if optimize else QUICK_COMPILATION
    flags = f"--xla_force_host_platform_device_count={devices} {compilation}"
    # See `coco_jax.command.keep_compiled`.
    cache = {"JAX_ENABLE_COMPILATION_CACHE": str(devices == 1)}
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | cache


def write_config(path: pathlib.Path, data_dir: str, **changes) -> pathlib.Path:
    """Writes a config file that returns the tiny config with these changes."""
    path.write_text(CONFIG.format(root=str(ROOT), data_dir=data_dir, changes=changes))
    return path


def command(config: pathlib.Path, workdir: pathlib.Path, *flags: str) -> list[str]:
    """The command line of coco_jax.main with these flags."""
    return [
        sys.executable,
        "-m",
        "coco_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
        *flags,
    ]


def call(
    *args: str, devices: int = 1, optimize: bool = False, **kwargs
) -> subprocess.CompletedProcess:
    """Runs a command and captures its output as text."""
    return subprocess.run(
        args,
        env=environment(devices, optimize),
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        **kwargs,
    )


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def losses(folder: pathlib.Path, tag: str = "loss") -> dict[int, float]:
    """The losses, or other scalars, that a run wrote for TensorBoard, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {e.step: float(make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)}


def checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints of a run, oldest first; incomplete ones are not named by a number."""
    found = [path for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def stored(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's state, by path, on any number of devices."""
    import jax
    import orbax.checkpoint as ocp

    from coco_jax.sharding import path_of

    reader, path = ocp.PyTreeCheckpointer(), (checkpoint / "state").absolute()
    plain = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    tree = reader.restore(path, restore_args=plain)
    return {path_of(p): x for p, x in jax.tree.leaves_with_path(tree)}


def final_params(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters of a run's last checkpoint, by path."""
    arrays = stored(checkpoints(folder)[-1])
    return {path: x for path, x in arrays.items() if path.startswith("params/")}


def result(folder: pathlib.Path) -> dict:
    """A run's result.json."""
    return json.loads((folder / "result.json").read_text())
