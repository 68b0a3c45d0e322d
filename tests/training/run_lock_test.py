"""The lock of a run's folder: one command at a time, and no command that died keeps it."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run
from coco_jax.training import run_lock
from coco_jax.training.run_lock import NAME, Owner, RunLock, start_of, this_process
from tests.helpers import runs

# Takes the lock of a folder and waits.
HOLDER = """
import pathlib, sys, time
from coco_jax.training import run_lock
run_lock.BEAT = 0.05
run_lock.RunLock(pathlib.Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of tmp_path."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        env=runs.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.readline() == "taken\n"
    yield child
    child.kill()
    child.communicate()


@pytest.fixture
def sleeping():
    """A process that lives as long as the test."""
    with subprocess.Popen(["sleep", "100"]) as child:
        yield this_process()._replace(pid=child.pid, start=start_of(child.pid))
        child.kill()


def write(folder, owner: Owner) -> None:
    (folder / NAME).write_text(json.dumps(owner._asdict()))


def owner_of(folder) -> int:
    return json.loads((folder / NAME).read_text())["pid"]


@contextlib.contextmanager
def taken(folder):
    lock = RunLock(folder)
    lock.take()
    assert owner_of(folder) == os.getpid()
    yield
    lock.release()
    assert not (folder / NAME).exists()


def test_lock_of_a_live_process_is_refused_and_that_of_a_killed_one_is_taken_over(holder, tmp_path):
    with pytest.raises(UserError) as caught:
        RunLock(tmp_path).take()
    assert re.fullmatch(
        rf"{tmp_path}: another command is working on this run \(process {holder.pid} of this machine\); "
        "wait until it ends, or choose another --workdir",
        str(caught.value),
    )
    assert owner_of(tmp_path) == holder.pid
    holder.send_signal(signal.SIGSTOP)  # a process that is stopped still has the lock
    with pytest.raises(UserError, match="another command is working on this run"):
        RunLock(tmp_path).take()
    holder.kill()
    # It is a zombie until this process waits for it.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with taken(tmp_path):
        pass


def test_process_whose_lock_was_taken_stops_with_one_line(holder, tmp_path):
    write(tmp_path, this_process())
    _, errors = holder.communicate(timeout=20)
    assert holder.returncode == 2
    (line,) = errors.splitlines()
    assert f"the lock was taken by process {os.getpid()} on host" in line
    assert owner_of(tmp_path) == os.getpid()  # it has not removed what is not its own


def test_other_process_with_the_id_of_a_dead_one_does_not_keep_the_lock(tmp_path, sleeping):
    write(tmp_path, sleeping)
    with pytest.raises(UserError, match=f"process {sleeping.pid} of this machine"):
        RunLock(tmp_path).take()
    write(tmp_path, sleeping._replace(start=sleeping.start - 1))
    with taken(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}'])
def test_lock_without_an_owner_is_taken(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with taken(tmp_path):
        pass


def test_lock_of_another_host_is_refused_as_long_as_that_host_touches_it(
    tmp_path, monkeypatch, sleeping, capsys
):
    monkeypatch.setattr(run_lock, "PATIENCE", 1)
    # A process with the same id and start, on another machine.
    write(tmp_path, sleeping._replace(host="node7", machine="another"))
    done = threading.Event()

    def touch():
        while not done.wait(0.1):
            os.utime(tmp_path / NAME)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(UserError) as caught:
        RunLock(tmp_path).take()
    done.set()
    thread.join()
    assert f"(process {sleeping.pid} on host node7)" in str(caught.value)
    assert str(caught.value).endswith(f"If that host has died, remove {tmp_path / NAME}")
    with taken(tmp_path):  # nobody touches it any more
        assert "on host node7 has worked on this run; looking" in capsys.readouterr().err


def test_of_many_that_take_the_lock_of_a_dead_process_at_once_one_gets_it(tmp_path, sleeping):
    start = threading.Barrier(16)
    got = []

    def take():
        lock = RunLock(tmp_path)
        start.wait()
        with contextlib.suppress(UserError):
            lock.take()
            got.append(lock)

    for _ in range(20):
        got.clear()
        write(tmp_path, sleeping._replace(start=0))
        threads = [threading.Thread(target=take) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()


def test_full_disk_is_an_error_and_leaves_no_empty_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    full_disk = pytest.raises(UserError, match=rf"{NAME}: No space left on device; free some")
    with full_disk, run_lock.held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_fifo_instead_of_the_lock_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(UserError, match=f"{NAME}: not a regular file; remove it"):
        RunLock(tmp_path).take()


def test_second_command_in_the_folder_of_a_run_writes_nothing(tiny, tmp_path, sleeping):
    folder = tmp_path / "label/split1/seed0"
    folder.mkdir(parents=True)
    write(folder, sleeping)
    with pytest.raises(UserError, match="another command is working on this run"):
        run(tiny(ablation="label"), tmp_path)
    assert [path.name for path in folder.iterdir()] == [NAME]


# Two processes of one run, without a model.
TWO = """
import pathlib, sys
from coco_jax.errors import reported
from coco_jax.training import multihost, run_lock
multihost.join(sys.argv[2], 2, int(sys.argv[3]))
with multihost.stop_all_on_failure("two"), reported(multihost.name_of("two")):
    with run_lock.held(pathlib.Path(sys.argv[1])):
        print("the lock is held")
"""


def test_all_processes_of_a_second_run_end_with_the_same_line(tmp_path, sleeping):
    write(tmp_path, sleeping)
    address = f"127.0.0.1:{runs.free_port()}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, tmp_path, address, str(i)],
            env=runs.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for i, child in enumerate(children):
        output, errors = child.communicate(timeout=100)
        assert child.returncode == 2 and "the lock is held" not in output, errors
        (line,) = errors.splitlines()
        assert line.startswith(f"two: process {i} of 2: {tmp_path}: another command is working")
    assert owner_of(tmp_path) == sleeping.pid
