"""Several processes: all end if one dies or does not start, wherever the others wait."""

import signal
import subprocess
import sys

import pytest

from tests.helpers import runs

# Short times instead of those of the module, so that the tests take seconds.
PROCESS = """
import sys, time
import jax, numpy as np
from coco_jax.errors import reported
from coco_jax.training import multihost
multihost.START, multihost.HEARTBEAT = 10, 6
address, processes, process, waits = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
multihost.join(address, processes, process)
with multihost.stop_all_on_failure("run"), reported(multihost.name_of("run")):
    multihost.gather_json("started")
    print("started", flush=True)
    if waits == "gather":
        multihost.gather_json("more")
    elif waits == "barrier":
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices("barrier")
    time.sleep(600)
"""


def start(processes: int, waits: dict[int, str]) -> list[subprocess.Popen]:
    address = f"127.0.0.1:{runs.free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(processes), str(i), where],
            env=runs.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, where in waits.items()
    ]


def started(child: subprocess.Popen) -> None:
    for line in child.stdout:
        if line == "started\n":
            return
    raise AssertionError(child.stderr.read())


def message_of(child: subprocess.Popen) -> str:
    """The line of our own that an ended process has printed; XLA prints others."""
    _, errors = child.communicate(timeout=60)
    assert child.returncode not in (0, None), errors
    (line,) = [
        line for line in errors.splitlines() if line.startswith(("run: ", "coco_jax.main: "))
    ]
    return line


@pytest.mark.parametrize(
    ("victim", "how"), [(2, signal.SIGKILL), (0, signal.SIGSTOP), (0, signal.SIGKILL)]
)
def test_all_processes_end_if_one_dies_also_if_they_wait_in_other_collectives(victim, how):
    """A process that is stopped is like one on a host without power: it closes no connection."""
    children = start(3, {0: "gather", 1: "barrier", 2: "sleep"})
    for child in children:
        started(child)
    children[victim].send_signal(how)
    for i, child in enumerate(children):
        if i != victim:
            assert f"process {i} of 3" in message_of(child)
    children[victim].kill()
    children[victim].communicate()


def test_process_ends_if_another_does_not_start():
    (child,) = start(2, {0: "sleep"})
    assert "process 0 of 2 ended without a message" in message_of(child)
