"""Tests of compiling for other machines: parsing HLO, collectives of a step, model FLOPs, errors."""

import os
import pathlib

import jax
import pytest

from coco_jax import sharding
from coco_jax.errors import UserError
from coco_jax.training import chips
from coco_jax.training.step import abstract_batch, make_program, model_flops
from coco_jax.training.topologies import compile_steps, devices_of, show, size, walk

MODULE = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b), backend_config={"estimated_cycles":"99"}
}

%inner (p: bf16[8,4]) -> bf16[8,4] {
  ROOT %ar = bf16[8,4]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%body.1 (t: (s32[], f32[16])) -> (s32[], f32[16]) {
  %g = f32[64]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %f = f32[16]{0} fusion(%g), kind=kLoop, calls=%inner, backend_config={"estimated_cycles":"10"}
}

ENTRY %main (p0: f32[16]) -> f32[16] {
  %w = (s32[], f32[16]{0}) while(%t), condition=%cond, body=%body.1
  %c = f32[16]{0} fusion(%p0), kind=kLoop, calls=%nothing, backend_config={"estimated_cycles":"1000"}
  %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%p0), replica_groups={{0,1,2,3}}, dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %r = f32[4]{0} reduce-scatter(%c), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
  ROOT %t2 = (f32[2]{0}, pred[3]{0}) all-reduce(%r, %q), replica_groups={}, to_apply=%add
}
"""


def test_walk_sums_cycles_and_collectives_of_hlo_text():
    """Counted by hand: the loop body runs three times; the reduction function %add does not count."""
    cycles, found = walk(MODULE, repeats=3)
    assert cycles == 1000 + 3 * 10
    assert found == {
        "all-reduce": (1 + 3, (2 * 4 + 3) + 3 * (8 * 4 * 2)),
        "all-gather": (1 + 3, 16 * 4 + 3 * 64 * 4),
        "reduce-scatter": (1, 4 * 4 * 4),
    }
    assert size("(f32[400,512]{1,0:T(8,128)S(1)}, /*index=5*/bf16[3]{0}, s32[]{:T(128)})") == (
        400 * 512 * 4 + 6 + 4
    )


def test_training_step_gathers_only_embeddings(tiny):
    """With data parallelism, other activations, scores and parameters are not gathered."""
    config = tiny(ablation="full", data__batch=16)
    seen, pool = 24, 8
    program = make_program(config, sharding.make_mesh(config))
    batch, key = abstract_batch(config, seen, pool), jax.eval_shape(lambda: jax.random.key(0))
    _, found = walk(program.step.lower(program.abstract, batch, key).compile().as_text(), 1)
    texts = (seen + pool) * (len(config.text.templates) + config.text.descriptions)
    embeddings = texts * config.model.dim * 4
    assert 0 < found["all-gather"][1] <= embeddings
    # Token ids, which are small, may be exchanged; besides that, only gradients are reduced.
    ids = texts * config.text.length * 4
    assert sum(number for kind, (_, number) in found.items() if kind == "all-to-all") <= ids
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)) * 4
    embedded = (texts + 4 * config.data.batch) * config.model.dim * 4
    scores = 8 * (seen + pool) * config.data.batch * config.text.descriptions * 4
    assert found["all-reduce"][1] <= parameters + embedded + scores


def vit_flops(frames: int, tokens: int, width: int, depth: int) -> float:
    """FLOPs of the matrix products of a forward pass: multiplications and additions."""
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 4 * width
    return 2 * frames * (depth * block + (tokens - 1) * (16 * 16 * 3) * width)


def test_model_flops_equal_a_count_by_hand():
    """Three layers of ViT-B/16 on 8 frames, a frozen text tower; backward costs forward twice."""
    from coco_jax.configs import k400_zsar

    config = k400_zsar.get_config()
    config.ablation, config.data.batch, config.video_tower.temporal_depth = "label", 4, 0
    config.video_tower.temporal, config.video_tower.depth = "mean", 3
    got = model_flops(config, abstract_batch(config, 400, 160))
    wanted = 3 * vit_flops(8 * 4, 197, 768, 3)
    assert wanted == pytest.approx(got, rel=0.04)
    config.model.dtype = "float32"
    assert model_flops(config, abstract_batch(config, 400, 160)) == got


def test_model_flops_do_not_count_recomputation(tiny):
    small = {"ablation": "label", "video_tower__temporal": "mean"}
    batch = abstract_batch(tiny(**small), 24, 8)
    plain = model_flops(tiny(**small), batch)
    changed = tiny(**small, model__remat=True, optimizer__microbatches=2)
    assert model_flops(changed, batch) == plain > 0


def test_mfu_and_clock_of_chips():
    assert chips.mfu(197e12, 2.0, "TPU v5 lite") == 0.5
    assert chips.mfu(1.0, 1.0, "cpu") is None
    assert chips.CHIPS["TPU v5 lite"].clock == pytest.approx(1.5e9, rel=0.01)
    for kind in ("TPU v5", "TPU v6 lite"):
        assert chips.CHIPS[kind].clock == pytest.approx(1.75e9, rel=0.01)


@pytest.fixture(scope="module")
def libtpu():
    """Skips the test if the TPU compiler is not installed."""
    if "TPU_LIBRARY_PATH" not in os.environ:
        pytest.importorskip("libtpu", reason="pip install -r requirements-compile.txt")
    elif not pathlib.Path(os.environ["TPU_LIBRARY_PATH"]).is_file():
        pytest.skip(f"{os.environ['TPU_LIBRARY_PATH']} is absent (make test fetches it)")


def test_cost_per_device_is_the_same_on_4_and_16_chips(libtpu, tiny):
    """FLOPs per device match the model FLOPs; the printed report has the main lines."""
    found = {}
    for topology in ("v5e:2x2", "v5e:4x4"):
        devices = devices_of(topology)
        config = tiny(
            ablation="full", text_tower__trainable="none", data__batch=8 * len(devices),
            video_tower__temporal="mean",
        )  # fmt: skip
        costs = compile_steps(config, devices, 24, 8)
        step = costs["training step"]
        assert step.peak > step.arguments > 0 and step.flops and step.seconds
        # Gradients of trainable parameters are all-reduced; XLA may use bfloat16.
        assert step.collectives["all-reduce"][0] > 0
        found[topology] = step
        model = model_flops(config, abstract_batch(config, 24, 8))
        text = show(config, devices, costs, model)
        assert "fits" in text and "MFU" in text and f"{len(devices)} x TPU v5 lite" in text
        assert model / len(devices) == pytest.approx(step.flops, rel=0.25)
    small, large = found.values()
    assert large.flops == pytest.approx(small.flops, rel=0.05)


def test_step_that_exceeds_memory_raises_user_error_with_remedies(libtpu, tiny):
    devices = devices_of("v5e:2x2")
    config = tiny(ablation="label", data__batch=4 * 2**18, video_tower__temporal="mean")
    with pytest.raises(
        UserError, match=r"does not fit TPU v5 lite: it needs 2.* of 15.75G; .*config.model.remat"
    ):
        compile_steps(config, devices, 24, 8)


def test_unknown_topology_raises_one_line_user_error(libtpu):
    for topology in ("v5e:3x3x3", "v99:2x2", "h100:many"):
        with pytest.raises(UserError, match=f"--topology={topology}: .*v5e:16x16") as caught:
            devices_of(topology)
        assert "\n" not in str(caught.value)
