"""The command sweep: it searches, prints the best trial, and the command that trains it."""

import shlex

import pytest

from coco_jax import sweep
from coco_jax.errors import UserError
from coco_jax.evaluation import search
from coco_jax.training import preemption
from tests.helpers import runs


@pytest.fixture
def call(parse, monkeypatch, tmp_path):
    """Runs the command with flags in this process, without training: tau decides the accuracy."""
    monkeypatch.setattr(search, "run", lambda c, folder, **_: {"top1": 1 - abs(c.model.tau - 0.3)})
    monkeypatch.setattr(preemption.Preemption, "install", lambda self: self)
    config = runs.write_config(tmp_path / "mine.py", "data")

    def run(*arguments):
        words = [f"--config={config}", f"--workdir={tmp_path / 'found'}", *arguments]
        parse(sweep, *words)
        sweep.command(["coco-jax sweep"])
        return words

    return run


def test_command_prints_the_best_trial_and_how_to_train_it(call, capsys):
    words = call("--search=model.tau=uniform:0.1:1", "--trials=6", "--config.split=2")
    out = capsys.readouterr().out
    lines = out.splitlines()
    rows = [line.split() for line in lines[:6]]
    assert [row[0] for row in rows] == list("012345")
    best = max(rows, key=lambda row: float(row[1]))
    assert lines[lines.index("Best of 6 trials on validation classes:") + 1].split() == best
    command = shlex.split(lines[-1])
    assert command[:3] == ["coco-jax", "train", words[0]] and len(command) == 4
    field, _, value = command[3].partition("=")
    assert field == "--config.model.tau" and float(value) == pytest.approx(
        float(best[2].partition("=")[2]), abs=1e-3
    )
    assert 100 * (1 - abs(float(value) - 0.3)) == pytest.approx(float(best[1]), abs=0.06)
    call("--search=model.tau=uniform:0.1:1", "--trials=7", "--config.split=2")
    again = capsys.readouterr().out.splitlines()
    assert [line.removesuffix("  (done before)") for line in again[:6]] == lines[:6]
    assert "done before" not in again[6]


def test_test_classes_cannot_be_asked_for(call):
    with pytest.raises(
        UserError, match=r"--config\.protocol=test: a search uses validation classes only"
    ):
        call("--search=model.tau=log:0.1:1", "--config.protocol=test")
    with pytest.raises(UserError, match="nothing to search"):
        call()


def test_training_command_leaves_out_what_the_search_chose_and_measured():
    words = [
        "--config", "my config.py", "--config.protocol=validation", "--config.sweep.split=('0', '1')",
        "--config.seed", "3", "--config.model.tau=0.5", "--config.model.alpha", "0.1", "--trials=9",
        "--workdir=a", "--search=model.tau=log:0.1:1",
    ]  # fmt: skip
    found = sweep.training_command(
        words, {"model.tau": 0.25, "ablation": "full", "model.centre": True}
    )
    assert shlex.split(found) == [
        "coco-jax", "train", "--config", "my config.py", "--config.model.alpha", "0.1",
        "--config.model.tau=0.25", "--config.ablation=full", "--config.model.centre=True",
    ]  # fmt: skip


def test_search_without_a_result_is_an_error(call, monkeypatch):
    def diverge(*args, **options):
        raise search.DivergedError("the loss is nan")

    monkeypatch.setattr(search, "run", diverge)
    with pytest.raises(UserError, match="none of the 2 trials has a result"):
        call("--search=model.tau=uniform:0.1:1", "--trials=2")
