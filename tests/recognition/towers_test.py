"""Published towers as recognisers: equality with `transformers`, and which towers a place has."""

import json
import shutil
import string

import numpy as np
import pytest

import coco_jax
from coco_jax import config as configs
from coco_jax import predict, presets
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.tokenizers import train_tokenizer
from coco_jax.errors import UserError
from coco_jax.recognition import towers
from coco_jax.weights import clip, files, pe, siglip, videoprism
from tests.helpers import references
from tests.weights import clip_test, siglip_test

torch = pytest.importorskip("torch")
assert references  # importing it makes torchvision importable

ACTIONS = ["juggling", "rope skipping", "tai chi"]


def _small_clip(folder):
    """A small random CLIP of Hugging Face with a tokenizer of single letters, in a folder."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.save_pretrained(folder)
    config = coco_jax_config(clip_test.small, length=40, vocabulary=len(pieces))
    return config, clip_test.hugging_face(config, folder, noise=0.1), tokenizer


def coco_jax_config(small, **text):
    fields = configs.default()
    small(fields)
    fields.text.update(**text)
    return fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def small_clip(folder):
    return _small_clip(folder)


def _expected(model, clip_THWC, mean, std, ids_KPL):
    """Cosines: image features averaged over frames; text features, unit length, over templates."""

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    frames = (torch.from_numpy(clip_THWC.copy()) / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        image_TD = model.get_image_features(frames.permute(0, 3, 1, 2).float()).pooler_output
        text_XD = model.get_text_features(ids_KPL.reshape(-1, ids_KPL.shape[-1])).pooler_output
        text_KPD = unit(text_XD).reshape(*ids_KPL.shape[:2], -1)
        cosine_K = unit(text_KPD.mean(1)) @ unit(image_TD.mean(0))
        return cosine_K.numpy(), torch.softmax(model.logit_scale.exp() * cosine_K, 0).numpy()


def test_scores_of_clip_equal_transformers(folder, small_clip, video_path):
    _, model, tokenizer = small_clip
    recognizer = coco_jax.load(folder)
    clip_THWC = ClipReader(recognizer.config, training=False).read(video_path)
    assert clip_THWC.shape == (8, 32, 32, 3)
    prompts = [t.format(a) for a in ACTIONS for t in ("{}", "a video of {}", "a person doing {}")]
    ids = tokenizer(prompts, padding="max_length", max_length=40, return_tensors="pt").input_ids
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    cosine_K, share_K = _expected(model, clip_THWC, mean, std, ids.reshape(3, 3, -1))
    candidates = recognizer.embed_actions(ACTIONS)
    np.testing.assert_allclose(recognizer.raw_scores(video_path, candidates), cosine_K, atol=1e-5)
    got = dict(recognizer.rank([video_path], ACTIONS)[0])
    np.testing.assert_allclose([got[name] for name in ACTIONS], share_K, atol=1e-5)
    assert len({round(float(x), 3) for x in share_K}) > 1
    with pytest.raises(UserError, match="does not use them"):
        recognizer.embed_actions(ACTIONS, {name: ["a"] for name in ACTIONS})


def test_scores_of_siglip_equal_transformers(tmp_path, video_path):
    """The tokenizer is compared with transformers in tokenizers_test."""
    (tmp_path / "spiece.model").write_bytes(train_tokenizer(["juggling a rope tai chi"] * 9, 60))
    config = coco_jax_config(siglip_test.small, vocabulary=99)
    model = siglip_test.hugging_face(config, tmp_path, noise=0.1)
    recognizer = coco_jax.load(tmp_path)
    clip_THWC = ClipReader(recognizer.config, training=False).read(video_path)
    prompts = [t.format(a) for a in ACTIONS for t in ("{}", "a video of {}", "a person doing {}")]
    ids = torch.from_numpy(recognizer.tokenizer(prompts)).long().reshape(3, 3, -1)
    cosine_K, _ = _expected(model, clip_THWC, (0.5,) * 3, (0.5,) * 3, ids)
    candidates = recognizer.embed_actions(ACTIONS)
    np.testing.assert_allclose(recognizer.raw_scores(video_path, candidates), cosine_K, atol=1e-5)


def test_saved_towers_give_the_same_scores(folder, small_clip, tmp_path, video_path):
    recognizer = coco_jax.load(folder)
    recognizer.save(tmp_path / "saved")
    loaded = coco_jax.load(tmp_path / "saved")
    assert loaded.rank([video_path], ACTIONS) == recognizer.rank([video_path], ACTIONS)
    assert (tmp_path / "saved/tokenizer.json").is_file()
    assert loaded.training_data == recognizer.training_data
    assert str(folder) not in (tmp_path / "saved/config.json").read_text()


def test_command_ranks_with_published_towers(folder, small_clip, parse, capsys, video_path):
    parse(predict, f"--weights={folder}", f"--video={video_path}", "--actions=juggling,tai chi",
          "--threshold=2", "--json")  # fmt: skip
    predict.command([])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["actions"][0]["action"] == "none of these"  # cosines are below 2
    assert sum(entry["score"] for entry in row["actions"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=a", "--towers=clip_b32"], "name two models"),
        (["--towers=clip_b3"], "did you mean 'clip_b32'"),
        (["--towers=i3d"], "has only one tower"),
        (["--model=/nowhere"], "no such folder"),
        (["--weights={folder}", "--threshold=default"], "nobody has measured one"),
        (["--weights={folder}", "--threshold=nan"], "neither a number nor"),
    ],
)
def test_wrong_flags_are_an_error(folder, small_clip, parse, video_path, flags, message):
    flags = [flag.format(folder=folder) for flag in flags]
    parse(predict, *flags, f"--video={video_path}", "--actions=juggling,tai chi")
    with pytest.raises(UserError, match=message):
        predict.command([])


def test_error_for_weights_that_do_not_fit_names_no_config_field_of_a_run(
    folder, small_clip, tmp_path
):
    shutil.copytree(folder, tmp_path / "x")
    stored = json.loads((folder / "config.json").read_text())
    stored["vision_config"]["num_hidden_layers"] = 2
    (tmp_path / "x/config.json").write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r"^weights=\S*x: this CLIP .* does not fit the video tower"
    ):
        coco_jax.load(tmp_path / "x")


FAMILIES = {
    "siglip_b16": siglip.BIG_VISION,
    "siglip2_l16": siglip.BIG_VISION,
    "siglip2_so400m": siglip.HUGGING_FACE,
    "videoprism_base": videoprism.LVT,
    "videoprism_large": videoprism.LVT,
    "pe_core_b16": pe.META,
    "clip_b16": clip.HUGGING_FACE,
    "open_clip_h14": clip.OPEN_CLIP,
}


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_towers_without_a_config_are_found_by_their_shapes(tmp_path, monkeypatch, name, family):
    """Except for CLIP, whose files do not tell its activation."""
    video, text, sizes, _ = presets.PRESETS[name]
    shapes = {
        "video/embed/kernel": (3, video["patch"], video["patch"], video["width"]),
        "text/embed/embedding": (sizes["vocabulary"], text["width"]),
    }
    rows = {row.path: row.sources[0] for row in (*family.video, *family.text) if row.sources}
    tensors = {rows[path]: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    (tmp_path / "x.npz").write_bytes(b"")
    monkeypatch.setattr(files, "read", lambda path: tensors | {family.mark: np.zeros(1)})
    (tmp_path / "config.json").write_text('{"model_type": "another"}')
    if name in ("clip_b16", "open_clip_h14"):
        with pytest.raises(UserError, match=rf"does not say which model it is \(.*{name}"):
            towers._config(str(tmp_path / "x.npz"), None)
        return
    config = towers._config(str(tmp_path / "x.npz"), None)
    want = coco_jax_config(lambda config: presets.apply(config, name))
    for section in ("video_tower", "text_tower"):
        want[section].weights = str(tmp_path / "x.npz")
        assert config[section] == want[section]
    assert config.text == want.text and config.model.dim == want.model.dim


@pytest.mark.parametrize("name", ["clip_b32", "clip_l14", "siglip_b16", "siglip2_l16"])
def test_config_of_hugging_face_gives_the_fields_of_the_preset(tmp_path, name):
    want = coco_jax_config(lambda config: presets.apply(config, name))
    video, text = want.video_tower, want.text_tower

    def section(tower):
        return {
            "hidden_size": tower.width,
            "num_attention_heads": tower.heads,
            "num_hidden_layers": tower.depth,
            "intermediate_size": 4 * tower.width,
        }

    stored = {
        "model_type": name.partition("_")[0].rstrip("2"),
        "projection_dim": want.model.dim,
        "vision_config": section(video) | {"image_size": video.size, "patch_size": video.patch},
        "text_config": section(text) | {"vocab_size": want.text.vocabulary},
    }
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = towers._config(str(tmp_path), None)
    for part in ("video_tower", "text_tower"):
        want[part].weights = str(tmp_path)
        assert config[part] == want[part]
    assert config.model.dim == want.model.dim and config.model.tau_min == want.model.tau_min
    assert config.text.tokenizer_style == want.text.tokenizer_style


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": [1]}, "vision_config must be"),
        ({"vision_config": {"hidden_size": -4}}, "hidden_size must be a number above 0"),
        ({"vision_config": {"hidden_size": 0.5}}, "video_tower.width"),
        ({"vision_config": {"num_hidden_layers": 10**8}}, "video_tower.depth"),
        ({"text_config": {"hidden_act": "softmax"}}, "hidden_act must be one of"),
        ({"projection_dim": "x"}, "model.dim"),
    ],
)
def test_wrong_config_of_hugging_face_is_an_error(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | change))
    with pytest.raises(UserError, match=message):
        coco_jax.load(tmp_path)
