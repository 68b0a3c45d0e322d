"""Who is seen, who is not, which videos go where; and the rules that no run may break."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from coco_jax.data.dataset import Dataset, select
from coco_jax.errors import UserError


class LeakError(AssertionError):
    """A rule of zero-shot evaluation is broken: a bug in this code or in a builder, not of the user."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One protocol on one class split, as class names and record indices.

    Under the validation protocol `unseen` are the seen classes held out; the dataset's own unseen
    classes then appear nowhere.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    train: Int[np.ndarray, " N"]  # videos of seen classes, of the train split
    test_unseen: Int[np.ndarray, " N"]  # every video of the unseen classes
    test_seen: Int[np.ndarray, " N"]  # videos of seen classes, of the test split


def make_plan(dataset: Dataset, config: ConfigDict) -> Plan:
    """Picks classes and videos by `config.split` and `config.protocol`, and checks the rules.

    Raises:
      UserError: the dataset has no such split, or too few seen classes to hold some out.
      LeakError: a rule is broken.
    """
    if config.split not in dataset.class_splits:
        raise UserError(
            f"config.split: {dataset.name} has no split {config.split!r}; it has "
            f"{', '.join(sorted(dataset.class_splits))}"
        )
    split = dataset.class_splits[config.split]
    seen, unseen = tuple(split["seen"]), tuple(split["unseen"])
    if config.protocol == "validation":
        if not 0 < config.validation_classes < len(seen) - 1:
            raise UserError(
                f"config.validation_classes: {config.validation_classes} of {len(seen)} seen "
                f"classes cannot be held out; choose 1 to {len(seen) - 2}"
            )
        rng = np.random.default_rng([ord(c) for c in f"validation/{config.split}"])
        held = set(rng.permutation(len(seen))[: config.validation_classes])
        unseen = tuple(name for i, name in enumerate(seen) if i in held)
        seen = tuple(name for i, name in enumerate(seen) if i not in held)
    records = dataset.records
    of_seen = np.isin(records.labels, select(dataset.classes, seen))
    of_unseen = np.isin(records.labels, select(dataset.classes, unseen))
    trains = np.array(records.splits) == "train"
    plan = Plan(
        seen=seen,
        unseen=unseen,
        train=np.flatnonzero(of_seen & trains),
        test_unseen=np.flatnonzero(of_unseen),
        test_seen=np.flatnonzero(of_seen & ~trains),
    )
    check_plan(plan, dataset)
    return plan


def check_plan(plan: Plan, dataset: Dataset) -> None:
    """No class is seen and unseen; no video of an unseen class, and none tested, is trained on."""
    both = set(plan.seen) & set(plan.unseen)
    if both:
        raise LeakError(f"classes are seen and unseen at once: {sorted(both)}")
    ids, labels = dataset.records.video_ids, dataset.records.labels
    trained = {dataset.classes[label] for label in labels[plan.train]}
    if trained - set(plan.seen):
        raise LeakError(
            f"training holds videos of unseen classes: {sorted(trained - set(plan.seen))}"
        )
    tested = {ids[i] for i in (*plan.test_unseen, *plan.test_seen)}
    shared = tested & {ids[i] for i in plan.train}
    if shared:
        raise LeakError(f"videos are trained on and tested: {sorted(shared)[:5]}")


def check_texts(description_videos: Iterable[str], tested: Sequence[str]) -> None:
    """No description that is used was collected from a video that is tested."""
    shared = set(description_videos) & set(tested)
    if shared:
        raise LeakError(f"descriptions come from tested videos: {sorted(shared)[:5]}")


def check_final(step: int, config: ConfigDict) -> None:
    """Test classes are looked at once, by the last step's parameters: nothing is selected on them."""
    if config.protocol == "test" and step != config.optimizer.steps:
        raise LeakError(
            f"the test classes were asked for at step {step} of {config.optimizer.steps}; "
            "choose on config.protocol='validation'"
        )
