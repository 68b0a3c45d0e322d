"""Runs of an experiment; each is trained and evaluated in its own folder."""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from coco_jax import files, sharding, weights
from coco_jax.config import default, load_stored, training_steps
from coco_jax.data.task import Task, make_task
from coco_jax.errors import UserError
from coco_jax.evaluation import explanation
from coco_jax.evaluation.evaluate import measure, score
from coco_jax.evaluation.results import write_json
from coco_jax.training import multihost, run_lock
from coco_jax.training.checkpoint import check_trained, check_unchanged, read_json, restore_params
from coco_jax.training.events import EventWriter
from coco_jax.training.loop import train
from coco_jax.training.preemption import Preemption
from coco_jax.training.step import Params, Program, make_program


def run_configs(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config of every run of the sweep: ablations, then splits, then seeds."""
    sweep = [config.sweep[field] or (config[field],) for field in ("ablation", "split", "seed")]
    for ablation, split, seed in itertools.product(*sweep):
        run_config = config.copy_and_resolve_references()
        with run_config.unlocked():
            run_config.ablation, run_config.split, run_config.seed = ablation, str(split), int(seed)
        yield run_config


def run_name(config: ConfigDict) -> str:
    """The folder of a run, relative to its workdir."""
    return f"{config.ablation}/split{config.split}/seed{config.seed}"


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    mode: str = "both",
    allow_config_change: bool = False,
    profile_steps: tuple[int, int] | None = None,
    preemption: Preemption | None = None,
) -> dict[str, Any]:
    """Trains and evaluates one run in `workdir/ABLATION/splitN/seedN`, or resumes it.

    A finished run is not repeated, and its data is not opened.

    Args:
      config: of the run, without a sweep.
      workdir: of the experiment.
      mode: "train", "evaluate" or "both".
      allow_config_change: resume even if the config differs from the stored one.
      profile_steps: first and last step to trace, counted from 1.
      preemption: handles SIGTERM and Ctrl-C.

    Returns:
      The metrics in result.json; {} if the run was only trained.

    Raises:
      UserError: the config or the data is not valid, the config differs from the stored one, or
        another command is working on the run.
    """
    name = run_name(config)
    folder = workdir / name
    if (finished := _finished(folder, config, allow_config_change)) is not None:
        return finished
    if mode == "evaluate":
        check_trained(folder / "checkpoints")
    task = make_task(config)
    if mode != "train" and not task.plan.unseen:
        raise UserError(
            f"config.split: {config.split!r} has no unseen classes to test on; use --mode=train"
        )
    program = _shared_program(_program_fields(task.config))
    with run_lock.held(folder):
        # Another command may have worked on this run before this one got the lock.
        if (finished := _finished(folder, config, allow_config_change)) is not None:
            return finished
        if mode == "evaluate":
            step, params = restore_params(folder / "checkpoints", program)
            if step != training_steps(config):
                raise UserError(
                    f"{folder}: training stopped at step {step} of {training_steps(config)}; finish it "
                    "first (the same command without --mode=evaluate)"
                )
        else:
            if jax.process_index() == 0:
                write_json(folder / "config.json", task.config.to_dict())
                files.write_bytes(folder / "tokenizer.model", task.tokenizer.model)
            state = train(program, task, folder, name, profile_steps, preemption)
            step, params = int(state.step), state.params
        if mode == "train":
            return {}
        return _evaluate(program, params, task, step, folder)


def _finished(
    folder: pathlib.Path, config: ConfigDict, allow_config_change: bool
) -> dict[str, Any] | None:
    """The metrics of a finished run; None if it is not finished. The same in all processes.

    Raises:
      UserError: the config differs from the stored one.
    """
    check_unchanged(folder, config, allow_config_change)
    result = folder / "result.json"
    # Network file systems may show a new file to one host earlier than to another.
    if not multihost.gather_json(result.exists())[0]:
        return None
    return read_json(result) if jax.process_index() == 0 else {}


def _evaluate(
    program: Program, params: Params, task: Task, step: int, folder: pathlib.Path
) -> dict[str, Any]:
    """Evaluates the parameters of the last step and writes the metrics."""
    config = task.config
    if config.eval.interpolate:
        initial = weights.load(config, program.init(jax.random.key(config.seed)).params)
        params = weights.interpolate(config, params, initial)
    scored = score(program, params, task, step)
    metrics, details = measure(scored), explanation.explain(scored)
    metrics = {"ablation": config.ablation, "split": config.split, "seed": config.seed} | metrics
    if jax.process_index() == 0:
        write_json(folder / explanation.NAME, details)
        write_json(folder / "result.json", metrics)  # last: it marks the run as finished
        _write_scalars(folder, step, metrics)
    return metrics


def _program_fields(config: ConfigDict) -> str:
    """The config of a run without the fields on which its compiled functions do not depend."""
    fields = config.copy_and_resolve_references()
    plain = default()
    fields.update(split=plain.split, seed=plain.seed, sweep=plain.sweep)
    return json.dumps(fields.to_dict())


@functools.lru_cache(maxsize=1)
def _shared_program(fields: str) -> Program:
    """The program of consecutive runs of a sweep that differ in the split or the seed only."""
    config = load_stored(json.loads(fields), "config")
    return make_program(config, sharding.make_mesh(config))


def _write_scalars(folder: pathlib.Path, step: int, metrics: dict[str, Any]) -> None:
    """Writes the metrics of the evaluation for TensorBoard, under `eval/`."""
    scalars = {"top1": metrics["top1"], "top5": metrics["top5"], **(metrics["generalised"] or {})}
    writer = EventWriter(folder)
    writer.write_scalars(step, {f"eval/{k}": v for k, v in scalars.items() if v is not None})
    writer.close()
