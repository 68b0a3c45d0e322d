"""The classes and videos of each protocol, and checks that no test data leaks into training."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from coco_jax.config import training_steps
from coco_jax.data import action_names
from coco_jax.data.dataset import Dataset, normal_id, random_split, select
from coco_jax.errors import UserError
from coco_jax.printing import printable


class LeakError(AssertionError):
    """A rule of zero-shot evaluation is broken: a bug in this code or in a builder."""


@dataclasses.dataclass(frozen=True)
class Subset:
    """One of several test sets of a run: its classes and its videos."""

    classes: tuple[str, ...]
    records: Int[np.ndarray, " N"]
    official: bool = False  # whether it is an official test list


@dataclasses.dataclass(frozen=True)
class Plan:
    """The classes and record indices of one protocol on one class split.

    For the protocol `validation`, `unseen` has the validation classes, and the unseen classes of the
    dataset are not used at all.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    train: Int[np.ndarray, " N"]  # videos of seen classes, of the train split
    test_unseen: Int[np.ndarray, " N"]  # every video of the unseen classes
    test_seen: Int[np.ndarray, " N"]  # videos of seen classes, of the test split
    subsets: Mapping[str, Subset] = dataclasses.field(
        default_factory=dict
    )  # of the protocols `cross` and `frozen`


def make_plan(dataset: Dataset, config: ConfigDict) -> Plan:
    """Chooses classes and videos for `config.protocol` and the split, and checks the rules.

    Raises:
      UserError: the dataset has no such split, or too few seen classes for validation classes.
      LeakError: a rule is broken.
    """
    tests_splits = config.protocol in ("cross", "frozen")
    plan = _test_splits(dataset, config) if tests_splits else _within(dataset, config)
    check_plan(plan, dataset)
    if len(plan.unseen) == 1:
        print(
            printable(
                f"{dataset.name}, split {config.split}: {plan.unseen[0]!r} is the only unseen class, so "
                "the zero-shot accuracy is always 100 %"
            ),
            file=sys.stderr,
        )
    return plan


def _within(dataset: Dataset, config: ConfigDict) -> Plan:
    split = class_split(dataset, config.split)
    seen, unseen = tuple(split["seen"]), tuple(split["unseen"])
    if not seen:
        raise UserError(
            f"config.data.name: {dataset.name} has no seen classes, only tested ones; set "
            "config.protocol='cross' and name it in config.data.test_name"
        )
    if config.protocol == "validation" and split.get("validation"):
        unseen = tuple(split["validation"])
        seen = tuple(name for name in seen if name not in set(unseen))
    elif config.protocol == "validation":
        if not 0 < config.validation_classes < len(seen) - 1:
            raise UserError(
                f"config.validation_classes: {config.validation_classes} of {len(seen)} seen "
                f"classes cannot be validation classes; choose 1 to {len(seen) - 2}"
            )
        rng = np.random.default_rng([ord(c) for c in f"validation/{config.split}"])
        held_out = set(rng.permutation(len(seen))[: config.validation_classes])
        unseen = tuple(name for i, name in enumerate(seen) if i in held_out)
        seen = tuple(name for i, name in enumerate(seen) if i not in held_out)
    records = dataset.records
    of_seen = np.isin(records.labels, select(dataset.classes, seen))
    splits = np.array(records.splits)
    return Plan(
        seen=seen,
        unseen=unseen,
        train=np.flatnonzero(of_seen & (splits == "train")),
        test_unseen=np.flatnonzero(np.isin(records.labels, select(dataset.classes, unseen))),
        test_seen=np.flatnonzero(of_seen & (splits == "test")),
    )


def _test_splits(dataset: Dataset, config: ConfigDict) -> Plan:
    """The plan for `cross`, with all seen classes to train on, and for `frozen`, without any."""
    records, subsets = dataset.records, {}
    for name in config.data.test_splits:
        split = class_split(dataset, name, "data.test_splits")
        tested = np.isin(records.labels, select(dataset.classes, split["unseen"]))
        if number := split.get("official"):
            if records.official is None:
                raise UserError(f"{dataset.name}: has no official test lists; build it again")
            tested &= records.official[:, number - 1]
        is_official = bool(split.get("official"))
        subsets[name] = Subset(tuple(split["unseen"]), np.flatnonzero(tested), is_official)
    if not subsets:
        raise UserError("config.data.test_splits: names no split; give one, e.g. ('1', '2', '3')")
    chosen = {name for subset in subsets.values() for name in subset.classes}
    seen = () if config.protocol == "frozen" else tuple(split["seen"])
    of_seen = np.isin(records.labels, select(dataset.classes, seen))
    return Plan(
        seen=seen,
        unseen=tuple(name for name in dataset.classes if name in chosen),
        train=np.flatnonzero(of_seen & (np.array(records.splits) == "train")),
        test_unseen=np.unique(np.concatenate([subset.records for subset in subsets.values()])),
        test_seen=np.zeros(0, np.int64),
        subsets=subsets,
    )


def class_split(dataset: Dataset, name: str, field: str = "split") -> Mapping[str, Any]:
    """The classes of a split, also of a random one; `field` is the config field that names it.

    Raises:
      UserError: there is no such split.
    """
    if name in dataset.class_splits:
        return dataset.class_splits[name]
    numbers = dataset.random_splits
    if numbers and name.isdecimal() and int(name) < 2**32:  # the seeds of RandomState
        return random_split(dataset.classes, int(name), **numbers)
    known = list(dataset.class_splits)
    raise UserError(
        f"config.{field}: {dataset.name} has no split {name!r}; it has {', '.join(known[:8])}"
        f"{f' ... {known[-1]}' * (len(known) > 8)}{' and every number below 2**32' * bool(numbers)}"
    )


def check_plan(plan: Plan, dataset: Dataset) -> None:
    """Checks the rules: no class is both seen and unseen, and no tested video is trained on.

    Classes are compared in their normal form (`action_names.normal`): "Push-ups" is "push up".

    Raises:
      LeakError: a rule is broken.
    """
    seen = {action_names.normal(name) or name for name in plan.seen}
    both = [name for name in plan.unseen if (action_names.normal(name) or name) in seen]
    if both:
        raise LeakError(f"classes are both seen and unseen: {sorted(both)}")
    ids, labels = dataset.records.video_ids, dataset.records.labels
    trained = {dataset.classes[label] for label in labels[plan.train]}
    if trained - set(plan.seen):
        raise LeakError(
            f"there are training videos of unseen classes: {sorted(trained - set(plan.seen))}"
        )
    tested = {ids[i] for i in (*plan.test_unseen, *plan.test_seen)}
    shared = tested & {ids[i] for i in plan.train}
    if shared:
        raise LeakError(f"videos are both trained on and tested: {sorted(shared)[:5]}")


def check_texts(description_videos: Iterable[str], tested: Sequence[str]) -> None:
    """Checks that no description was collected from a tested video; compares normal ids.

    Raises:
      LeakError: a description was.
    """
    shared = set(map(normal_id, description_videos)) & set(map(normal_id, tested)) - {""}
    if shared:
        raise LeakError(f"descriptions come from tested videos: {sorted(shared)[:5]}")


def check_final(step: int, config: ConfigDict) -> None:
    """Checks that test classes are evaluated only after the last step, not to select a model.

    With `config.eval.keep_best` and `patience`, validation classes have chosen an earlier step.

    Raises:
      LeakError: training has not ended.
    """
    steps = training_steps(config)
    chosen_on_validation = config.eval.keep_best or config.eval.patience
    if chosen_on_validation and 0 < step < steps:
        return
    if config.protocol != "validation" and step != steps:
        raise LeakError(
            f"evaluation on the test classes at step {step} of {steps}; "
            "use config.protocol='validation' before the end of training"
        )
