"""Evaluation on validation classes during training: it changes nothing, and stops or keeps as told."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from coco_jax import sharding
from coco_jax.data import dataset as datasets
from coco_jax.data.task import make_task, validation_task
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import evaluated_params, run
from coco_jax.sharding import path_of
from coco_jax.training.loop import train
from coco_jax.training.step import make_program
from coco_jax.training.writers import Writer
from tests.helpers import runs

RUN = "label/split1/seed0"
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def validated(tiny):
    """A function that makes tiny configs for the protocol `validation`."""
    fields = {"protocol": "validation", "validation_classes": 4, "ablation": "label"}
    return lambda **changes: tiny(**fields, **changes)


def history(folder) -> dict:
    return json.loads((folder / "validation.json").read_text())


def test_a_run_with_validation_is_bit_for_bit_the_run_without_it(validated, tmp_path):
    plain = run(validated(), tmp_path / "plain")
    got = run(validated(eval__every=2), tmp_path / "validated")
    a, b = (runs.final_params(tmp_path / name / RUN) for name in ("plain", "validated"))
    assert a.keys() == b.keys() and len(a) > 20
    for path, value in a.items():
        np.testing.assert_array_equal(value, b[path], err_msg=path)
    assert got == plain
    found = history(tmp_path / "validated" / RUN)
    assert [row["step"] for row in found["history"]] == [2, 4, 6]
    # In this protocol the validation classes are those that are tested at the end.
    assert found["history"][-1]["top1"] == got["top1"] and not found["stopped_early"]
    curve = runs.losses(tmp_path / "validated" / RUN, "validation/top1")
    assert curve == pytest.approx({row["step"]: row["top1"] for row in found["history"]})
    assert not (tmp_path / "plain" / RUN / "validation.json").exists()


class Scripted:
    """A measure that returns the next of given accuracies."""

    def __init__(self, *top1: float):
        self.left = list(top1)

    def __call__(self, params) -> dict[str, float]:
        return {"top1": self.left.pop(0)}


@pytest.fixture(scope="module")
def program_of():
    """Returns the compiled functions of a config; they do not depend on `config.eval`."""
    made = []

    def program(config):
        if not made:
            made.append(make_program(config, sharding.make_mesh(config)))
        return made[0]

    return program


@pytest.fixture
def scripted(validated, tmp_path, program_of):
    """Trains with scripted accuracies; returns the task, the program, the state and the folder."""

    def trained(*top1: float, **changes):
        config = validated(
            eval__every=2, checkpoint_every=2, keep_checkpoints=9, optimizer__steps=12, **changes
        )
        task = make_task(config)
        program = program_of(task.config)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        state = train(program, task, folder, "run", measure=Scripted(*top1))
        return task, program, state, folder

    return trained


def test_the_best_step_is_kept_and_evaluated_if_asked(scripted):
    """The first of two equal accuracies is the best one."""
    task, program, state, folder = scripted(0.2, 0.5, 0.5, 0.1, 0.4, 0.3, eval__keep_best=True)
    assert int(state.step) == 12 and history(folder)["best_step"] == 4
    step, params = evaluated_params(folder, task, program)
    assert step == 4
    stored = runs.stored(folder / "checkpoints/4")
    for path, leaf in jax.tree.leaves_with_path(params):
        np.testing.assert_array_equal(leaf, stored[f"params/{path_of(path)}"])
    task.config.eval.keep_best = False
    assert evaluated_params(folder, task, program)[0] == 12


def test_training_stops_early_and_a_resumed_run_stops_at_the_same_step(scripted, capsys):
    values = (0.5, 0.6, 0.6, 0.1)
    changes = {"eval__patience": 2}
    task, program, state, folder = scripted(*values, **changes)
    assert int(state.step) == 8 and history(folder)["stopped_early"]
    assert "stopped at step 8: top-1 on the validation classes" in capsys.readouterr().err
    whole = runs.final_params(folder)
    assert evaluated_params(folder, task, program)[0] == 8
    # Trained again, it is finished; killed after step 4, it evaluates steps 6 and 8 again.
    assert int(scripted(**changes)[2].step) == 8
    for step in (6, 8):
        shutil.rmtree(folder / f"checkpoints/{step}")
    with pytest.raises(UserError, match="training stopped at step 4 of 8; finish it first"):
        evaluated_params(folder, task, program)
    assert int(scripted(*values[2:], **changes)[2].step) == 8
    assert [row["step"] for row in history(folder)["history"]] == [2, 4, 6, 8]
    for path, value in runs.final_params(folder).items():
        np.testing.assert_array_equal(value, whole[path])


def test_split_without_validation_classes_is_an_error_of_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match=r"split '1' of motion_zsar has no validation classes; set"):
        run(tiny(eval__every=2, ablation="label"), tmp_path)
    assert not (tmp_path / RUN / "checkpoints").exists()


def split_of(protocol: str, validation: list[str]) -> types.SimpleNamespace:
    """A task with the seen classes a and b and the tested class c."""
    dataset = types.SimpleNamespace(
        name="zumba", class_splits={"1": {"validation": validation}}, random_splits=None
    )
    plan = types.SimpleNamespace(seen=("a", "b"), unseen=("c",))
    config = types.SimpleNamespace(protocol=protocol, split="1")
    return types.SimpleNamespace(config=config, dataset=dataset, plan=plan)


def test_validation_classes_that_are_trained_on_or_missing_are_an_error():
    with pytest.raises(UserError, match=r"split '1' of zumba trains on its validation classes"):
        validation_task(split_of("test", ["b", "d"]))
    for protocol in ("cross", "frozen"):
        with pytest.raises(UserError, match=f"'{protocol}' has no validation classes"):
            validation_task(split_of(protocol, ["d"]))


def test_tested_classes_are_never_validation_classes():
    with pytest.raises(AssertionError, match=r"validation classes are tested: \['c'\]"):
        validation_task(split_of("test", ["c"]))


def test_validation_classes_of_a_split_are_other_classes_than_seen_and_tested_ones(
    tiny, monkeypatch
):
    """As in Kinetics-ZSAR: neither trained on nor tested; they are the only candidates."""
    config = tiny(eval__every=3)
    dataset = datasets.load("motion_zsar", config.data.dir)
    split = dataset.class_splits["1"]
    held_out = list(split["seen"][:6])
    changed = {**split, "seen": list(split["seen"][6:]), "validation": held_out}
    dataset = dataclasses.replace(dataset, class_splits={"1": changed})
    monkeypatch.setattr(datasets, "load", lambda name, data_dir: dataset)
    task = make_task(config)
    chosen = validation_task(task)
    assert chosen.classes == {"seen": [], "pool": [], "unseen": held_out}
    used = {*task.plan.train, *task.plan.test_unseen, *task.plan.test_seen}
    assert len(chosen.plan.test_unseen) == 60 and not used & set(chosen.plan.test_unseen)


def test_wandb_gets_the_curves_offline(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    writer = Writer(tiny(writers=("wandb",)), tmp_path, "a run", True)
    writer.write_scalars(1, {"loss": np.float32(2.5)})
    writer.write_scalars(2, {"loss": np.float32(1.5), "validation/top1": 0.25})
    writer.close()
    wandb.teardown()  # waits until its process has written everything, as at the end of a command
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = path.read_bytes()
    assert b"validation/top1" in content and b"2.5" in content
    assert not list(tmp_path.glob("events.*"))  # TensorBoard is not among the writers


def test_missing_wandb_is_an_error_that_says_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install \"coco_jax\[wandb\]\""):
        Writer(tiny(writers=("tensorboard", "wandb")), tmp_path, "a run", True)
