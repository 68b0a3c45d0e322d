"""Checks the evidence of a finished run against its files, its checkpoint and its data; or writes it."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from coco_jax import sharding
from coco_jax.config import load_stored
from coco_jax.data.task import Task, make_task
from coco_jax.errors import UserError
from coco_jax.evaluation import compare, evidence, predictions, published
from coco_jax.evaluation.evaluate import list_predictions, measure, score
from coco_jax.evaluation.experiment import evaluated_params
from coco_jax.training.checkpoint import read_json
from coco_jax.training.step import make_program

RIGHT, WRONG, NOT_CHECKED = "right", "wrong", "not checked"


class Check(NamedTuple):
    """A part of the evidence: whether it is right, wrong or not checked, and why."""

    part: str
    state: str
    reason: str = ""


class _Run(NamedTuple):
    folder: pathlib.Path
    config: ConfigDict
    result: Mapping[str, Any]
    found: Mapping[str, Any]  # evidence.json


def certify(folder: pathlib.Path, data_dir: str | None = None) -> list[Check]:
    """Checks a run's evidence.json; if there is none, evaluates the run again and writes it.

    Args:
      folder: of the run.
      data_dir: replaces `config.data.dir`.

    Raises:
      UserError: the run is not evaluated, its files are damaged, or there is no evidence and the data or
        the checkpoint is missing or gives other numbers than result.json.
    """
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder}: has no result.json; give the folder of a run that is evaluated")
    config = load_stored(read_json(folder / "config.json"), str(folder / "config.json"))
    config.data.dir = data_dir or config.data.dir
    result = read_json(folder / "result.json")
    path = folder / evidence.FILE
    if not path.is_file():
        _write(folder, config, result)
        return [Check("evidence.json", RIGHT, "written: the run was evaluated again")]
    found = evidence.load(path)
    if found["kind"] != "run":
        raise UserError(f"{path}: is of a sweep; give the folder of one run")
    run = _Run(folder, config, result, found)
    checks: list[Callable[[_Run], list[Check]]] = [_numbers, _predictions, _config, _class_lists]
    return [check for function in (*checks, _data_and_parameters) for check in function(run)]


def _write(folder: pathlib.Path, config: ConfigDict, result: Mapping[str, Any]) -> None:
    task = make_task(config)
    program = make_program(task.config, sharding.make_mesh(task.config))
    step, params = evaluated_params(folder, task, program)
    scored = score(program, params, task, step)
    metrics, rows = measure(scored), list_predictions(scored)
    for name in ("top1", "top5", "confusion"):
        if metrics[name] != result.get(name):
            raise UserError(
                f"{folder}: evaluating again gives another {name} than result.json, e.g. on other "
                f"hardware or with other libraries (top-1 {metrics['top1']:.4f}, there "
                f"{result.get('top1')!r:.8}); to replace it, remove result.json and run `coco-jax "
                "evaluate`"
            )
    # Of older versions result.json has less than evidence.json needs.
    checksum = evidence.parameters_sha256(program, params)
    evidence.write(folder, task, {**metrics, **result}, rows, checksum)


def _state(part: str, is_right: bool, reason: str) -> Check:
    return Check(part, RIGHT) if is_right else Check(part, WRONG, reason)


def _numbers(run: _Run) -> list[Check]:
    try:
        same = _plain(evidence.numbers(run.result)) == run.found["numbers"]
    except (LookupError, TypeError, AttributeError):
        same = False
    return [_state("numbers", same, "result.json has others")]


def _predictions(run: _Run) -> list[Check]:
    """The file, and that the accuracies and intervals follow from it."""
    path = run.folder / predictions.FILE
    if not path.is_file():
        reason = f"there is no {predictions.FILE}"
        return [
            Check(part, NOT_CHECKED, reason) for part in ("predictions", "accuracies", "bootstrap")
        ]
    stored = run.found["predictions"].get("sha256")
    checks = [_state("predictions", evidence.file_sha256(path) == stored, "another SHA-256")]
    rows = predictions.read(path)
    _, sets, hits_NS = predictions.hits(rows, 1)
    first = run.found["numbers"].get("first_group")
    columns = [n for n, name in enumerate(sets) if isinstance(first, list) and name in first]
    top1 = float(np.nanmean(hits_NS[:, columns], axis=0).mean()) if columns else math.nan
    same = math.isclose(top1, run.result.get("top1", math.nan), abs_tol=1e-9)
    checks.append(_state("accuracies", same, f"the predictions give a top-1 of {top1:.4f}"))
    try:
        intervals = _plain(evidence.intervals(rows, run.result))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return [*checks, Check("bootstrap", WRONG, f"cannot be computed ({error})")]
    return [*checks, _state("bootstrap", intervals == run.found["bootstrap"], "others follow")]


def _config(run: _Run) -> list[Check]:
    wanted = _plain(evidence.settings(run.config))
    differ = [s for s, fields in wanted.items() if run.found[s].get("config") != fields]
    return [_state("config", not differ, f"config.json differs in {', '.join(differ)}")]


def _class_lists(run: _Run) -> list[Check]:
    """The checksums of the lists that evidence.json itself has, and the published lists they equal."""
    wrong = []
    for group in ("seen", "unseen"):
        stored = run.found["classes"].get(group)
        names = stored.get("names") if isinstance(stored, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return [Check("class lists", WRONG, f"no names of {group} classes")]
        facts = {
            "count": len(names),
            "published": published.find(names),
            "normal_sha256": published.normal_sha256(names),
            "ordered_sha256": published.ordered_sha256(names),
        }
        wrong += [f"{group} {name}" for name, value in facts.items() if stored.get(name) != value]
    return [_state("class lists", not wrong, f"others follow from the names: {', '.join(wrong)}")]


def _data_and_parameters(run: _Run) -> list[Check]:
    """What needs the data: the sections of the task, and with it the checkpoint."""
    parts = ("data", "classes", "prompts", "descriptions", "weights")
    try:
        task = make_task(run.config)
    except UserError as error:
        return [Check(part, NOT_CHECKED, str(error.args[0])) for part in (*parts, "parameters")]
    now = {**run.found, **_plain(evidence.of_task(task))}
    # What only an evaluation knows.
    for section, name in (
        ("weights", "evaluated_parameters_sha256"),
        ("training", "evaluated_step"),
    ):
        now[section][name] = run.found[section].get(name)
    one, other = (compare.Run("", x, None) for x in (run.found, now))
    differ = compare.differences(one, other)
    checks = [_state(part, part not in differ, "; ".join(differ.get(part, ()))) for part in parts]
    return [*checks, _parameters(run, task)]


def _parameters(run: _Run, task: Task) -> Check:
    config = task.config.copy_and_resolve_references()
    config.mesh.update(data=1, fsdp=1, tensor=1)  # the checksum is the same on every mesh
    try:
        program = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
        _, params = evaluated_params(run.folder, task, program)
    except UserError as error:
        return Check("parameters", NOT_CHECKED, str(error.args[0]))
    same = evidence.parameters_sha256(program, params) == run.found["weights"].get(
        "evaluated_parameters_sha256"
    )
    return _state("parameters", same, "the checkpoint has others")


def _plain(value: Any) -> Any:
    """A value as it is after it was stored as JSON."""
    return json.loads(json.dumps(value))
