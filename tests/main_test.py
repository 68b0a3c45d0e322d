"""The command from outside: what it writes, how it survives, what it says of bad input."""

import json
import pathlib
import re
import shutil
import signal
import socket
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A tiny sweep of two ablations, run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    config = runs.write_config(folder / "config.py", data_dir, sweep__ablation=("label", "full"))
    done = runs.call(*runs.command(config, folder / "run", "--profile_steps=3:4"))
    assert done.returncode == 0, done.stderr
    return config, folder / "run", done


def test_a_sweep_leaves_results_figures_and_a_table(finished):
    _, workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["dataset"] == "motion_zsar" and results["pool"] == "unseen"
    assert results["chance"] == 0.125 and results["seeds"] == [0]
    assert list(results["ablations"]) == ["label", "full"]
    for figures in results["ablations"].values():
        assert set(figures) == {"top1", "top5", "generalised"}
        assert set(figures["generalised"]) == {"seen", "unseen", "harmonic", "auc"}
        assert figures["top1"]["mean"] == figures["top1"]["runs"][0]
        assert 0 <= figures["top1"]["mean"] <= figures["top5"]["mean"] <= 1
    for name in ("confusion.png", "clips.png"):
        assert (workdir / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert "| label " in done.stdout and "| full " in done.stdout
    assert "parameters" in done.stderr and "clips/s" in done.stderr
    assert (workdir / RUN / "parameters.txt").read_text().count("kernel") > 5


def test_a_step_s_time_is_split_and_traced(finished):
    _, workdir, done = finished
    parts = [runs.losses(workdir / RUN, f"seconds/{what}") for what in ("data", "host", "device")]
    for step, whole in runs.losses(workdir / RUN, "seconds/step").items():
        assert whole == pytest.approx(sum(part[step] for part in parts), rel=1e-5)
        assert all(part[step] >= 0 for part in parts)
    assert set(runs.losses(workdir / RUN, "broken_videos").values()) == {0}
    assert "clips/s (data " in done.stderr and "MFU" not in done.stderr  # a CPU's peak is not known
    (trace,) = (workdir / RUN / "plugins" / "profile").glob("*/*.xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines]
    events = [event for line in lines for event in line.events if event.name == "train"]
    assert [dict(event.stats)["step_num"] for event in events] == [3, 4]
    assert f"tensorboard --logdir={workdir / RUN}" in done.stderr


def test_a_finished_sweep_is_not_trained_again(finished):
    config, workdir, _ = finished
    before = (workdir / RUN / "result.json").stat().st_mtime_ns
    again = runs.call(*runs.command(config, workdir, "--config.data.dir=/nowhere"))
    assert again.returncode == 0 and "clips/s" not in again.stderr
    assert "| full " in again.stdout and "clips.png is not drawn" in again.stderr
    assert (workdir / RUN / "result.json").stat().st_mtime_ns == before


def test_evaluation_alone_gives_the_same_figures(finished, tmp_path):
    config, workdir, _ = finished
    stored = runs.result(workdir / RUN)
    (workdir / RUN / "result.json").rename(tmp_path / "result.json")
    done = runs.call(*runs.command(config, workdir, "--mode=evaluate"))
    assert done.returncode == 0, done.stderr
    assert runs.result(workdir / RUN) == stored


def signalled(command, step, number):
    """The exit code, last words and seconds of a run that gets a signal at a step, and after it."""
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


def test_stopped_by_each_signal_in_turn_it_ends_bit_for_bit_the_same(uninterrupted, tmp_path):
    """SIGKILL, Ctrl-C, then SIGTERM; the last two save the step that they come at."""
    config, whole = uninterrupted
    command = runs.command(config, tmp_path)
    checkpoints = tmp_path / RUN / "checkpoints"
    code, _, _ = signalled(command, 5, signal.SIGKILL)
    assert code == -signal.SIGKILL
    half = runs.call(*command, "--mode=evaluate")
    assert "training stopped at step" in one_line(half)
    other = runs.call(*command, "--config.model.dim=16")
    assert "model.dim: 32 -> 16" in one_line(other)
    (checkpoints / "7.orbax-checkpoint-tmp").mkdir()  # half written
    for at, number, expected in ((7, signal.SIGINT, 130), (9, signal.SIGTERM, 0)):
        code, said, seconds = signalled(command, at, number)
        assert code == expected and seconds < 30
        assert "step 1/12" not in said and "Traceback" not in said
        (step,) = re.findall(rf"stopped by {number.name}; step (\d+) is saved", said)
        assert said.strip().splitlines()[-1].endswith("run the same command to resume")
        assert at <= int(step) < 12
        assert (checkpoints / step).is_dir()  # of that step, due or not
    resumed = runs.call(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert not list(checkpoints.glob("*tmp*"))
    assert "step 1/12" not in resumed.stderr  # it was taken up, not begun again
    want, got = runs.final_params(whole / RUN), runs.final_params(tmp_path / RUN)
    assert want.keys() == got.keys() and len(want) > 20
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)
    assert runs.result(whole / RUN) == runs.result(tmp_path / RUN)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("whole")
    config = runs.write_config(
        folder / "c.py", data_dir, optimizer__steps=12, checkpoint_every=2, video_tower__dropout=0.1
    )
    whole = runs.call(*runs.command(config, folder / "run"))
    assert whole.returncode == 0, whole.stderr
    return config, folder / "run"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(config, workdir, *flags):
    """Two processes of one run, each with two devices."""
    address = f"127.0.0.1:{free_port()}"
    flags = (*flags, f"--coordinator={address}", "--processes=2")
    return [
        subprocess.Popen(
            runs.command(config, workdir, *flags, f"--process={i}"),
            env=runs.environment(2), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for i in range(2)
    ]  # fmt: skip


def read_until(stream, part: str) -> None:
    """Reads lines up to the one that holds `part`; the rest is read by a thread, as pipes fill."""
    for line in stream:
        if part in line:
            return
    raise AssertionError(f"no line with {part!r}")


class Drain(threading.Thread):
    """What a child still writes."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.text = stream, ""
        self.start()

    def run(self):
        self.text = self.stream.read()


def test_two_processes_give_the_losses_of_one_and_one_takes_them_over(data_dir, tmp_path):
    """SIGTERM to one of the two stops both at the same step; a single process makes the rest."""
    config = runs.write_config(
        tmp_path / "c.py", data_dir, optimizer__steps=20, checkpoint_every=100, mesh__fsdp=2
    )
    one = runs.call(*runs.command(config, tmp_path / "one"), devices=2)
    assert one.returncode == 0, one.stderr
    children = start_two(config, tmp_path / "two")
    drain = Drain(children[1].stderr)
    read_until(children[0].stderr, "step 10/20")
    children[1].send_signal(signal.SIGTERM)
    _, told = children[0].communicate(timeout=30)
    assert [child.wait(30) for child in children] == [0, 0], told + drain.text
    (step,) = map(int, re.findall(r"stopped by SIGTERM; step (\d+) is saved", told))
    assert 10 <= step < 20
    rest = runs.call(*runs.command(config, tmp_path / "two"), devices=2)
    assert rest.returncode == 0, rest.stderr
    want, got = (runs.losses(tmp_path / name / RUN) for name in ("one", "two"))
    assert sorted(want) == sorted(got) == list(range(1, 21))
    np.testing.assert_allclose([got[s] for s in want], list(want.values()), atol=1e-4)
    a, b = (runs.result(tmp_path / name / RUN) for name in ("one", "two"))
    assert a["top1"] == pytest.approx(b["top1"], abs=0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_where_a_process_dies_the_other_stops_and_says_why(data_dir, tmp_path, victim):
    config = runs.write_config(tmp_path / "c.py", data_dir, optimizer__steps=5000)
    children = start_two(config, tmp_path / "two", "--config.log_every=1")
    drain = Drain(children[1].stderr)
    # The second process says nothing of its steps: where the first checkpoint is, both are at work.
    first = Drain(children[0].stderr)
    deadline = time.monotonic() + 240
    while not (tmp_path / "two" / RUN / "checkpoints" / "3").is_dir():
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
    """The error of a failed command: a single line, no traceback."""
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("coco_jax.")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.fixture
def demo_results(parse, tmp_path, monkeypatch):
    """Makes runs/demo/results.json in the working folder, of a config that flags changed."""
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
def test_the_default_workdir_keeps_the_results_of_another_config(demo_results, stored, now, named):
    make, workdir = demo_results
    make(*stored)
    with pytest.raises(UserError, match=r"^runs/demo has the results of another config") as caught:
        workdir(*now)
    assert named in str(caught.value) and "--workdir" in str(caught.value)
    assert workdir(*now, "--workdir=runs/other") == pathlib.Path("runs/other")
    assert workdir(*now, "--workdir=runs/demo") == pathlib.Path("runs/demo")  # it was asked for


def test_the_default_workdir_takes_the_same_config_again(demo_results):
    """Also on another machine."""
    make, workdir = demo_results
    assert workdir("--config.seed=1") == pathlib.Path("runs/demo")  # nothing is there yet
    shutil.rmtree("runs")
    make("--config.seed=1")
    moved = ("--config.data.dir=elsewhere", "--config.data.workers=4", "--config.mesh.fsdp=2")
    assert workdir("--config.seed=1", *moved) == pathlib.Path("runs/demo")


def test_a_workdir_that_cannot_be_written_is_one_line(demo_results, tmp_path):
    _, workdir = demo_results
    (tmp_path / "runs").touch()
    for given, named in (((), "runs/demo"), (("--workdir=runs/a/b",), "runs/a/b")):
        with pytest.raises(UserError, match=f"^--workdir={named}: .*choose another folder$"):
            workdir(*given)


@pytest.mark.parametrize(
    "module", ["coco_jax.main", "coco_jax.predict", "coco_jax.compile", "tfds_builders.build"]
)
def test_every_command_refuses_a_flag_it_does_not_know(module):
    done = runs.call(sys.executable, "-m", module, "--mood=both")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{module}: Unknown command line flag 'mood'")


def test_a_bad_config_is_one_line_and_exit_code_2(finished, tmp_path):
    config, _, _ = finished
    done = runs.call(*runs.command(config, tmp_path / "x", "--config.data.name=nothing"))
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
        ("video_tower__patch", 0, "config.video_tower.patch: 0 must be more than 0"),
        ("video_tower__pool", "max", "is not one of cls, map, wide_map, mean"),
        ("model__dtype", "float17", "is not one of float32"),
        ("cycle__stop_gradient", ("targets",), "'targets' is not one of seen, unseen, target"),
        ("optimizer__learning_rate_multipliers", (("(", 1.0),), "is not a regular expression"),
        ("text__vocabulary", 5, "config.text.vocabulary: 5"),
    ],
)
def test_a_config_that_cannot_work_says_which_field_and_what_to_do(
    tiny, tmp_path, field, value, message
):
    config = tiny(**{field: value})
    with pytest.raises(UserError, match=message) as caught:
        run(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_config_is_refused_field_by_field_unless_allowed(finished):
    config, workdir, _ = finished
    changed = runs.command(
        config, workdir, "--config.optimizer.learning_rate=0.5", "--config.log_every=7"
    )
    error = one_line(runs.call(*changed))
    assert "optimizer.learning_rate: 0.002 -> 0.5" in error and "log_every" not in error


def test_a_single_value_on_the_command_line_stands_in_for_the_sweep(finished, tmp_path):
    config, _, _ = finished
    done = runs.call(*runs.command(config, tmp_path, "--config.ablation=label", "--mode=train"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["label"]


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / RUN / "result.json").unlink()
    for file in (tmp_path / "run" / RUN / "checkpoints/6/state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error = one_line(runs.call(*runs.command(config, tmp_path / "run", "--mode=evaluate")))
    assert "checkpoints/6: the checkpoint is damaged" in error


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_of_it_is_kept(data_dir, tmp_path):
    config = runs.write_config(
        tmp_path / "c.py",
        data_dir,
        optimizer__learning_rate=1e30,
        optimizer__clip_norm=1e30,
        optimizer__warmup=0,
    )
    error = one_line(runs.call(*runs.command(config, tmp_path / "run")))
    assert "the loss is nan" in error and "config.optimizer.learning_rate" in error
    assert error.count("_0") >= 8  # the ids of the batch's clips
    kept = [p for p in (tmp_path / "run" / RUN / "checkpoints").iterdir() if p.name.isdigit()]
    assert not kept
