"""Ranking actions for videos: real files, equality with the evaluation, invalid candidates."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from coco_jax import weights
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.corpus import load_corpus
from coco_jax.data.dataset import load
from coco_jax.data.task import label_ids, make_task
from coco_jax.errors import UserError
from coco_jax.evaluation import evaluate
from coco_jax.recognition.recognizer import Recognizer

ACTIONS = ["applying eye makeup", "arm wrestling", "cleaning pool", "shooting basketball"]


def test_ranking_of_real_clips_has_all_actions_and_probabilities(recognizer, clips):
    """H.264 and MPEG-4, 4:3 and 16:9, 6 to 30 fps."""
    paths = sorted(clips.iterdir())
    ranked = recognizer.rank(paths, ACTIONS)
    assert len(ranked) == 4
    for best in ranked:
        names, scores = zip(*best, strict=True)
        assert sorted(names) == ACTIONS and list(scores) == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_scores_do_not_depend_on_the_order_of_candidates(recognizer, video_path):
    captions = {name: [f"someone {name}", "a clip"] for name in ACTIONS}
    for descriptions in (None, captions):
        one = dict(recognizer.rank([video_path], ACTIONS, descriptions)[0])
        two = dict(recognizer.rank([video_path], ACTIONS[::-1], descriptions)[0])
        assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize(("sampling", "views"), [("random", 1), ("dense", 2)])
def test_scores_equal_those_of_the_evaluation(recognizer, data_dir, tmp_path, sampling, views):
    """The same clips, candidates and descriptions give the scores of evaluate.py."""
    config = recognizer.config.copy_and_resolve_references()
    config.data.update(dir=data_dir, batch=1, cache=False, sampling=sampling, views=views)
    recognizer = dataclasses.replace(recognizer, config=config)
    task = make_task(config)
    record = int(task.plan.test_unseen[0])
    scores = evaluate.score_records(
        recognizer.program, recognizer.params, task, np.array([record])
    )[0, len(task.plan.seen) :]
    path = tmp_path / "clip.mp4"
    path.write_bytes(task.dataset.records[record]["video"])
    unseen = task.plan.unseen
    corpus = predict_corpus(task, data_dir)
    got = dict(recognizer.rank([path], unseen, corpus)[0])
    want = jax.nn.softmax(scores / float(jax.numpy.exp(recognizer.params["log_tau"])))
    np.testing.assert_allclose([got[name] for name in unseen], want, atol=1e-4)


def test_many_different_numbers_of_candidates_need_few_programs_and_have_the_same_scores(
    recognizer, video_path, monkeypatch
):
    """Reference: the scores without padding and batches. 40 numbers of actions, some with captions."""
    monkeypatch.setattr("coco_jax.recognition.recognizer.BATCH", 64)
    program, params = recognizer.program, recognizer.params
    actions = [f"{verb} {noun}" for verb in ("run", "hop", "spin") for noun in range(20)]
    v_D = recognizer.embed_video(video_path)
    monkeypatch.setattr(type(recognizer), "embed_video", lambda self, path: v_D)
    jitted = program.embed_labels, program.embed_texts, program.scores
    before = [function._cache_size() for function in jitted]
    ranked = {}
    for count in range(1, 41):
        named = actions[:count]
        captions = {name: [f"someone {name} {n}" for n in range(count)] for name in named}
        for described in (None, captions) if count in (7, 33) else (None,):
            candidates = recognizer.embed_actions(named, described)
            ranked[count, bool(described)] = dict(recognizer.rank_one(video_path, candidates))
    added = [function._cache_size() - size for function, size in zip(jitted, before, strict=True)]
    # 8, 16, 32 or 64 candidates, with and without captions; without padding there would be 40.
    assert max(added) <= 8, added
    tau = float(np.exp(params["log_tau"]))
    for count in (7, 33):
        named = actions[:count]
        l_KD = program.embed_labels(
            params, label_ids(recognizer.config, recognizer.tokenizer, named, {})
        )
        texts = min(count, recognizer.config.text.eval_descriptions)
        ids = [recognizer.tokenizer([f"someone {a} {n}" for n in range(texts)]) for a in named]
        d_KMD = program.embed_texts(params, np.stack(ids))
        for d, described in ((None, False), (d_KMD, True)):
            scores = np.asarray(program.scores(params, v_D[None], l_KD, d, None))[0]
            want = np.asarray(jax.nn.softmax(scores / tau))
            got = ranked[count, described]
            np.testing.assert_allclose([got[name] for name in named], want, atol=1e-5)


def test_float16_model_ranks_on_a_cpu(trained_run, recognizer, tmp_path, video_path):
    """XLA has no attention in float16 for CPUs, so its float32 weights are used in float32."""
    shutil.copytree(trained_run, tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())
    stored["model"]["dtype"] = "float16"
    (tmp_path / "run/config.json").write_text(json.dumps(stored))
    got = dict(Recognizer.load(tmp_path / "run").rank([video_path], ACTIONS)[0])
    assert got == pytest.approx(dict(recognizer.rank([video_path], ACTIONS)[0]), abs=0.01)


def test_vector_of_a_video_is_the_mean_over_its_views(recognizer, tmp_path, data_dir):
    """The mean is normalised; the two views differ."""
    config = recognizer.config.copy_and_resolve_references()
    config.data.update(dir=data_dir, sampling="dense", views=2)
    path = tmp_path / "clip.mp4"
    path.write_bytes(load("motion_zsar", data_dir).records[0]["video"])
    reader = ClipReader(config, training=False)
    v_VD = [
        np.asarray(recognizer.program.embed_videos(recognizer.params, reader.read(path, n)[None]))[
            0
        ]
        for n in range(2)
    ]
    assert np.abs(v_VD[0] - v_VD[1]).max() > 1e-3
    mean_D = (v_VD[0] + v_VD[1]) / np.linalg.norm(v_VD[0] + v_VD[1])
    got_D = dataclasses.replace(recognizer, config=config).embed_video(path)
    np.testing.assert_allclose(got_D, mean_D, atol=1e-5)


def test_load_interpolates_with_the_published_weights(
    recognizer, trained_run, tmp_path, monkeypatch
):
    """As in the evaluation. The published video tower is all zeros here, so the result is a multiple."""
    shutil.copytree(trained_run, tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())
    stored["eval"]["interpolate"], stored["video_tower"]["weights"] = 0.25, "published.npz"
    (tmp_path / "run/config.json").write_text(json.dumps(stored))
    monkeypatch.setattr(
        weights,
        "published",
        lambda config, shapes: {
            p: np.zeros(s) for p, s in shapes.items() if p.startswith("video/")
        },
    )
    mixed, trained = Recognizer.load(tmp_path / "run").params, recognizer.params
    for part, share in (("video", 0.75), ("text", 1.0)):
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(got, share * want, atol=1e-6),  # noqa: B023
            mixed[part],
            trained[part],
        )


def predict_corpus(task, data_dir):
    tested = [
        task.dataset.records.video_ids[i] for i in (*task.plan.test_unseen, *task.plan.test_seen)
    ]
    return load_corpus("actionhub/motion", data_dir).without_videos(tested)[0].texts


def test_actions_without_a_known_token_are_an_error(recognizer):
    with pytest.raises(UserError, match="cannot read: '跳绳'"):
        recognizer.embed_actions(["juggling", "跳绳"])


def test_error_for_an_action_without_description_has_its_name(recognizer, video_path):
    with pytest.raises(UserError, match="have no description in the corpus: 'arm wrestling'"):
        recognizer.rank([video_path], ACTIONS[:2], {ACTIONS[0]: ["a face"]})


def test_error_for_a_folder_above_runs_lists_them(trained_run):
    with pytest.raises(UserError, match=r"runs below it: .*full/split1/seed0"):
        Recognizer.load(trained_run.parents[2])


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a run"):
        Recognizer.load(tmp_path)
