"""Runs of an experiment; each is trained and evaluated in its own folder."""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from coco_jax import sharding, weights
from coco_jax.config import default, load_stored, training_steps
from coco_jax.data.task import make_task
from coco_jax.errors import UserError
from coco_jax.evaluation.evaluate import evaluate
from coco_jax.evaluation.results import write_json
from coco_jax.training.checkpoint import check_unchanged, read_json, restore_params
from coco_jax.training.loop import train
from coco_jax.training.preemption import Preemption
from coco_jax.training.step import Program, make_program


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
      UserError: the config or the data is not valid, or the config differs from the stored one.
    """
    name = run_name(config)
    folder = workdir / name
    result = folder / "result.json"
    check_unchanged(folder, config, allow_config_change)
    if result.exists():
        return read_json(result)
    task = make_task(config)
    config = task.config
    if mode != "train" and not task.plan.unseen:
        raise UserError(
            f"config.split: {config.split!r} has no unseen classes to test on; use --mode=train"
        )
    program = _shared_program(_program_fields(config))
    is_first = jax.process_index() == 0
    if mode == "evaluate":
        step, params = restore_params(folder / "checkpoints", program.abstract)
        if step != training_steps(config):
            raise UserError(
                f"{folder}: training stopped at step {step} of {training_steps(config)}; finish it "
                "first (the same command without --mode=evaluate)"
            )
    else:
        if is_first:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", config.to_dict())
            (folder / "tokenizer.model").write_bytes(task.tokenizer.model)
        state = train(program, task, folder, name, profile_steps, preemption)
        step, params = int(state.step), state.params
    if mode == "train":
        return {}
    if config.eval.interpolate:
        initial = weights.load(config, program.init(jax.random.key(config.seed)).params)
        params = weights.interpolate(config, params, initial)
    metrics = evaluate(program, params, task, step)
    metrics = {"ablation": config.ablation, "split": config.split, "seed": config.seed} | metrics
    if is_first:
        write_json(result, metrics)
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
    from clu import metric_writers  # imports TensorFlow

    scalars = {"top1": metrics["top1"], "top5": metrics["top5"], **(metrics["generalised"] or {})}
    writer = metric_writers.create_default_writer(str(folder))
    writer.write_scalars(step, {f"eval/{k}": v for k, v in scalars.items() if v is not None})
    writer.close()
