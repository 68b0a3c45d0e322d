"""Tests that embeddings and gradients of CLIP equal `transformers` and `open_clip`."""

import numpy as np
import pytest

from coco_jax import presets
from coco_jax.weights import clip
from tests.helpers import towers

torch = pytest.importorskip("torch")

EOS = 49_407


def small(config):
    """A small CLIP."""
    presets.apply(config, "clip_b16")
    config.video_tower.update(size=32, patch=8, width=48, heads=4, depth=3)
    config.text.update(length=12, vocabulary=99)
    config.text_tower.update(width=32, heads=2, depth=2)
    config.model.dim = 24


def texts(rng, vocabulary=99, length=12, count=5):
    """Random token ids of different lengths; id 0 is an ordinary token, the end token occurs once."""
    ids = np.full((count, length), vocabulary - 1)
    for row in ids:
        end = rng.integers(3, length - 1)
        row[:end] = rng.integers(0, vocabulary - 2, end)
        row[0] = vocabulary - 2
    ids[0, 1] = 0
    return ids


def hugging_face(config, folder, noise=0.02):
    """A random `transformers` CLIP of the config's size, saved with `save_pretrained`."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    video, text = config.video_tower, config.text_tower
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config.model.dim,
            vision_config=dict(
                hidden_size=video.width, num_attention_heads=video.heads, image_size=video.size,
                num_hidden_layers=video.depth, patch_size=video.patch,
                intermediate_size=int(video.width * 4),
            ),
            text_config=dict(
                hidden_size=text.width, num_attention_heads=text.heads,
                num_hidden_layers=text.depth, vocab_size=config.text.vocabulary,
                max_position_embeddings=config.text.length, intermediate_size=int(text.width * 4),
                eos_token_id=config.text.vocabulary - 1, bos_token_id=config.text.vocabulary - 2,
            ),
        )
    ).eval()  # fmt: skip
    if noise:  # no parameter is exactly zero or one, as after training
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def hf_videos(model, frames, **kwargs):
    return model.get_image_features(torch.from_numpy(frames), **kwargs).pooler_output


def hf_texts(model, ids):
    return model.get_text_features(torch.from_numpy(ids)).pooler_output


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    config = towers.make_config(small, folder)
    return config, hugging_face(config, folder)


def test_embeddings_and_gradients_equal_transformers(little):
    config, reference = little
    model, rng = towers.load(config), np.random.default_rng(0)
    video, frames = towers.clip_of(rng)
    ids = texts(rng)
    shapes = towers.shapes_of(config)[-1]
    for part, ours, inputs, theirs in (
        ("video", towers.videos_of, video, lambda: hf_videos(reference, frames)),
        ("text", towers.texts_of, ids, lambda: hf_texts(reference, ids)),
    ):
        reference.zero_grad()
        want = theirs()
        want = want.reshape(2, 2, -1).mean(1) if part == "video" else want
        direction = rng.normal(size=want.shape).astype(np.float32)
        (want * torch.from_numpy(direction)).sum().backward()
        wanted = towers.reference_gradients(reference, clip.HUGGING_FACE, part, shapes)
        got, gradients = towers.embeddings_and_gradients(model, ours, inputs, direction)
        assert towers.distance(got, want.detach()) < 1e-5
        towers.compare_gradients(gradients, wanted)


REAL = ["clip_b32", "clip_b16"]


def real_size(config, preset):
    """The preset's size except for the vocabulary, and for layers that other tests also compare."""
    config.text.vocabulary = 1000
    config.text_tower.depth = 2
    if preset != "clip_b32":  # which has all its layers
        config.video_tower.depth = 2


def compare(config, model, reference, table, videos_of, texts_of, *, video, frames, ids):
    """Compares embeddings and gradients of both towers with a reference's functions."""
    rng, shapes = np.random.default_rng(2), towers.shapes_of(config)[-1]
    for part, ours, inputs, theirs, given in (
        ("video", towers.videos_of, video, videos_of, frames),
        ("text", towers.texts_of, ids, texts_of, ids),
    ):
        reference.zero_grad()
        want = theirs(torch.tensor(given))
        if part == "video":
            want = want.reshape(*video.shape[:2], -1).mean(1)
        direction = rng.normal(size=want.shape).astype(np.float32)
        (want * torch.from_numpy(direction)).sum().backward()
        wanted = towers.reference_gradients(reference, table, part, shapes)
        got, gradients = towers.embeddings_and_gradients(model, ours, inputs, direction)
        assert towers.distance(got, want.detach()) < 1e-5
        towers.compare_gradients(gradients, wanted)


@pytest.mark.parametrize("preset", REAL)
def test_full_size_models_equal_transformers(preset, tmp_path):
    config = towers.make_config(preset, tmp_path)
    real_size(config, preset)
    reference = hugging_face(config, tmp_path, noise=0)
    model, rng = towers.load(config), np.random.default_rng(1)
    video, frames = towers.clip_of(rng, 1, 1, 224)
    compare(
        config, model, reference, clip.HUGGING_FACE,
        lambda x: reference.get_image_features(x).pooler_output,
        lambda x: reference.get_text_features(x).pooler_output,
        video=video, frames=frames, ids=texts(rng, 1000, 77, 2),
    )  # fmt: skip
    tau = np.exp(-reference.logit_scale.item())
    np.testing.assert_allclose(np.exp(model.log_tau[...]), tau, rtol=1e-6)


@pytest.mark.parametrize("preset", [small, *REAL])
def test_open_clip_checkpoint_equals_open_clip(preset, tmp_path):
    """open_clip has other names, one matrix for queries, keys and values, exact GELU, padding with 0."""
    import open_clip
    from safetensors.torch import save_file

    config = towers.make_config(preset, tmp_path / "open_clip_model.safetensors")
    if preset is not small:
        real_size(config, preset)
    config.video_tower.activation = config.text_tower.activation = "gelu"
    torch.manual_seed(0)
    video, text = config.video_tower, config.text_tower
    reference = open_clip.model.CLIP(
        embed_dim=config.model.dim,
        vision_cfg=dict(
            image_size=video.size, layers=video.depth, width=video.width,
            head_width=video.width // video.heads, patch_size=video.patch,
        ),
        text_cfg=dict(
            context_length=config.text.length, vocab_size=config.text.vocabulary,
            width=text.width, heads=text.heads, layers=text.depth,
        ),
    ).eval()  # fmt: skip
    save_file(reference.state_dict(), tmp_path / "open_clip_model.safetensors")
    model, rng = towers.load(config), np.random.default_rng(0)
    if preset is small:
        (video, frames), ids = towers.clip_of(rng), texts(rng)
    else:
        (video, frames), ids = towers.clip_of(rng, 1, 1, 224), texts(rng, 1000, 77, 2)
    ids[np.arange(ids.shape[1]) > ids.argmax(1)[:, None]] = 0  # open_clip pads with 0
    compare(
        config, model, reference, clip.OPEN_CLIP, reference.encode_image, reference.encode_text,
        video=video, frames=frames, ids=ids,
    )  # fmt: skip


@pytest.mark.parametrize("size", [24, 40, 64])
def test_positions_of_other_resolutions_equal_transformers(little, size):
    config, reference = little
    other = config.copy_and_resolve_references()
    other.video_tower.size = size
    video, frames = towers.clip_of(np.random.default_rng(2), 1, 1, size)
    with torch.no_grad():
        want = hf_videos(reference, frames, interpolate_pos_encoding=True)
    assert towers.distance(towers.videos_of(towers.load(other), video), want) < 1e-5


def test_temperature_is_loaded_only_with_both_towers(little):
    config, reference = little
    alone = config.copy_and_resolve_references()
    alone.video_tower.weights = ""
    assert towers.load(alone).log_tau[...] == 0
    assert towers.load(config).log_tau[...] == pytest.approx(-reference.logit_scale.item())
