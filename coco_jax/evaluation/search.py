"""Searches hyper-parameters with Optuna on validation classes; test classes are never evaluated.

A search is a folder: Optuna's journal, the runs of every trial, and search.json with all results. The
values of a trial depend only on the seed and on the results of the trials before it. So a search that
was killed has, after it is resumed, the same trials as one that was not.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from coco_jax import files
from coco_jax.config import (
    BOUNDS,
    CHOICES,
    DEFAULTS,
    FREE,
    changes,
    no_such_field,
    validate,
)
from coco_jax.errors import DivergedError, UserError
from coco_jax.evaluation.experiment import run, run_configs
from coco_jax.evaluation.results import write_json
from coco_jax.training.preemption import Preemption

JOURNAL = "journal.log"
RESULTS = "search.json"
STUDY = "search"
# What Optuna raises for a journal that it did not write.
DAMAGED = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, AssertionError,
)  # fmt: skip
SPACE_LIMIT = 1 << 20  # bytes of a file with a search space
FORMS = "log:LOW:HIGH, uniform:LOW:HIGH or choice:A,B,..."
# Fields that say which classes and videos are measured. A search over them would choose the easiest
# test, not the best model. Names that end with a dot are sections.
FIXED = (
    *FREE, "seed", "split", "protocol", "validation_classes", "data.name", "data.test_name",
    "data.test_splits", "data.shared_classes", "text.shuffle_descriptions", "eval.ridge",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A config field and the values that a search may give it: a range, or a list of choices.

    Attributes:
      field: name of the field, such as "model.tau".
      low: the smallest value of a range, an int if the field is one.
      high: the largest value of a range.
      log: whether the logarithm of the value is drawn uniformly.
      choices: the values to choose from; () for a range.
    """

    field: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def distribution(self) -> Any:
        """The same as a distribution of Optuna."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if isinstance(self.low, int):
            return distributions.IntDistribution(self.low, int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def __str__(self) -> str:
        if self.choices:
            return f"{self.field}=choice:{','.join(map(str, self.choices))}"
        return f"{self.field}={'log' if self.log else 'uniform'}:{self.low!r}:{self.high!r}"


class Trial(NamedTuple):
    """A finished trial.

    Attributes:
      number: of the trial, from 0; its runs are in `trials/NUMBER`.
      values: of the fields that are searched.
      top1: the mean top-1 accuracy on validation classes over its runs; None if training diverged or
        the values cannot be combined.
      runs: the top-1 accuracy of each run: splits, then seeds.
      reason: why there is no accuracy; "" if there is one.
    """

    number: int
    values: dict[str, Any]
    top1: float | None
    runs: tuple[float, ...]
    reason: str


def parse_space(specs: Sequence[str]) -> list[Dimension]:
    """Parses a search space, such as ["model.tau=log:0.01:1", "ablation=choice:label,full"].

    Args:
      specs: one string per field, `FIELD=log:LOW:HIGH`, `FIELD=uniform:LOW:HIGH` or
        `FIELD=choice:A,B,...`. FIELD may begin with `config.`.

    Raises:
      UserError: there is no such field, it may not be searched, or its values are not usable.
    """
    space = [_dimension(spec) for spec in specs]
    names = [dimension.field for dimension in space]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--search: {repeated[0]} is given twice; keep one")
    if not space:
        raise UserError(
            f"nothing to search; give fields and their values, such as --search=model.tau={FORMS[:12]}"
        )
    return space


def read_space(path: pathlib.Path) -> list[str]:
    """Reads the strings for `parse_space` from a file: one per line; # begins a comment.

    Raises:
      UserError: it cannot be read.
    """
    try:
        text = files.read_text(path, limit=SPACE_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"--space={path}: cannot be read ({reason}); give a text file") from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def _dimension(spec: str) -> Dimension:
    name, equals, values = spec.partition("=")
    field = name.strip().removeprefix("config.")
    kind, _, rest = values.strip().partition(":")
    where = f"--search={spec:.200}"
    if not equals or kind not in ("log", "uniform", "choice") or not rest:
        raise UserError(f"{where}: write FIELD={FORMS}")
    if field not in DEFAULTS:
        raise UserError(f"{where}: {no_such_field(field)}")
    if field.startswith(FIXED):
        raise UserError(
            f"{where}: {field} says what is measured, where or how fast; search fields of the model and "
            "of its training"
        )
    default = DEFAULTS[field]
    if default is None or isinstance(default, list):
        raise UserError(f"{where}: {field} is a list or a name; search numbers and choices")
    if kind == "choice":
        choices = tuple(_value(field, part.strip(), where) for part in rest.split(","))
        if len(set(choices)) != len(choices) or len(choices) < 2:
            raise UserError(f"{where}: give two or more different values")
        return Dimension(field, choices=choices)
    if isinstance(default, bool | str):
        raise UserError(f"{where}: {field} is not a number; write {field}=choice:A,B,...")
    parts = rest.split(":")
    if len(parts) != 2:
        raise UserError(f"{where}: write FIELD={FORMS}")
    low, high = (_value(field, part, where) for part in parts)
    if not low < high or (kind == "log" and low <= 0):
        needed = "0 < LOW < HIGH" if kind == "log" else "LOW < HIGH"
        raise UserError(f"{where}: {kind} needs {needed}")
    return Dimension(field, low, high, kind == "log")


def _value(field: str, text: str, where: str) -> Any:
    """The value of a field that is written as `text`.

    Raises:
      UserError: it is not one, or out of the field's bounds.
    """
    default = DEFAULTS[field]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"{where}: {text[:50]!r} is neither True nor False")
        return text.lower() == "true"
    if isinstance(default, str):
        allowed = CHOICES.get(field)
        if allowed and text not in allowed:
            raise UserError(f"{where}: {text[:50]!r} is not one of {', '.join(allowed)}")
        return text
    try:
        value = type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise UserError(f"{where}: {text[:50]!r} is not {kind}") from None
    low, high = BOUNDS.get(field, (-math.inf, math.inf))
    if not (low <= value <= high and math.isfinite(value)):
        raise UserError(f"{where}: {text[:50]} is not from {low:g} to {high:g}")
    return value


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with other values of some fields."""
    changed = config.copy_and_resolve_references()
    for field, value in values.items():
        section, _, name = field.rpartition(".")
        (changed[section] if section else changed)[name] = value
    return changed


class Search:
    """A search in a folder; made by `opened`."""

    def __init__(
        self,
        study: Any,
        config: ConfigDict,
        space: Sequence[Dimension],
        folder: pathlib.Path,
        seed: int,
    ):
        self._study, self._config, self._folder, self._seed = study, config, folder, seed
        self._distributions = {d.field: d.distribution() for d in space}

    @property
    def trials(self) -> list[Trial]:
        """The finished trials, in order."""
        found: list[Trial] = []
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = frozen.user_attrs
            if frozen.state.name == "COMPLETE":
                runs = tuple(attributes["runs"])
                found.append(Trial(len(found), dict(frozen.params), frozen.value, runs, ""))
            elif frozen.state.name == "PRUNED":
                reason = str(attributes.get("reason", ""))
                found.append(Trial(len(found), dict(frozen.params), None, (), reason))
        return found

    @property
    def best(self) -> Trial | None:
        """The trial with the highest accuracy, the first of equals; None if no trial has one."""
        measured = [(trial.top1, trial) for trial in self.trials if trial.top1 is not None]
        return max(measured, key=lambda pair: pair[0])[1] if measured else None

    def run_next(self, preemption: Preemption | None = None) -> Trial:
        """Trains and evaluates the next trial, or resumes one that was interrupted.

        Raises:
          UserError: the data is missing, or a run cannot be resumed.
        """
        number = len(self.trials)
        self._study.sampler = _sampler(self._seed, number)
        trial = self._study.ask(self._distributions)
        config = with_values(self._config, trial.params)
        if problem := _problem(config):
            self._leave_out(trial, problem)
        else:
            self._measure(trial, config, self._folder / "trials" / f"{number:04d}", preemption)
        self._write_results()
        return self.trials[-1]

    def _measure(
        self, trial: Any, config: ConfigDict, folder: pathlib.Path, preemption: Preemption | None
    ) -> None:
        """Trains and evaluates the runs of a trial, and stores their accuracies."""
        from optuna.trial import TrialState

        try:
            top1 = [
                run(run_config, folder, preemption=preemption)["top1"]
                for run_config in run_configs(config)
            ]
        except DivergedError as error:
            self._leave_out(trial, str(error))
        else:
            trial.set_user_attr("runs", top1)
            self._study.tell(trial, float(np.mean(top1)), state=TrialState.COMPLETE)

    def _leave_out(self, trial: Any, reason: str) -> None:
        """Stores that a trial has no accuracy; Optuna's sampler ranks it below all others."""
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        self._study.tell(trial, state=TrialState.PRUNED)

    def _write_results(self) -> None:
        best = self.best
        write_json(
            self._folder / RESULTS,
            {
                "format": 1,
                "protocol": self._config.protocol,
                "dataset": self._config.data.name,
                "trials": [trial._asdict() for trial in self.trials],
                "best": None if best is None else best.number,
            },
        )


def run_trials(
    search: Search, trials: int, timeout: float | None = None, preemption: Preemption | None = None
) -> Iterator[Trial]:
    """Runs trials until the search has `trials` of them; yields each new one.

    Args:
      search: the search.
      trials: how many it has at the end, with those that it already has.
      timeout: seconds after which no further trial begins; None for no limit.
      preemption: handles SIGTERM and Ctrl-C.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    for _ in range(trials - len(search.trials)):
        if time.monotonic() >= end:
            return
        yield search.run_next(preemption)


@contextlib.contextmanager
def opened(
    config: ConfigDict, space: Sequence[Dimension], folder: pathlib.Path, seed: int = 0
) -> Iterator[Search]:
    """Begins a search, or opens the one in `folder`; one command at a time may have it open.

    Args:
      config: what all trials have in common, with protocol "validation"; every trial has one run for
        each split and each seed of `config.sweep`.
      space: the fields that are searched.
      folder: for the journal and the runs.
      seed: of the sampler.

    Raises:
      UserError: the protocol is another one, several ablations are given, the folder has another search
        or a damaged journal, or another command is using it.
    """
    import filelock

    if config.protocol != "validation":
        raise UserError(
            f"config.protocol: {config.protocol!r} uses test classes; a search has 'validation'"
        )
    config = config.copy_and_resolve_references()
    if "ablation" in (dimension.field for dimension in space):
        config.sweep.ablation = ()
    if len(config.sweep.ablation) > 1:
        raise UserError(
            f"config.sweep.ablation: {', '.join(config.sweep.ablation)}; search for one at a time, e.g. "
            "with --config.ablation=full"
        )
    if config.sweep.ablation:
        (config.ablation,), config.sweep.ablation = config.sweep.ablation, ()
    validate(config)
    try:
        with filelock.FileLock(folder / ".search.lock", timeout=0):
            study = _open_study(folder / JOURNAL)
            _check_same(study, config, space, folder, seed)
            yield Search(study, config, space, folder, seed)
    except filelock.Timeout as error:
        raise UserError(
            f"{folder}: another command is searching there; wait until it ends, or choose another "
            "--workdir"
        ) from error


def _open_study(path: pathlib.Path) -> Any:
    """Opens the journal; trials that were interrupted count as failed.

    Raises:
      UserError: it cannot be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        _mend(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; choose another --workdir") from error
    except DAMAGED as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{path}: damaged ({reason}); remove it to begin the search again"
        ) from error
    return study


def _mend(path: pathlib.Path) -> None:
    """Removes what a killed process leaves: half a line at the end of the journal, and its lock."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    text = files.read_bytes(path)
    if end := len(text) - (text.rfind(b"\n") + 1):
        os.truncate(path, len(text) - end)


def _check_same(
    study: Any, config: ConfigDict, space: Sequence[Dimension], folder: pathlib.Path, seed: int
) -> None:
    """Stores what a search is about, or checks that it is the same.

    Raises:
      UserError: it differs.
    """
    searched = {"space": [str(dimension) for dimension in space], "seed": seed}
    stored = study.user_attrs
    if "config" not in stored:  # written last
        for name, value in searched.items():
            study.set_user_attr(name, value)
        study.set_user_attr("config", json.loads(json.dumps(config.to_dict())))
        return
    differ = [f"{k}: {stored.get(k)} -> {v}" for k, v in searched.items() if stored.get(k) != v]
    free = [field for field in FREE if field != "sweep."]
    differ += changes(stored["config"], config.to_dict(), free)
    if differ:
        raise UserError(
            f"{folder} has another search ({'; '.join(differ)}); choose another --workdir"
        )


def _sampler(seed: int, number: int) -> Any:
    """The sampler of a trial; its random numbers depend on the seed and the number of the trial only."""
    from optuna.samplers import TPESampler

    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return TPESampler(seed=int.from_bytes(digest[:4], "big"))


def _problem(config: ConfigDict) -> str:
    """Why the values of a config cannot be combined; "" if they can."""
    try:
        validate(config)
    except UserError as error:
        return str(error)
    return ""
