"""Runs on class prototypes: what is taken from the seen classes, and the closed form from end to end."""

import json
import shutil

import jax
import numpy as np
import pytest
from coco_jax.configs import kinetics_prototypes

from coco_jax.data import dataset as datasets
from coco_jax.data import task as tasks
from coco_jax.data.corpus import Corpus
from coco_jax.data.dataset import Dataset, Records
from coco_jax.data.task import make_task
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run
from coco_jax.sharding import make_mesh
from coco_jax.training.seen import class_means, set_from_data
from coco_jax.training.step import make_program
from coco_jax.training.text_features import class_features, with_features
from tests.helpers.runs import final_params, result

pytestmark = pytest.mark.usefixtures("one_device")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


CLASSES = tuple(f"zumba {letter}" for letter in "abcdefghijklmnopqrstuvwx")
WIDTH = 8
ORDER = np.random.RandomState(3).permutation(24)
SEEN, VALIDATION = 20, 6


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """24 classes, three training vectors and a test vector of each; every number is a class split."""
    labels = np.repeat(np.arange(24), 4)
    rng = np.random.default_rng(0)
    features = np.float32(rng.normal(size=(24, WIDTH))[labels] + rng.normal(size=(96, WIDTH)))
    rows = [{"features": x, "video_id": b"v%d" % n} for n, x in enumerate(features)]
    ids, splits = tuple(f"v{n}" for n in range(96)), ("train", "train", "train", "test") * 24
    records = Records((rows,), labels, ids, splits)
    everything = {"all": {"seen": list(CLASSES), "unseen": []}}
    numbers = {"seen": SEEN, "validation": VALIDATION}
    return Dataset("zumba", CLASSES, everything, records, random_splits=numbers)


@pytest.fixture
def make(dataset, monkeypatch, tmp_path):
    """Makes configs of runs on this dataset with a tiny random text tower and a small corpus."""
    texts = {name: (f"someone is {name} here", f"a clip of {name}") for name in CLASSES}
    texts |= {f"other action {n}": ("a caption", "another") for n in "abcde"}
    definitions = {name: (f"{name} is what it is called",) for name in texts}
    corpus = Corpus(texts, {name: ("", "") for name in texts}, definitions)
    monkeypatch.setattr(tasks, "load_corpus", lambda name, data_dir: corpus)
    monkeypatch.setattr(datasets, "load", lambda name, data_dir: dataset)

    def config(**changes):
        c = kinetics_prototypes.get_config()
        c.sweep.ablation, c.sweep.split = (), ()
        c.split, c.protocol = "3", "validation"
        c.data.update(dir=str(tmp_path / "data"), batch=16, cache=False)
        c.text.update(tokenizer="", tokenizer_style="own", length=12, vocabulary=60)
        c.text.update(templates=("{}",), eval_descriptions=2, descriptions=2)
        c.text_tower.update(weights="", width=16, heads=2, depth=1)
        c.video_tower.feature_dim = WIDTH
        c.model.dim = 16
        c.optimizer.steps, c.checkpoint_every = 3, 2
        for name, value in changes.items():
            *parents, field = name.split("__")
            where = c
            for parent in parents:
                where = where[parent]
            where[field] = value
        return c

    return config


def opened(config):
    """The task with text features, the program, and the parameters at the start."""
    task = make_task(config)
    program = make_program(task.config, make_mesh(task.config, jax.devices()[:1]))
    params = program.init(jax.random.key(0)).params
    task = with_features(task, program, params)
    return task, program, set_from_data(task, params)


def means_of(dataset, classes):
    """The mean training vector of each class."""
    rows = dataset.records.sources[0]
    return np.stack([np.mean([rows[4 * c + n]["features"] for n in range(3)], 0) for c in classes])


def test_the_closed_form_gets_training_videos_of_seen_classes_only(make, dataset):
    task, _, params = opened(make(cycle__pool="unseen"))
    want = means_of(dataset, ORDER[: SEEN - VALIDATION])
    np.testing.assert_allclose(params["seen"]["videos"], want, atol=1e-6)
    assert params["seen"]["texts"].shape == (14, 3, 16)
    np.testing.assert_allclose(np.linalg.norm(params["seen"]["texts"], axis=-1), 1, atol=1e-5)
    # Only the texts of the tested classes are in a batch, and only with the pool "unseen".
    pool = task.step_texts(0)["pool"]
    np.testing.assert_array_equal(pool, class_features(task, "unseen"))
    assert len(opened(make(cycle__pool="episodic"))[0].step_texts(0)["pool"]) == 0


def test_class_features_are_means_of_unit_vectors(make):
    task, _, _ = opened(make())
    got = class_features(task, "unseen")
    captions, _ = task.descriptions["unseen"].first(2)
    want = unit(unit(captions.astype(np.float32)).mean(1))
    np.testing.assert_allclose(got[:, 2], want, atol=1e-6)
    definition = task.label_ids["unseen"][:, 1].astype(np.float32)
    np.testing.assert_allclose(got[:, 1], unit(definition), atol=1e-6)


@pytest.mark.parametrize(
    ("definitions", "ablation", "blocks"),
    [("never", "label", 1), ("always", "label", 2), ("with_descriptions", "label", 1),
     ("never", "full", 2), ("with_descriptions", "full", 3)],
)  # fmt: skip
def test_definitions_belong_to_the_label_as_configured(make, definitions, ablation, blocks):
    task = make_task(make(text__definitions=definitions, ablation=ablation))
    assert task.label_ids["seen"].shape[1] == 1 + (definitions == "always" or blocks == 3)
    assert opened(make(text__definitions=definitions, ablation=ablation))[2]["seen"][
        "texts"
    ].shape == (14, blocks, 16)


def test_learned_projections_start_as_ridge_regression(make, dataset):
    config = make(
        alignment="learned", ablation="label", model__dim=WIDTH, model__centre=True,
        model__start="ridge", video_tower__linear=True,
    )  # fmt: skip
    task, program, params = opened(config)
    texts, videos = class_features(task, "seen")[:, 0], class_means(task)
    x, v = unit(texts - texts.mean(0)), unit(videos - videos.mean(0))
    weight = np.linalg.solve(x.T @ x + 4.0 * np.eye(16), x.T @ v)
    unseen = class_features(task, "unseen")[:, 0] - texts.mean(0)
    got = program.embed_labels(params, task.label_ids["unseen"])
    np.testing.assert_allclose(got, unit(unit(unseen) @ weight), atol=1e-4)
    tested = dataset.records.features(np.arange(8), WIDTH, False)
    np.testing.assert_allclose(
        program.embed_videos(params, tested), unit(tested - videos.mean(0)), atol=1e-4
    )


def test_ridge_needs_no_training_and_gives_the_baseline(make, tmp_path):
    """Through the checkpoint and the program: the same accuracy as computed from the data."""
    config = make(alignment="ridge", ablation="label+desc")
    got = run(config, tmp_path)
    assert got["step"] == 0 and got["top1"] == got["ridge"]["kernel"]["top1"]
    # In this ablation there is nothing but the label to regress from.
    label = run(make(alignment="ridge", ablation="label"), tmp_path)
    assert label["baselines"]["label"] == label["ridge"]["linear"]
    assert 0 <= got["baselines"]["conse"]["top1"] <= 1
    assert 0 <= got["generalised"]["seen"] <= 1


def test_a_checkpoint_of_episodes_gives_the_same_scores(make, dataset, tmp_path):
    config = make(cycle__pool="auxiliary")
    first = run(config, tmp_path)
    folder = tmp_path / "full/split3/seed0"
    params = final_params(folder)
    want = means_of(dataset, ORDER[: SEEN - VALIDATION])
    np.testing.assert_allclose(params["params/seen/videos"], want, atol=1e-6)
    start = np.log(np.float32(config.ridge.strength))
    assert params["params/constants/log_strength"] != pytest.approx(start, abs=1e-4)
    assert not [path for path in params if path.startswith("params/text")]
    (folder / "result.json").unlink()
    assert run(config, tmp_path, "evaluate") == first == result(folder)


def test_interrupted_episodes_end_with_the_same_parameters(make, tmp_path):
    whole, cut = make(), make()
    run(whole, tmp_path / "whole", "train")
    run(cut, tmp_path / "cut", "train")
    shutil.rmtree(tmp_path / "cut/full/split3/seed0/checkpoints/3")  # resumes from step 2
    run(cut, tmp_path / "cut", "train")
    a, b = (final_params(tmp_path / name / "full/split3/seed0") for name in ("whole", "cut"))
    for path, value in a.items():
        np.testing.assert_array_equal(value, b[path])


def test_split_without_unseen_classes_can_only_be_trained_on(make, tmp_path):
    config = make(split="all", protocol="test", cycle__pool="episodic", alignment="ridge")
    with pytest.raises(UserError, match=r"config.split: 'all' has no unseen .*--mode=train"):
        run(config, tmp_path)
    run(config, tmp_path, "train")
    stored = json.loads((tmp_path / "full/splitall/seed0/config.json").read_text())
    assert stored["ridge"]["seen_classes"] == 24
    with pytest.raises(UserError, match=r"config.cycle.pool: split 'all' has no unseen classes"):
        make_task(make(split="all", protocol="test"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_tower__kind": "video"}, "alignment: 'episodic' needs stored features"),
        ({"text_tower__trainable": "all"}, "alignment: 'episodic' needs stored features"),
        ({"cycle__heads": 2}, "alignment: 'episodic' has no optimizer.microbatches"),
        ({"alignment": "learned", "model__start": "ridge"}, "model.start: 'ridge' needs"),
        ({"video_tower__feature_dim": 9}, "feature_dim: 9, but the stored features have 8"),
        ({"ridge__weights": (1.0, 1.0)}, "ridge.weights: must be three numbers"),
    ],
)
def test_a_config_that_does_not_fit_the_closed_form_is_an_error(make, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(make(**changes), tmp_path, "train")
