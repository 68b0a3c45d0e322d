"""details.json: what explains the numbers of a run, compared with its definition on the same model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from coco_jax import sharding
from coco_jax.config import load_stored
from coco_jax.data.task import make_task
from coco_jax.evaluation.evaluate import score
from coco_jax.evaluation.experiment import run
from coco_jax.evaluation.explanation import explain
from coco_jax.training.checkpoint import read_json, restore_params
from coco_jax.training.step import make_program
from coco_jax.training.text_features import class_features
from tests.helpers.runs import final_params, result
from tests.training.seen_test import dataset, make, opened  # noqa: F401, fixtures


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
    """The folder of an evaluated run."""
    workdir = tmp_path_factory.mktemp("evaluated")
    folder = workdir / trained_run.relative_to(trained_run.parents[2])
    shutil.copytree(trained_run, folder)
    config = load_stored(read_json(folder / "config.json"), str(folder))
    run(config, workdir, "evaluate")
    return folder


@pytest.fixture(scope="module")
def details(evaluated):
    return json.loads((evaluated / "details.json").read_text())


@pytest.fixture(scope="module")
def scored(evaluated):
    config = load_stored(read_json(evaluated / "config.json"), str(evaluated))
    program = make_program(config, sharding.make_mesh(config, jax.devices()[:8]))
    step, params = restore_params(evaluated / "checkpoints", program)
    return score(program, params, make_task(config), step)


def test_curve_and_bins_have_the_area_and_the_accuracy_of_the_result(evaluated, details):
    got = result(evaluated)
    curve, calibration = details["curve"], details["calibration"]
    assert np.trapezoid(curve["seen"], curve["unseen"]) == pytest.approx(got["generalised"]["auc"])
    filled = [entry for entry in calibration["bins"] if entry["videos"]]
    assert sum(entry["videos"] for entry in filled) == got["unseen_videos"]
    right = sum(entry["videos"] * entry["accuracy"] for entry in filled)
    assert right / got["unseen_videos"] == pytest.approx(got["top1"])


def test_captions_neighbours_and_rebuilding_weights_equal_their_definition(
    evaluated, details, scored
):
    """docs/method.md, sections 1 and 2, in NumPy."""
    task, config = scored.task, scored.task.config
    l_KD, d_KMD, mask_KM = map(np.asarray, scored.features)
    seen, unseen = task.plan.seen, task.plan.unseen

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    w = config.model.label_weight
    mean_KD = np.stack([d[m].mean(0) for d, m in zip(d_KMD, mask_KM, strict=True)])
    s_KD = unit(w * l_KD + (1 - w) * unit(mean_KD))
    to_unseen = {
        path.rpartition("/")[2]: x
        for path, x in final_params(evaluated).items()
        if "to_unseen" in path
    }
    query, key = s_KD[len(seen) :] @ to_unseen["query"], s_KD[: len(seen)] @ to_unseen["key"]
    heads = [
        unit(q) @ unit(k).T / config.cycle.tau_r
        for q, k in zip(*(np.split(x, config.cycle.heads, 1) for x in (query, key)), strict=True)
    ]
    for u, name in enumerate(unseen):
        cosine_S = s_KD[len(seen) + u] @ s_KD[: len(seen)].T
        found = {entry["action"]: entry["cosine"] for entry in details["nearest"][name]}
        want = sorted(zip(cosine_S.tolist(), seen, strict=True), reverse=True)[: len(found)]
        assert found == pytest.approx({a: c for c, a in want}, abs=1e-4)
        weight_S = np.mean([softmax(head[u]) for head in heads], 0)
        found = {entry["action"]: entry["weight"] for entry in details["rebuilt"][name]}
        assert found == pytest.approx({a: weight_S[seen.index(a)] for a in found}, abs=1e-4)
        assert min(found.values()) >= sorted(weight_S)[-len(found)] - 1e-4
    ids = [task.dataset.records.video_ids[i] for i in task.plan.test_unseen]
    for entry in details["captions"]:
        v_D = scored.v_ND[ids.index(entry["video_id"])]
        assert entry["of"].keys() == {entry["action"], entry["predicted"]}
        for name, captions in entry["of"].items():
            c = len(seen) + unseen.index(name)
            weight_M = softmax(d_KMD[c][mask_KM[c]] @ v_D / config.model.tau_d)
            texts = task.corpus.texts[name][: len(weight_M)]
            want = sorted(zip(weight_M.tolist(), texts, strict=True), reverse=True)[:4]
            assert [caption["weight"] for caption in captions] == pytest.approx(
                [weight for weight, _ in want], abs=1e-4
            )
            assert all(caption["text"] in texts for caption in captions)


def test_a_class_without_a_tested_video_has_no_captions(scored):
    task, plan = scored.task, scored.task.plan
    kept_N = scored.label_N != len(plan.seen)  # all but the first unseen class
    tested = plan.test_unseen[kept_N[: len(plan.test_unseen)]]
    fewer = scored._replace(
        task=dataclasses.replace(task, plan=dataclasses.replace(plan, test_unseen=tested)),
        v_ND=scored.v_ND[kept_N],
        scores_NK=scored.scores_NK[kept_N],
        label_N=scored.label_N[kept_N],
    )
    captions = explain(fewer)["captions"]
    assert [entry["action"] for entry in captions] == list(plan.unseen[1:])


@pytest.mark.usefixtures("one_device")
def test_closed_form_is_rebuilt_by_the_coefficients_of_its_regression(make, dataset, tmp_path):  # noqa: F811
    """With a strong regularisation the coefficients are proportional to the kernel."""
    run(make(alignment="ridge", ablation="full", ridge__strength=1e4), tmp_path)
    (path,) = tmp_path.glob("full/*/*/details.json")
    details = json.loads(path.read_text())
    assert details["captions"] is None and len(details["rebuilt"]) == len(details["nearest"])
    for name, entries in details["rebuilt"].items():
        near = [entry["action"] for entry in details["nearest"][name]]
        assert [entry["action"] for entry in entries] == near
        assert 0 < entries[0]["weight"] <= 1e-4


def test_closed_form_lists_neighbours_by_its_trained_weights_of_the_kinds_of_texts(make):  # noqa: F811
    task, program, params = opened(make(alignment="ridge", ablation="full"))
    only_labels = np.array([0, -50, -50], np.float32)  # before the softmax
    params = params | {"constants": params["constants"] | {"log_weight": only_labels}}
    nearest = explain(score(program, params, task, 0))["nearest"]
    seen_SW, unseen_UW = (class_features(task, group)[:, 0] for group in ("seen", "unseen"))
    cosine_US = unit(unseen_UW - seen_SW.mean(0)) @ unit(seen_SW - seen_SW.mean(0)).T
    for name, cosine_S in zip(task.plan.unseen, cosine_US, strict=True):
        found = {entry["action"]: entry["cosine"] for entry in nearest[name]}
        want = dict(zip(task.plan.seen, cosine_S.tolist(), strict=True))
        assert found == pytest.approx({action: want[action] for action in found}, abs=1e-4)
        assert min(found.values()) >= sorted(want.values())[-len(found)] - 1e-4
