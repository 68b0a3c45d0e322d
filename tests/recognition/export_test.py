"""Exports: equal to the recogniser in other runtimes, and run by a program without coco_jax."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import coco_jax
import coco_jax.export
from coco_jax.errors import UserError
from coco_jax.models import transformer
from coco_jax.recognition import export, onnx_model
from tests.helpers.runs import ROOT
from tests.weights.i3d_test import POOLS

RUNNER = ROOT / "examples" / "run_exported.py"
ACTIONS = ["juggling", "rope skipping", "swimming"]


@pytest.fixture(scope="module", params=export.FORMATS)
def exported(request, untrained, tmp_path_factory) -> pathlib.Path:
    """A folder with an export in each format."""
    if request.param == "onnx":
        pytest.importorskip("jax2onnx")
    folder = tmp_path_factory.mktemp(request.param)
    export.export(untrained, untrained.embed_actions(ACTIONS), request.param, folder)
    return folder


def rows_of(folder: pathlib.Path, clips: np.ndarray) -> np.ndarray:
    """The rows that the exported function computes."""
    head = json.loads((folder / "export.json").read_text())
    if head["file"].endswith(".onnx"):
        session = pytest.importorskip("onnxruntime").InferenceSession(folder / head["file"])
        return session.run(None, {session.get_inputs()[0].name: clips})[0]
    return np.asarray(jax.export.deserialize((folder / head["file"]).read_bytes()).call(clips))


def ranked_by_runner(folder: pathlib.Path, video: pathlib.Path) -> dict[str, float]:
    """The actions and scores that examples/run_exported.py prints."""
    done = subprocess.run(
        [sys.executable, RUNNER, folder, video],
        capture_output=True, text=True, cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^ *([\d.]+)%  (.*)$", done.stdout, re.MULTILINE)
    return {name: float(percent) / 100 for percent, name in found}


@pytest.mark.parametrize("count", [1, 3])
def test_the_exported_function_gives_the_same_rows_for_any_number_of_clips(
    exported, untrained, count
):
    video = untrained.config.video_tower
    shape = (count, video.frames, video.size, video.size, 3)
    clips = np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)
    wanted_BW = untrained.rows(untrained.embed_clips(clips))
    np.testing.assert_allclose(rows_of(exported, clips), wanted_BW, atol=1e-4)


def test_the_runner_ranks_as_the_recogniser_does_also_with_another_table(
    exported, untrained, video_path, tmp_path
):
    (ranking,) = untrained.rank([video_path], ACTIONS)
    found = ranked_by_runner(exported, video_path)
    assert found == {name: pytest.approx(score, abs=2e-3) for name, score in ranking}
    others = ["jumps", "a clown"]
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    export.replace_table(untrained, untrained.embed_actions(others), tmp_path)
    (ranking,) = untrained.rank([video_path], others)
    found = ranked_by_runner(tmp_path, video_path)
    assert found == {name: pytest.approx(score, abs=2e-3) for name, score in ranking}


def test_the_runner_is_short_and_does_not_import_coco_jax():
    text = RUNNER.read_text()
    assert len(text.splitlines()) <= 40
    assert not re.search(r"^\s*(import|from) coco_jax", text, re.MULTILINE)


def test_what_cannot_be_exported_is_one_line(untrained, tmp_path, monkeypatch):
    captions = {"juggling": ["balls in the air"], "swimming": ["jumps"]}
    with pytest.raises(UserError, match="names only"):
        export.export(
            untrained, untrained.embed_actions(list(captions), captions), "onnx", tmp_path
        )
    candidates = untrained.embed_actions(ACTIONS)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"coco_jax\[export\]"):
        export.export(untrained, candidates, "onnx", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        export.export(untrained, candidates, "stablehlo", tmp_path)


def test_an_operation_that_jax2onnx_cannot_convert_is_one_line():
    pytest.importorskip("jax2onnx")

    def crop(x):
        return jax.lax.pad(x.astype(jnp.float32), 0.0, ((0, 0, 0), (-1, -1, 0)))

    with pytest.raises(UserError, match="jax2onnx cannot convert this model"):
        onnx_model.to_onnx(crop, (8,))


@pytest.mark.parametrize("window, strides", POOLS)
def test_replaced_operations_give_equal_results(window, strides):
    """The windows of I3D, and padding, against those of JAX."""

    @jax.jit
    def function(x):
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0), (0, 0)), constant_values=-0.5)
        pool = (1, *window, 1), (1, *strides, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *pool, "SAME")

    x = np.random.default_rng(0).normal(size=(2, 7, 9, 10, 3)).astype(np.float32)
    replaced = onnx_model._evaluate(jax.make_jaxpr(function)(x), [x])
    np.testing.assert_array_equal(replaced[0], function(x))


def test_the_program_for_cpus_is_kept_of_a_choice_between_platforms():
    @jax.jit
    def function(x):
        cpu = jax.checkpoint(jnp.sin)
        return jax.lax.platform_dependent(x, tpu=jnp.cos, cpu=cpu, default=jnp.tan)

    (found,) = onnx_model._evaluate(jax.make_jaxpr(function)(1.0), [jnp.float32(1)])
    assert found == pytest.approx(np.sin(1), abs=1e-6)


def test_the_command_writes_an_export_and_replaces_its_table(
    untrained, parse, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(coco_jax, "load", lambda where, towers: untrained)
    parse(coco_jax.export, f"--output={tmp_path}", "--actions=juggling,swimming")
    coco_jax.export.command(["export", "pretrained"])
    assert "video.stablehlo" in capsys.readouterr().out
    before = (tmp_path / "actions.safetensors").read_bytes()
    parse(coco_jax.export, f"--output={tmp_path}", "--actions=jumps", "--only_actions")
    coco_jax.export.command(["export", "pretrained"])
    assert (tmp_path / "actions.safetensors").read_bytes() != before
    parse(coco_jax.export, f"--output={tmp_path / 'other'}", "--actions=jumps", "--only_actions")
    with pytest.raises(UserError, match="no export"):
        coco_jax.export.command(["export", "pretrained"])
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="give a model and a folder"):
        coco_jax.export.command(["export"])


def test_attention_by_head_in_onnx_equals_that_in_jax():
    """Long sequences, for which CPUs loop over the heads of a block."""
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    block = transformer.Block(32, heads=4, rngs=nnx.Rngs(0))
    clips = np.random.default_rng(0).integers(0, 256, (2, 260, 32), dtype=np.uint8)
    assert transformer.MIN_LOGITS_BY_HEAD <= 4 * 260 * 260
    embed = lambda clips: block(clips.astype(jnp.float32) / 255)[:, ::20]
    session = runtime.InferenceSession(onnx_model.to_onnx(embed, clips.shape[1:]))
    got = session.run(None, {session.get_inputs()[0].name: clips})[0]
    np.testing.assert_allclose(got, jax.jit(embed)(clips), atol=1e-5)
