"""The command coco_jax.main: its output files, interruptions, several processes, one-line errors."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import flags
from jax.profiler import ProfileData

from coco_jax import main
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run
from tests.helpers import runs

RUN = "full/split1/seed0"


STEPS = 12
TRAINING = {"optimizer__steps": STEPS, "checkpoint_every": 2, "video_tower__dropout": 0.1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A finished tiny sweep of two ablations, which was not interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    config = runs.write_config(
        folder / "config.py", data_dir, sweep__ablation=("label", "full"), **TRAINING
    )
    done = runs.call(*runs.command(config, folder / "run", "--profile_steps=3:4"))
    assert done.returncode == 0, done.stderr
    return config, folder / "run", done


def test_sweep_writes_results_plots_and_a_table(finished):
    _, workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["dataset"] == "motion_zsar" and results["pool"] == "unseen"
    assert results["chance"] == 0.125 and results["seeds"] == [0]
    assert list(results["ablations"]) == ["label", "full"]
    for metrics in results["ablations"].values():
        assert set(metrics) == {"top1", "top5", "generalised", "ridge", "baselines"}
        assert metrics["ridge"] is None  # config.eval.ridge is off
        assert set(metrics["generalised"]) == {"seen", "unseen", "harmonic", "auc"}
        assert metrics["top1"]["mean"] == metrics["top1"]["runs"][0]
        assert 0 <= metrics["top1"]["mean"] <= metrics["top5"]["mean"] <= 1
    sweep = json.loads((workdir / "evidence.json").read_text())
    assert list(sweep["runs"]) == ["label/split1/seed0", RUN]
    for name, found in sweep["runs"].items():
        assert found == json.loads((workdir / name / "evidence.json").read_text())
    for name in ("confusion.png", "clips.png"):
        assert (workdir / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert "| label " in done.stdout and "| full " in done.stdout
    assert "parameters" in done.stderr and "clips/s" in done.stderr
    assert (workdir / RUN / "parameters.txt").read_text().count("kernel") > 5


def test_time_of_a_step_is_split_and_profiled(finished):
    _, workdir, done = finished
    parts = [runs.losses(workdir / RUN, f"seconds/{part}") for part in ("data", "host", "device")]
    for step, whole in runs.losses(workdir / RUN, "seconds/step").items():
        assert whole == pytest.approx(sum(part[step] for part in parts), rel=1e-5)
        assert all(part[step] >= 0 for part in parts)
    assert set(runs.losses(workdir / RUN, "broken_videos").values()) == {0}
    assert (
        "clips/s (data " in done.stderr and "MFU" not in done.stderr
    )  # the peak of a CPU is unknown
    (trace,) = (workdir / RUN / "plugins" / "profile").glob("*/*.xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines]
    events = [event for line in lines for event in line.events if event.name == "train"]
    assert [dict(event.stats)["step_num"] for event in events] == [3, 4]
    assert f"tensorboard --logdir={workdir / RUN}" in done.stderr


def test_finished_sweep_is_not_trained_again(finished, call_here):
    config, workdir, _ = finished
    before = (workdir / RUN / "result.json").stat().st_mtime_ns
    again = call_here(*runs.command(config, workdir, "--config.data.dir=/nowhere"))
    assert again.returncode == 0 and "clips/s" not in again.stderr
    assert "| full " in again.stdout and "clips.png is not drawn" in again.stderr
    assert (workdir / RUN / "result.json").stat().st_mtime_ns == before


def test_mode_evaluate_gives_the_same_metrics(finished, tmp_path, call_here):
    config, workdir, _ = finished
    stored = runs.result(workdir / RUN)
    (workdir / RUN / "result.json").rename(tmp_path / "result.json")
    done = call_here(*runs.command(config, workdir, "--mode=evaluate"))
    assert done.returncode == 0, done.stderr
    assert runs.result(workdir / RUN) == stored


def run_and_signal(command, step, number):
    """Runs a command and sends a signal at a step; returns exit code, later stderr and seconds."""
    with subprocess.Popen(
        command,
        env=runs.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as child:
        for line in child.stderr:
            if f"step {step}/12" in line:
                child.send_signal(number)
                began = time.monotonic()
                break
        rest = child.stderr.read()
    return child.wait(), rest, time.monotonic() - began


# Tests of preemption send SIGINT to a smaller process.
@pytest.mark.parametrize(
    "signals",
    [
        ((8, signal.SIGTERM, 0),),
        pytest.param(((7, signal.SIGINT, 130), (9, signal.SIGTERM, 0)), marks=pytest.mark.faults),
    ],
    ids=["SIGTERM", "SIGINT, SIGTERM"],
)
def test_run_stopped_by_several_signals_equals_an_uninterrupted_one_bit_for_bit(
    finished, tiny, data_dir, tmp_path, one_device, signals
):
    """SIGKILL, then signals that save the current step. The first run was one of a sweep."""
    _, whole, _ = finished
    command = runs.command(runs.write_config(tmp_path / "c.py", data_dir, **TRAINING), tmp_path)
    checkpoints = tmp_path / RUN / "checkpoints"
    code, _, _ = run_and_signal(command, 5, signal.SIGKILL)
    assert code == -signal.SIGKILL
    with pytest.raises(UserError, match="training stopped at step"):
        run(tiny(**TRAINING), tmp_path, "evaluate")
    with pytest.raises(UserError, match=r"model\.dim: 32 -> 16"):
        run(tiny(**TRAINING, model__dim=16), tmp_path)
    (checkpoints / "7.orbax-checkpoint-tmp").mkdir()  # an incomplete checkpoint
    for at, number, expected in signals:
        code, errors, seconds = run_and_signal(command, at, number)
        assert code == expected and seconds < 30
        assert "step 1/12" not in errors and "Traceback" not in errors
        (step,) = re.findall(rf"stopped by {number.name}; step (\d+) is saved", errors)
        assert errors.strip().splitlines()[-1].endswith("run the same command to resume")
        assert at <= int(step) < STEPS
        assert (checkpoints / step).is_dir()  # also if no checkpoint was due
    resumed = runs.call(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert not list(checkpoints.glob("*tmp*"))
    assert "step 1/12" not in resumed.stderr  # resumed, not started again
    want, got = runs.final_params(whole / RUN), runs.final_params(tmp_path / RUN)
    assert want.keys() == got.keys() and len(want) > 20
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)
    assert runs.result(whole / RUN) == runs.result(tmp_path / RUN)


def start_two(config, workdir, *flags):
    """Two processes of one run, each with two devices."""
    address = f"127.0.0.1:{runs.free_port()}"
    flags = (*flags, f"--coordinator={address}", "--processes=2")
    return [
        subprocess.Popen(
            runs.command(config, workdir, *flags, f"--process={i}"),
            env=runs.environment(2),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for i in range(2)
    ]


def read_until(stream, part: str) -> None:
    """Reads lines up to one that contains `part`.

    Read the rest in a thread (`Drain`): the child blocks when the pipe is full.
    """
    for line in stream:
        if part in line:
            return
    raise AssertionError(f"no line with {part!r}")


class Drain(threading.Thread):
    """A thread that reads the remaining output of a child process into `text`."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.text = stream, ""
        self.start()

    def run(self):
        self.text = self.stream.read()


def test_two_processes_have_the_losses_of_one_and_one_process_can_resume_them(
    finished, data_dir, tmp_path
):
    """SIGTERM to one of the two stops both at the same step."""
    _, one, _ = finished
    two = tmp_path / "two"
    config = runs.write_config(tmp_path / "c.py", data_dir, **TRAINING | {"checkpoint_every": 100})
    children = start_two(config, two, "--config.mesh.fsdp=2")
    drain = Drain(children[1].stderr)
    read_until(children[0].stderr, "step 5/12")
    children[1].send_signal(signal.SIGTERM)
    _, errors = children[0].communicate(timeout=30)
    assert [child.wait(30) for child in children] == [0, 0], errors + drain.text
    (step,) = map(int, re.findall(r"stopped by SIGTERM; step (\d+) is saved", errors))
    assert 5 <= step < STEPS
    rest = runs.call(*runs.command(config, two))
    assert rest.returncode == 0, rest.stderr
    want, got = (runs.losses(folder / RUN) for folder in (one, two))
    assert sorted(want) == sorted(got) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([got[s] for s in want], list(want.values()), atol=1e-4)
    a, b = (runs.result(folder / RUN) for folder in (one, two))
    assert a["top1"] == pytest.approx(b["top1"], abs=0.01)


# Tests of several processes that do not train kill the first one.
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.faults), 1])
def test_if_a_process_dies_the_other_exits_with_the_reason(data_dir, tmp_path, victim):
    config = runs.write_config(
        tmp_path / "c.py", data_dir, optimizer__steps=5000, ablation="label",
        video_tower__temporal="mean",
    )  # fmt: skip
    children = start_two(config, tmp_path / "two", "--config.log_every=1")
    drain = Drain(children[1].stderr)
    # Only the first process prints its steps. If there is a checkpoint, both are training.
    first = Drain(children[0].stderr)
    deadline = time.monotonic() + 240
    while not (tmp_path / "two/label/split1/seed0/checkpoints/3").is_dir():
        assert time.monotonic() < deadline and children[0].poll() is None, first.text
        time.sleep(0.1)
    children[victim].kill()
    began = time.monotonic()
    assert children[1 - victim].wait(60) not in (0, None)
    assert time.monotonic() - began < 60
    for thread in (drain, first):
        thread.join(10)
    survivor = (first, drain)[1 - victim].text
    assert "another process has died or cannot be reached" in survivor, survivor


def one_line(done, code=2) -> str:
    """Returns the error of a failed command; asserts that it is one line without a traceback."""
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("coco_jax.")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.fixture
def demo_results(parse, tmp_path, monkeypatch):
    """Returns a function that writes runs/demo/results.json of a config, and the _workdir of flags."""
    monkeypatch.chdir(tmp_path)

    def make(*overrides):
        parse(main, "--config=demo", *overrides)
        summary = {"config": flags.FLAGS.config.to_dict()}
        (tmp_path / "runs/demo").mkdir(parents=True)
        (tmp_path / "runs/demo/results.json").write_text(json.dumps(summary))

    def workdir(*arguments):
        parse(main, "--config=demo", *arguments)
        return main._workdir(flags.FLAGS.workdir, flags.FLAGS.config)

    return make, workdir


@pytest.mark.parametrize(
    ("stored", "now", "named"),
    [
        ((), ("--config.seed=1",), "seed: 0 -> 1"),
        (("--config.seed=1",), (), "seed: 1 -> 0"),
        ((), ("--config.sweep.seed=(0,1)",), "sweep.seed: [] -> [0, 1]"),
    ],
)
def test_default_workdir_with_results_of_another_config_is_an_error(
    demo_results, stored, now, named
):
    make, workdir = demo_results
    make(*stored)
    with pytest.raises(UserError, match=r"^runs/demo has the results of another config") as caught:
        workdir(*now)
    assert named in str(caught.value) and "--workdir" in str(caught.value)
    assert workdir(*now, "--workdir=runs/other") == pathlib.Path("runs/other")
    assert workdir(*now, "--workdir=runs/demo") == pathlib.Path("runs/demo")  # explicit, so allowed


def test_default_workdir_is_used_again_with_the_same_config(demo_results):
    """Fields that do not affect the result may change, e.g. on another machine."""
    make, workdir = demo_results
    assert workdir("--config.seed=1") == pathlib.Path("runs/demo")  # no results yet
    shutil.rmtree("runs")
    make("--config.seed=1")
    moved = ("--config.data.dir=elsewhere", "--config.data.workers=4", "--config.mesh.fsdp=2")
    assert workdir("--config.seed=1", *moved) == pathlib.Path("runs/demo")


def test_workdir_that_cannot_be_created_is_a_one_line_error(demo_results, tmp_path):
    _, workdir = demo_results
    (tmp_path / "runs").touch()
    for given, named in (((), "runs/demo"), (("--workdir=runs/a/b",), "runs/a/b")):
        with pytest.raises(UserError, match=f"^--workdir={named}: .*choose another folder$"):
            workdir(*given)


@pytest.mark.parametrize(
    "module", ["coco_jax.main", "coco_jax.predict", "coco_jax.compile", "tfds_builders.build"]
)
def test_unknown_flag_is_a_one_line_error_of_every_command(module):
    done = runs.call(sys.executable, "-m", module, "--mood=both")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{module}: Unknown command line flag 'mood'")


def test_unknown_dataset_is_a_one_line_error_with_exit_code_2(finished, tmp_path, call_here):
    config, _, _ = finished
    done = call_here(*runs.command(config, tmp_path / "x", "--config.data.name=nothing"))
    assert "dataset 'nothing' does not exist" in one_line(done)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data__dir", "/nowhere", "is not in /nowhere"),
        ("split", "7", "has no split '7'; it has 1, 2, 3"),
        ("cycle__pool", "anything", "is not one of unseen, auxiliary, episodic"),
        ("ablation", "labels", r"is not one of label, label\+desc"),
        ("optimizer__microbatches", 3, "is not a multiple of optimizer.microbatches, 3"),
        ("mesh__tensor", 3, "does not fit 8 devices"),
        ("video_tower__patch", 7, "is not a multiple of video_tower.patch, 7"),
        ("text_tower__heads", 5, "is not a multiple of text_tower.heads, 5"),
        ("text__corpus", None, "needs descriptions"),
        ("data__batch", 12, "does not divide"),
        ("video_tower__patch", 0, "config.video_tower.patch: 0 must be from 1 to 4,096"),
        ("video_tower__pool", "max", "is not one of cls, map, wide_map, mean"),
        ("model__dtype", "float17", "is not one of float32"),
        ("cycle__stop_gradient", ("targets",), "'targets' is not one of seen, unseen, target"),
        ("optimizer__learning_rate_multipliers", (("(", 1.0),), "is not a regular expression"),
        ("text__vocabulary", 5, "config.text.vocabulary: 5"),
    ],
)
def test_invalid_config_is_a_one_line_error_with_the_field(tiny, tmp_path, field, value, message):
    config = tiny(**{field: value})
    with pytest.raises(UserError, match=message) as caught:
        run(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_changed_config_is_an_error_that_lists_the_changed_fields(finished, call_here):
    config, workdir, _ = finished
    changed = ("--config.optimizer.learning_rate=0.5", "--config.log_every=7")
    error = one_line(call_here(*runs.command(config, workdir, *changed)))
    assert "optimizer.learning_rate: 0.002 -> 0.5" in error and "log_every" not in error


def test_single_value_on_the_command_line_replaces_the_sweep(finished, tmp_path, call_here):
    """The run is finished, so it is not trained again."""
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    words = ("--config.ablation=label", "--config.data.dir=/nowhere")
    done = call_here(*runs.command(config, tmp_path / "run", *words))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["ablations"]) == ["label"]


def test_damaged_checkpoint_in_evaluation_is_a_one_line_error(finished, tmp_path, call_here):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / RUN / "result.json").unlink()
    for file in (tmp_path / "run" / RUN / "checkpoints/12/state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error = one_line(call_here(*runs.command(config, tmp_path / "run", "--mode=evaluate")))
    assert "checkpoints/12: the checkpoint is damaged" in error


def test_loss_that_is_not_finite_is_an_error_and_no_checkpoint_is_saved(tiny, tmp_path, one_device):
    config = tiny(
        optimizer__learning_rate=1e30, optimizer__clip_norm=1e30, optimizer__warmup=0,
        ablation="label", video_tower__temporal="mean",
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"the loss is nan.* config\.optimizer\.learning_rate"
    ) as caught:
        run(config, tmp_path)
    error = str(caught.value)
    assert "\n" not in error and error.count("_0") >= 8  # the ids of the clips in the batch
    folder = tmp_path / "label/split1/seed0/checkpoints"
    assert not [path for path in folder.iterdir() if path.name.isdigit()]
