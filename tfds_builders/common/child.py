"""A child process that reads files of others with a native library, which may crash or never return."""

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import sys
from typing import NoReturn

CPU_SECONDS = 10  # that a child may take from one message to the next
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(module: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Starts `python -m module`, whose messages come through `stdout`."""
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | one_thread | {"PYTHONPATH": paths},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def stop(child: subprocess.Popen) -> None:
    """Ends a child and waits for it."""
    assert child.stdout
    child.stdout.close()
    child.kill()
    child.wait()


def raise_reason(child: subprocess.Popen, library: str, part: str) -> NoReturn:
    """Says why a child ended before its last message.

    Args:
      child: it has closed its output.
      library: that it uses.
      part: of a file that it reads from one message to the next.

    Raises:
      ValueError: always.
    """
    if -child.wait() == signal.SIGPROF:
        raise ValueError(f"the {library} library reads {part} for more than {CPU_SECONDS} s")
    raise ValueError(f"the {library} library crashes on it: it is damaged")


def limit_memory(size: int) -> None:
    """In the child: limits the address space to so many bytes."""
    with contextlib.suppress(ValueError):  # a lower limit is set, or the system has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: float) -> None:
    """In the child: a signal ends it after so many seconds of CPU time from now.

    A slow disk, or a computer that sleeps, does not count.
    """
    # A profiler in the parent process may ignore or block the signal, and a child inherits that.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    signal.setitimer(signal.ITIMER_PROF, seconds)
