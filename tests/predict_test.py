"""Naming actions in anybody's videos: real files, bad files, bad candidates."""

import json

import jax
import numpy as np
import pytest

from coco_jax.data import video as videos
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run as run_experiment
from coco_jax.recognition import inputs
from coco_jax.recognition.recognizer import Recognizer
from tests.helpers import runs

ACTIONS = ["applying eye makeup", "arm wrestling", "cleaning pool", "shooting basketball"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A run's folder; how good the model is does not matter here."""
    from conftest import tiny_config

    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(data_dir, data__batch=16, mesh__data=8)
    run_experiment(config, folder, "train")
    return folder / "full/split1/seed0"


@pytest.fixture(scope="module")
def recognizer(run):
    return Recognizer.load(run)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    path.write_bytes(videos.encode(frames, 8))
    return path


def test_real_clips_are_ranked(recognizer, clips):
    """H.264 and MPEG-4, 4:3 and 16:9, 6 to 30 fps."""
    paths = sorted(clips.iterdir())
    ranked = recognizer.rank(paths, ACTIONS)
    assert len(ranked) == 4
    for best in ranked:
        names, scores = zip(*best, strict=True)
        assert sorted(names) == ACTIONS and list(scores) == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_the_order_of_candidates_does_not_matter(recognizer, video):
    captions = {name: [f"someone {name}", "a clip"] for name in ACTIONS}
    for descriptions in (None, captions):
        one = dict(recognizer.rank([video], ACTIONS, descriptions)[0])
        two = dict(recognizer.rank([video], ACTIONS[::-1], descriptions)[0])
        assert one == pytest.approx(two, abs=1e-5)


def test_scores_are_those_of_the_evaluation(run, recognizer, data_dir, tmp_path):
    """The same clip, candidates and descriptions give the ranking that evaluate.py scores."""
    from coco_jax.data.task import make_task
    from coco_jax.evaluation import evaluate

    config = recognizer.config.copy_and_resolve_references()
    config.data.dir, config.data.batch, config.data.cache = data_dir, 1, False
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


def predict_corpus(task, data_dir):
    from coco_jax.data.corpus import load_corpus

    tested = [
        task.dataset.records.video_ids[i] for i in (*task.plan.test_unseen, *task.plan.test_seen)
    ]
    return load_corpus("actionhub/motion", data_dir).without_videos(tested)[0].texts


def test_the_command_prints_json_for_machines(run, video):
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={run}",
        f"--video={video}", "--actions=juggling, rope skipping", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["video"] == str(video)
    assert {entry["action"] for entry in row["actions"]} == {"juggling", "rope skipping"}
    assert row["actions"][0]["score"] >= row["actions"][1]["score"]


def test_bad_video_becomes_a_row_and_the_others_are_answered(run, video, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"not a video at all")
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={run}",
        f"--video={tmp_path / 'x.mp4'}", f"--video={video}", "--actions=run,swim", "--json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    bad, good = json.loads(done.stdout)
    assert "x.mp4: not a video" in bad["error"] and len(good["actions"]) == 2
    assert "1 of 2 videos could not be read" in done.stderr
    assert "its answers on real videos mean nothing" in done.stderr


def test_actions_csv_is_read_by_its_column(tmp_path):
    path = tmp_path / "actions.csv"
    path.write_text("id,action\n1,juggling\n2,rope skipping\n")
    assert inputs.read_actions(None, str(path)) == ["juggling", "rope skipping"]
    path.write_text("id,name\n1,juggling\n")
    with pytest.raises(UserError, match="no column 'action'"):
        inputs.read_actions(None, str(path))


def test_names_that_differ_in_case_only_are_refused():
    with pytest.raises(UserError, match="listed twice: Yoga, yoga"):
        inputs.read_actions("yoga, Yoga, run", None)


def test_actions_without_a_known_token_are_refused(recognizer):
    with pytest.raises(UserError, match="cannot read: '跳绳'"):
        recognizer.embed_actions(["juggling", "跳绳"])


def test_folder_above_runs_lists_them(run):
    with pytest.raises(UserError, match=r"runs below it: .*full/split1/seed0"):
        Recognizer.load(run.parents[2])


@pytest.mark.parametrize(
    ("listed", "file", "message"),
    [
        (None, None, "either --actions"),
        ("a", "b", "either --actions"),
        ("", None, "no actions to choose from"),
        ("  ", None, "no actions to choose from"),
        ("a,,b", None, "name is empty"),
        ("a, b,a", None, "listed twice: a"),
        (None, "/nowhere.txt", "/nowhere.txt"),
    ],
)
def test_bad_candidates(listed, file, message):
    with pytest.raises(UserError, match=message):
        inputs.read_actions(listed, file)


def test_candidates_from_a_file(tmp_path):
    (tmp_path / "actions.txt").write_text("juggling\n\n  rope skipping\n")
    assert inputs.read_actions(None, str(tmp_path / "actions.txt")) == [
        "juggling",
        "rope skipping",
    ]


def test_descriptions_from_json_and_csv(tmp_path):
    want = {"juggling": ["balls in the air", "a clown, smiling"], "skipping": ["a rope"]}
    (tmp_path / "d.json").write_text(json.dumps(want))
    (tmp_path / "d.csv").write_text(
        'action,description\njuggling,balls in the air\njuggling,"a clown, smiling"\nskipping,a rope\n'
    )
    assert inputs.read_descriptions(str(tmp_path / "d.json")) == want
    assert inputs.read_descriptions(str(tmp_path / "d.csv")) == want


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.json", "[1, 2]"), ("d.json", "{"), ("d.json", '{"a": "b"}'), ("d.csv", "x,y\n1,2\n"),
     ("d.csv", "action,description\nonly one\n")],
)  # fmt: skip
def test_bad_descriptions(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"--descriptions=.*{name}"):
        inputs.read_descriptions(str(tmp_path / name))


def test_an_action_without_description_is_named(recognizer, video):
    with pytest.raises(UserError, match="have no description in the corpus: 'arm wrestling'"):
        recognizer.rank([video], ACTIONS[:2], {ACTIONS[0]: ["a face"]})


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="not a run"):
        Recognizer.load(tmp_path)
