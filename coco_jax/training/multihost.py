"""Runs with several processes: `jax.distributed`, and ending all processes when one fails."""

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

START = 300  # seconds in which all processes have to start
HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as dead
LAST_SECONDS = 3  # that process 0 gives the others to report the same error
# Words in error messages that mean another process is gone.
PEER_FAILURE = re.compile(
    r"gloo|nccl|heartbeat|coordination service|unavailable|connection (reset|closed|refused)|barrier"
    r"|deadline.exceeded|broken pipe",
    re.IGNORECASE,
)


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Initialises `jax.distributed` for this process.

    Args:
      coordinator: host:port of process 0, or "auto" to detect everything on a cluster.
      processes: number of processes; None with "auto".
      process: index of this process; None with "auto".
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Replaced by `preemption.any_process_preempted`, with which all processes agree on a step.
    jax.config.update("jax_enable_preemption_service", False)
    _start_watcher("a process" if process is None else f"process {process} of {processes}")
    jax.distributed.initialize(
        None if coordinator == "auto" else coordinator,
        num_processes=processes,
        process_id=process,
        initialization_timeout=START,
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def name_of(program: str) -> str:
    """The name of a command for messages, with the index of the process if there are several."""
    if jax.process_count() == 1:
        return program
    return f"{program}: process {jax.process_index()} of {jax.process_count()}"


# What has to be done before the process ends in an expected way, also before `os._exit`.
expected_end = contextlib.ExitStack()
atexit.register(expected_end.close)


def _start_watcher(who: str) -> None:
    """Starts a shell that prints a message if this process ends without one.

    Gloo and JAX's coordination service may abort it in C++ when another process has died.
    """
    message = (
        f"{who} ended without a message: it was killed, or aborted because another process has died or "
        "cannot be reached. Start all of them again with the same command: the run resumes from its "
        "last checkpoint"
    )
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r end || echo "coco_jax.main: $1" >&2', "sh", message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    def report_expected_end() -> None:
        with contextlib.suppress(OSError):
            assert watcher.stdin is not None
            watcher.stdin.write(b"expected\n")
            watcher.stdin.close()
            watcher.wait(5)

    expected_end.callback(report_expected_end)


def gather_json(value: Any) -> list[Any]:
    """The JSON values of all processes, by index of the process. A collective."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes_P = multihost_utils.process_allgather(np.array(len(data)))
    # A multiple of 4 KiB, so that few shapes are compiled.
    padded = np.zeros(-(-sizes_P.max() // 4096) * 4096, np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes_P, strict=True)]


def from_first_process(x: np.ndarray) -> np.ndarray:
    """The array of process 0, in all processes; shapes have to be equal. A collective."""
    return x if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(x))


@contextlib.contextmanager
def stop_all_on_failure(program: str) -> Iterator[None]:
    """In a run of several processes, prints an exception of the block and exits at once.

    A normal exit would wait in JAX for the other processes, which may wait for this one. The code of a
    SystemExit is kept; what it means has been printed.

    Args:
      program: the name of the command, for messages.
    """
    if jax.process_count() == 1:
        yield
        return
    code = 1
    try:
        yield
        return
    except SystemExit as end:
        if not end.code:
            raise
        code = end.code if isinstance(end.code, int) else 1
    except Exception as error:  # printed below; then the process exits
        reason = " ".join(str(error).split())[:200]
        if PEER_FAILURE.search(f"{type(error).__name__} {reason}"):
            print(
                f"{name_of(program)}: another process has died or cannot be reached ({reason}); its own "
                "output says why. Start all of them again with the same command: the run resumes from "
                "its last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        # It runs the coordination service, without which JAX aborts the others.
        time.sleep(LAST_SECONDS)
    expected_end.close()
    os._exit(code)
