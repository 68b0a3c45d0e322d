"""Lets one command at a time write to a run's folder: a lock file with the process that works on it.

The file has the host, the process id and the start of the process. A process that has died without
removing it is recognised: on the same machine at once, by its id and start. A process on another machine
cannot be looked up. Instead, the process that has the lock touches the file every `BEAT` seconds, and
counts as dead if it has not done so for `PATIENCE` seconds while it was watched.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from coco_jax.errors import UserError
from coco_jax.printing import printable
from coco_jax.training import multihost

NAME = "run.lock"
BEAT = 10  # seconds
PATIENCE = 60  # seconds


class Owner(NamedTuple):
    """A process."""

    host: str
    machine: (
        str  # differs after a reboot and in another container; process ids are valid within one
    )
    pid: int
    start: (
        int  # in clock ticks since the machine started; another process may get the same id later
    )

    def is_alive(self) -> bool:
        """Whether a process of this machine is running."""
        return start_of(self.pid) == self.start


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if it is not running."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before ")" may contain spaces
    return (
        None if state in "ZX" else int(fields[18])
    )  # Z: it has ended, but its parent has not noticed


def this_process() -> Owner:
    """The process that calls this function."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: the process counts as one of another machine
        machine = f"{time.time_ns()} {os.getpid()}"
    return Owner(socket.gethostname(), machine, os.getpid(), start_of(os.getpid()) or 0)


class RunLock:
    """The lock of one run's folder."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / NAME
        self._me = this_process()
        self._guard = threading.Lock()  # of `_beat` against `release`
        self._released = threading.Event()

    def take(self) -> None:
        """Takes the lock, also from a process that has died.

        Raises:
          UserError: another process has it.
          OSError: the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        dead: tuple[Owner, int] | None = None
        while (owner := self._try(dead)) is not None:
            who, remedy = f"process {owner.pid} of this machine", ""
            if owner.machine != self._me.machine:
                if (dead := self._watch(owner)) is not None:
                    continue
                who = f"process {owner.pid} on host {owner.host}"
                remedy = f". If that host has died, remove {self.path}"
            raise UserError(
                f"{self.path.parent}: another command is working on this run ({who}); wait until it "
                f"ends, or choose another --workdir{remedy}"
            )
        threading.Thread(target=self._beat, daemon=True).start()

    def _try(self, dead: tuple[Owner, int] | None) -> Owner | None:
        """Takes the lock and returns None; if another process has it, returns that one.

        Args:
          dead: a process of another machine that counts as dead, and the time of its last beat.
        """
        with self._opened() as file:
            owner, beat = _read(file)
            if (
                owner is not None
                and (owner, beat) != dead
                and (owner.machine != self._me.machine or owner.is_alive())
            ):
                return owner
            try:
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(self._me._asdict()).encode(), 0)
            except OSError as error:
                self.path.unlink()
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        return None

    def _watch(self, owner: Owner) -> tuple[Owner, int] | None:
        """Watches a process of another machine; None if it is alive, otherwise it and its last beat."""
        print(
            f"{self.path.parent}: process {owner.pid} on host {printable(owner.host)} has worked on "
            f"this run; looking for {PATIENCE} seconds whether it is alive",
            file=sys.stderr,
        )
        with self._opened() as file:
            first = _read(file)
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            time.sleep(min(1.0, PATIENCE / 10))
            with self._opened() as file:
                if _read(file) != first:
                    return None
        return owner, first[1]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Opens the file; no other process of this machine reads or changes it meanwhile."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        is_current = False
        while not is_current:
            file = os.open(self.path, flags, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise UserError(f"{self.path}: not a regular file; remove it")
                with contextlib.suppress(OSError):  # some network file systems have no flock
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Another process may have removed the file before this one locked it.
                with contextlib.suppress(FileNotFoundError):
                    is_current = os.path.samestat(os.fstat(file), os.stat(self.path))
                if is_current:
                    yield file
            finally:
                os.close(file)

    def _beat(self) -> None:
        """Touches the file from time to time; ends the process if it no longer has the lock."""
        lost = ""
        while not lost and not self._released.wait(BEAT):
            with self._guard:
                if not self._released.is_set():
                    lost = self._touch()
        if lost:
            print(
                f"{self.path}: {lost}; this process stops, so that two do not write to the same folder",
                file=sys.stderr,
                flush=True,
            )
            multihost.expected_end.close()
            os._exit(2)

    def _touch(self) -> str:
        """Touches the file; why this process no longer has the lock, "" if it has."""
        try:
            with open(self.path, "rb") as file:
                owner, _ = _read(file.fileno())
            if owner == self._me:
                os.utime(self.path)
        except FileNotFoundError:
            return "the lock was removed"
        except OSError:  # e.g. a network file system does not answer: try again at the next beat
            return ""
        if owner is None or owner == self._me:  # None: another process is writing it
            return ""
        return f"the lock was taken by process {owner.pid} on host {owner.host}"

    def release(self) -> None:
        """Removes the file, if this process has the lock."""
        with self._guard:
            if not self._released.is_set():
                self._released.set()
                with contextlib.suppress(OSError), self._opened() as file:
                    if _read(file)[0] in (self._me, None):
                        self.path.unlink()


def _read(file: int) -> tuple[Owner | None, int]:
    """The process that has the lock, if any, and the time of its last beat in nanoseconds."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
        owner = Owner(
            str(found["host"]), str(found["machine"]), int(found["pid"]), int(found["start"])
        )
    except (ValueError, TypeError, LookupError):
        owner = None  # a process died between creating and writing the file
    return owner, os.fstat(file).st_mtime_ns


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run's folder, with process 0 in the name of all processes of the run.

    Raises:
      UserError: in all processes, if a process of another command has the lock.
    """
    lock, problem = RunLock(folder), ""
    if jax.process_index() == 0:
        try:
            lock.take()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = (
                f"{error.filename}: {error.strerror}; free some space, or choose another --workdir"
            )
    if problem := multihost.gather_json(problem)[0]:
        raise UserError(problem)
    if jax.process_index():
        yield
        return
    multihost.expected_end.callback(lock.release)
    try:
        yield
    finally:
        lock.release()
