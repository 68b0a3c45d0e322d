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
from coco_jax.data.task import Task, make_task, validation_task
from coco_jax.errors import UserError
from coco_jax.evaluation import evidence, explanation
from coco_jax.evaluation.evaluate import evaluate_validation, list_predictions, measure, score
from coco_jax.evaluation.results import DETAILS, write_json
from coco_jax.training import multihost, run_lock
from coco_jax.training.checkpoint import check_trained, check_unchanged, read_json, restore_params
from coco_jax.training.loop import train
from coco_jax.training.preemption import Preemption
from coco_jax.training.step import Params, Program, make_program
from coco_jax.training.text_features import with_features
from coco_jax.training.validation import Measure, evaluated_checkpoints, last_step
from coco_jax.training.writers import Writer


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
    if mode == "evaluate" and config.protocol == "frozen":
        mode = "both"  # there is nothing to train
    if mode == "evaluate":
        check_trained(folder / "checkpoints")
    task = make_task(config)
    if mode != "train" and not task.plan.unseen:
        raise UserError(
            f"config.split: {config.split!r} has no unseen classes to test on; use --mode=train"
        )
    program = _shared_program(_program_fields(task.config))
    measure = _make_measure(program, task) if config.eval.every else None
    with run_lock.held(folder):
        # Another command may have worked on this run before this one got the lock.
        if (finished := _finished(folder, config, allow_config_change)) is not None:
            return finished
        if mode == "evaluate":
            step, params = evaluated_params(folder, task, program)
        else:
            if jax.process_index() == 0:
                write_json(folder / "config.json", task.config.to_dict())
                files.write_bytes(folder / "tokenizer.model", task.tokenizer.model)
            state = train(program, task, folder, name, profile_steps, preemption, measure)
            if mode == "train":
                return {}
            if config.eval.keep_best:
                step, params = evaluated_params(folder, task, program)
            else:
                step, params = int(state.step), _interpolated(task, program, state.params)
        return _evaluate(program, params, task, step, folder)


def evaluated_params(folder: pathlib.Path, task: Task, program: Program) -> tuple[int, Params]:
    """The parameters of a trained run that are evaluated, and their step.

    Raises:
      UserError: there is no readable checkpoint, or training is not finished.
    """
    if task.config.protocol == "frozen":
        return 0, _published(task, program)
    step, params = restore_params(folder / "checkpoints", program)
    last = last_step(folder, training_steps(task.config))
    if step != last:
        raise UserError(
            f"{folder}: training stopped at step {step} of {last}; finish it first (the same command "
            "without --mode=evaluate)"
        )
    if task.config.eval.keep_best:
        step, params = restore_params(evaluated_checkpoints(folder, task.config), program)
    return step, _interpolated(task, program, params)


def _make_measure(program: Program, task: Task) -> Measure:
    """The function that evaluates parameters on the validation classes of a run.

    Raises:
      UserError: there are none.
    """
    tasks = [validation_task(task)]

    def measure(params: Params) -> dict[str, float]:
        if len(tasks) == 1:  # a frozen text tower embeds the texts once
            tasks.append(with_features(tasks[0], program, params))
        return evaluate_validation(program, params, tasks[1])

    return measure


def _interpolated(task: Task, program: Program, params: Params) -> Params:
    if not task.config.eval.interpolate:
        return params
    return weights.interpolate(task.config, params, _published(task, program))


def _published(task: Task, program: Program) -> Params:
    """The parameters at step 0: published towers, the rest initialised."""
    params = program.init(jax.random.key(task.config.seed)).params
    return weights.load(task.config, params)


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
    """Evaluates parameters, and writes the metrics, the predictions and the evidence."""
    config = task.config
    scored = score(program, params, task, step)
    metrics, details = measure(scored), explanation.explain(scored)
    metrics = {"ablation": config.ablation, "split": config.split, "seed": config.seed} | metrics
    checksum = evidence.parameters_sha256(program, params)
    if jax.process_index() == 0:
        write_json(folder / DETAILS, details)
        evidence.write(folder, task, metrics, list_predictions(scored), checksum)
        write_json(folder / "result.json", metrics)  # last: it marks the run as finished
        _write_scalars(config, folder, step, metrics)
    return metrics


def _program_fields(config: ConfigDict) -> str:
    """The config of a run without the fields on which its compiled functions do not depend."""
    fields = config.copy_and_resolve_references()
    plain = default()
    fields.update(split=plain.split, seed=plain.seed, sweep=plain.sweep, eval=plain.eval)
    return json.dumps(fields.to_dict())


@functools.lru_cache(maxsize=1)
def _shared_program(fields: str) -> Program:
    """The program of consecutive runs of a sweep that differ in the split or the seed only."""
    config = load_stored(json.loads(fields), "config")
    return make_program(config, sharding.make_mesh(config))


def _write_scalars(
    config: ConfigDict, folder: pathlib.Path, step: int, metrics: dict[str, Any]
) -> None:
    """Writes the metrics of the evaluation to `config.writers`, under `eval/`."""
    scalars = {"top1": metrics["top1"], "top5": metrics["top5"], **(metrics["generalised"] or {})}
    writer = Writer(config, folder, run_name(config), True)
    writer.write_scalars(step, {f"eval/{k}": v for k, v in scalars.items() if v is not None})
    writer.close()
