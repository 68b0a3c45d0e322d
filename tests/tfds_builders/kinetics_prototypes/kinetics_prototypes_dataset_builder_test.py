"""The stored dataset, and its class splits, which are named by numbers."""

import numpy as np
import pytest

from coco_jax.config import default
from coco_jax.data import dataset as datasets
from coco_jax.data import splits
from coco_jax.errors import UserError
from coco_jax.weights import files, i3d, packages
from tfds_builders.build import build


@pytest.fixture(scope="module")
def prototypes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prototypes")
    build("kinetics_prototypes", str(folder))
    return datasets.load("kinetics_prototypes", str(folder))


def plan_of(dataset, split, protocol="test"):
    config = default()
    config.split, config.protocol = split, protocol
    return splits.make_plan(dataset, config)


def test_each_class_has_its_column_of_the_classifier(prototypes):
    classifier = i3d.classifier(
        files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
    )
    assert prototypes.classes == classifier.classes and len(prototypes.records) == 400
    for record in prototypes.records:
        np.testing.assert_array_equal(
            record["features"], classifier.kernel[:, int(record["label"])]
        )


@pytest.mark.parametrize("split", ["0", "7", "200", "123456"])
def test_any_number_is_a_split_of_300_seen_and_100_unseen_classes(prototypes, split):
    order = np.random.RandomState(int(split)).permutation(400)
    plan = plan_of(prototypes, split)
    assert plan.seen == tuple(prototypes.classes[i] for i in order[:300])
    assert set(plan.unseen) == {prototypes.classes[i] for i in order[300:]}
    assert len(plan.train) == 300 and len(plan.test_unseen) == 100 and not len(plan.test_seen)


def test_validation_classes_are_seen_ones_that_are_not_trained_on(prototypes):
    order = np.random.RandomState(3).permutation(400)
    plan = plan_of(prototypes, "3", "validation")
    assert set(plan.unseen) == {prototypes.classes[i] for i in order[225:300]}
    assert set(plan.seen) == {prototypes.classes[i] for i in order[:225]}
    used = prototypes.records.labels[np.concatenate([plan.train, plan.test_unseen])]
    assert not set(used) & set(order[300:])


def test_split_all_has_no_unseen_class(prototypes):
    plan = plan_of(prototypes, "all")
    assert len(plan.train) == 400 and plan.unseen == () and not len(plan.test_unseen)


@pytest.mark.parametrize("split", ["-1", "1.5", "one", str(2**32)])
def test_another_name_is_an_error(prototypes, split):
    with pytest.raises(UserError, match=f"no split '{split}'; it has all and every number below"):
        plan_of(prototypes, split)
