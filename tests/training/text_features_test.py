"""A frozen text tower: features replace token ids, and its parameters do not change."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coco_jax import sharding
from coco_jax.data.task import make_task
from coco_jax.evaluation.evaluate import measure, score
from coco_jax.training.loop import train
from coco_jax.training.step import make_program
from coco_jax.training.text_features import cache_key, with_features
from tests.helpers import runs


@pytest.fixture
def frozen(tiny, data_dir, tmp_path):
    """A function that makes configs with a frozen text tower and an empty cache."""

    def make(**changes):
        folder = tmp_path / "data"
        if not folder.exists():
            folder.mkdir()
            for built in pathlib.Path(data_dir).iterdir():
                if built.name != "text_features":  # of other tests
                    (folder / built.name).symlink_to(built)
        return tiny(**{"data__dir": str(folder), "text_tower__trainable": "none", **changes})

    return make


def opened(config, devices=1):
    task = make_task(config)
    program = make_program(config, sharding.make_mesh(config, jax.devices()[:devices]))
    return task, program, program.init(jax.random.key(0)).params


def test_embeddings_of_features_equal_those_of_token_ids(frozen):
    config = frozen()
    task, program, params = opened(config)
    cached = with_features(task, program, params)
    assert cached.label_ids["seen"].dtype == jnp.bfloat16
    by_ids = program.embed_labels(params, task.label_ids["seen"])
    by_features = program.embed_labels(params, cached.label_ids["seen"])
    np.testing.assert_allclose(by_ids, by_features, atol=0.01)  # bfloat16 has 8 bits
    # The same descriptions, drawn as ids and as features.
    plain = make_task(frozen(text_tower__trainable="all"))
    ids, features = plain.step_texts(3), cached.step_texts(3)
    np.testing.assert_allclose(
        program.embed_texts(params, ids["description_ids"]),
        program.embed_texts(params, features["description_ids"]),
        atol=0.01,
    )


def test_eight_devices_cache_the_same_features_as_one(frozen):
    one, eight = frozen(), frozen()
    eight.mesh.update(data=2, fsdp=2, tensor=2)
    task, program, params = opened(one)
    features = with_features(task, program, params).label_ids["seen"]
    folder = pathlib.Path(one.data.dir) / "text_features" / cache_key(task, params)
    folder.rename(folder.with_name("elsewhere"))
    task8, program8, params8 = opened(eight, 8)
    assert cache_key(task8, params8) == folder.name
    sharded = with_features(task8, program8, params8).label_ids["seen"]
    np.testing.assert_allclose(
        features.astype(np.float32), sharded.astype(np.float32), atol=1e-2, rtol=1e-2
    )


def test_cache_key_depends_on_tower_and_tokenizer(frozen):
    task, program, params = opened(frozen())
    first = cache_key(task, params)
    other = program.init(jax.random.key(1)).params
    assert cache_key(task, other) != first
    assert cache_key(make_task(frozen(text__vocabulary=280)), params) != first
    assert cache_key(make_task(frozen(text__length=12)), params) != first
    assert cache_key(task, {**params, "video": other["video"]}) == first


def test_run_with_a_frozen_tower_trains_the_other_parameters_and_evaluates(frozen, tmp_path):
    config = frozen(optimizer__steps=3)
    task, program, _ = opened(config)
    before = jax.tree.map(np.asarray, program.init(jax.random.key(config.seed)).params)
    state = train(program, task, tmp_path / "run", "frozen")
    moved = {
        sharding.path_of(path): bool((np.asarray(leaf) != old).any())
        for (path, leaf), old in zip(
            jax.tree.leaves_with_path(state.params), jax.tree.leaves(before), strict=True
        )
    }
    assert not [name for name in moved if name.startswith("text/") and moved[name]]
    assert moved["text_out/kernel"] and moved["video/embed/kernel"]
    metrics = measure(score(program, state.params, task, 3))
    assert 0 <= metrics["top1"] <= 1
    (folder,) = (pathlib.Path(config.data.dir) / "text_features").iterdir()
    about = json.loads((folder / "about.json").read_text())
    assert about["corpus"] == "actionhub/motion" and about["width"] == 32


def test_auxiliary_pool_and_ablations_without_descriptions_use_features(frozen):
    for changes in (
        {"cycle__pool": "auxiliary"},
        {"ablation": "label+cycle"},
    ):
        task, program, params = opened(frozen(**changes))
        texts = with_features(task, program, params).step_texts(0)
        assert texts["label_ids"].dtype == jnp.bfloat16
        if changes.get("cycle__pool"):
            assert texts["pool_description_ids"].shape[2] == 32


def test_two_processes_have_the_same_features_whatever_their_disks_have(frozen, tmp_path):
    """Empty, complete, half filled, damaged, and complete or not writable for one of them only."""
    frozen()  # makes tmp_path/data
    address = f"127.0.0.1:{runs.free_port()}"
    command = [sys.executable, "-m", "tests.helpers.cache_processes", address]
    children = [
        subprocess.Popen(
            [*command, str(index), str(tmp_path)], cwd=runs.ROOT, env=runs.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    output = [child.communicate(timeout=300) for child in children]
    cases, other = (
        [json.loads(line) for line in out.splitlines() if line.startswith('["')]
        for out, _ in output
    )  # Gloo prints other lines
    errors = [error for _, error in output]
    assert cases == other, errors
    assert len({digest for _, _, digest in cases}) == 1
    encoded = {case: count for case, count, _ in cases}
    every = encoded["empty"]
    assert every > 500 and encoded == {
        "empty": every,
        "complete": 0,
        "half filled": every // 200 * 100 + max(0, every % 200 - 100),
        "damaged": 100,
        "complete for process 0": every,
        "complete for process 1": every,
    }
    # The last case.
    assert [child.returncode for child in children] == [2, 2], errors
    for error, who in zip(errors, ("process 1: ", ""), strict=True):
        (line,) = [line for line in error.splitlines() if "Not a directory" in line]
        assert line.startswith(f"test: {who}{tmp_path}/unwritable/text_features/")
        assert "Traceback" not in error
    assert errors[0].count("THE FILE IS DAMAGED") == 1
