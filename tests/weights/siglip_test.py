"""Tests that SigLIP equals `transformers`, and big_vision's files equal `open_clip`'s conversion."""

import types

import numpy as np
import pytest

from coco_jax import presets
from coco_jax.weights import siglip
from tests.helpers import towers

torch = pytest.importorskip("torch")


def small(config):
    """A small SigLIP; its mlp_ratio is not an integer, as in So400m."""
    presets.apply(config, "siglip2_b16")
    config.video_tower.update(size=32, patch=8, width=48, heads=4, depth=3, mlp_ratio=100 / 48)
    config.text.update(length=12, vocabulary=99)
    config.text_tower.update(width=48, heads=4, depth=2, mlp_ratio=100 / 48)
    config.model.dim = 48


def hugging_face(config, folder, noise=0.02):
    """A random `transformers` SigLIP of the config's size, saved with `save_pretrained`."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    video, text = config.video_tower, config.text_tower
    same = dict(
        hidden_size=video.width,
        num_attention_heads=video.heads,
        intermediate_size=round(video.width * video.mlp_ratio),
    )
    model = SiglipModel(
        SiglipConfig(
            vision_config=dict(
                image_size=video.size, patch_size=video.patch, num_hidden_layers=video.depth, **same
            ),
            text_config=dict(
                num_hidden_layers=text.depth,
                vocab_size=config.text.vocabulary,
                max_position_embeddings=config.text.length,
                **same,
            ),
        )
    ).eval()
    if noise:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def test_embeddings_and_gradients_equal_transformers(tmp_path):
    config = towers.make_config(small, tmp_path)
    reference = hugging_face(config, tmp_path)
    model, rng = towers.load(config), np.random.default_rng(0)
    video, frames = towers.clip_of(rng)
    ids = rng.integers(0, 99, (5, 12))  # padding is not masked
    shapes = towers.shapes_of(config)[-1]
    for part, ours, inputs, theirs in (
        ("video", towers.videos_of, video,
         lambda: reference.get_image_features(torch.tensor(frames)).pooler_output),
        ("text", towers.texts_of, ids,
         lambda: reference.get_text_features(torch.tensor(ids)).pooler_output),
    ):  # fmt: skip
        reference.zero_grad()
        want = theirs()
        want = want.reshape(2, 2, -1).mean(1) if part == "video" else want
        direction = rng.normal(size=want.shape).astype(np.float32)
        (want * torch.from_numpy(direction)).sum().backward()
        wanted = towers.reference_gradients(reference, siglip.HUGGING_FACE, part, shapes)
        wanted.pop("video_out/kernel", None)  # constant; the reference does not have it
        got, gradients = towers.embeddings_and_gradients(model, ours, inputs, direction)
        assert towers.distance(got, want.detach()) < 1e-5
        towers.compare_gradients(gradients, wanted)
    np.testing.assert_allclose(model.log_tau[...], -reference.logit_scale.item(), rtol=1e-6)


def test_full_size_image_tower_equals_transformers(tmp_path):
    config = towers.make_config("siglip2_b16", tmp_path, text__vocabulary=1000)
    config.text_tower.depth = 2  # of the image tower's layers, which the test before compared
    reference = hugging_face(config, tmp_path, noise=0)
    model, rng = towers.load(config), np.random.default_rng(1)
    video, frames = towers.clip_of(rng, 1, 1, 224)
    ids = rng.integers(0, 1000, (2, 64))
    with torch.no_grad():
        want = reference.get_image_features(torch.tensor(frames)).pooler_output
        assert towers.distance(towers.videos_of(model, video), want) < 1e-5
        want = reference.get_text_features(torch.tensor(ids)).pooler_output
        assert towers.distance(towers.texts_of(model, ids), want) < 1e-5


def big_vision(config, stacked):
    """Random tensors with the names and shapes of big_vision's .npz."""
    rng, found = np.random.default_rng(0), {}

    def put(name, *shape):
        found[name] = (0.1 * rng.normal(size=shape)).astype(np.float32)

    def layer(name, tower, stack=()):
        width, heads, hidden = tower.width, tower.heads, round(tower.width * tower.mlp_ratio)
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            put(f"{name}/{norm}/scale", *stack, width)
            put(f"{name}/{norm}/bias", *stack, width)
        attend(f"{name}/MultiHeadDotProductAttention_0", width, heads, stack)
        mlp(f"{name}/MlpBlock_0", width, hidden, stack)

    def attend(name, width, heads, stack=()):
        for part in ("query", "key", "value"):
            put(f"{name}/{part}/kernel", *stack, width, heads, width // heads)
            put(f"{name}/{part}/bias", *stack, heads, width // heads)
        put(f"{name}/out/kernel", *stack, heads, width // heads, width)
        put(f"{name}/out/bias", *stack, width)

    def mlp(name, width, hidden, stack=()):
        put(f"{name}/Dense_0/kernel", *stack, width, hidden)
        put(f"{name}/Dense_0/bias", *stack, hidden)
        put(f"{name}/Dense_1/kernel", *stack, hidden, width)
        put(f"{name}/Dense_1/bias", *stack, width)

    def layers(name, tower):
        if stacked:
            layer(f"{name}/encoderblock", tower, (tower.depth,))
        else:
            for i in range(tower.depth):
                layer(f"{name}/encoderblock_{i}", tower)
        put(f"{name}/encoder_norm/scale", tower.width)
        put(f"{name}/encoder_norm/bias", tower.width)

    video, text = config.video_tower, config.text_tower
    put("params/img/embedding/kernel", video.patch, video.patch, 3, video.width)
    put("params/img/embedding/bias", video.width)
    put("params/img/pos_embedding", 1, (video.size // video.patch) ** 2, video.width)
    layers("params/img/Transformer", video)
    head = "params/img/MAPHead_0"
    put(f"{head}/probe", 1, 1, video.width)
    attend(f"{head}/MultiHeadDotProductAttention_0", video.width, video.heads)
    put(f"{head}/LayerNorm_0/scale", video.width)
    put(f"{head}/LayerNorm_0/bias", video.width)
    mlp(f"{head}/MlpBlock_0", video.width, round(video.width * video.mlp_ratio))
    put("params/txt/Embed_0/embedding", config.text.vocabulary, text.width)
    put("params/txt/pos_embedding", 1, config.text.length, text.width)
    layers("params/txt/Encoder_0", text)
    put("params/txt/head/kernel", text.width, config.model.dim)
    put("params/txt/head/bias", config.model.dim)
    put("params/t", 1)
    put("params/b", 1)
    return found


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_checkpoint_equals_its_conversion_by_open_clip(tmp_path, stacked):
    import functools

    from open_clip.convert import load_big_vision_weights
    from open_clip.transformer import TextTransformer
    from timm.models.vision_transformer import VisionTransformer

    path = tmp_path / "siglip.npz"
    config = towers.make_config(small, path)
    video, text = config.video_tower, config.text_tower
    np.savez(path, **big_vision(config, stacked))
    gelu = functools.partial(torch.nn.GELU, approximate="tanh")
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    reference = types.SimpleNamespace(
        visual=types.SimpleNamespace(
            trunk=VisionTransformer(
                img_size=video.size, patch_size=video.patch, embed_dim=video.width, norm_layer=norm,
                depth=video.depth, num_heads=video.heads, mlp_ratio=video.mlp_ratio,
                class_token=False, global_pool="map", num_classes=0, act_layer=gelu,
            ).eval()
        ),
        text=TextTransformer(
            context_length=config.text.length, vocab_size=config.text.vocabulary,
            width=text.width, heads=text.heads, layers=text.depth, mlp_ratio=text.mlp_ratio,
            output_dim=config.model.dim, no_causal_mask=True, proj_bias=True, pool_type="last",
            act_layer=gelu, norm_layer=norm,
        ).eval(),
        logit_bias=torch.zeros(()), logit_scale=torch.zeros(()),
    )  # fmt: skip
    load_big_vision_weights(reference, str(path))
    model, rng = towers.load(config), np.random.default_rng(0)
    clips, frames = towers.clip_of(rng, 2, 1)
    ids = rng.integers(0, 99, (5, 12))
    with torch.no_grad():
        want = reference.visual.trunk(torch.tensor(frames))
        assert towers.distance(towers.videos_of(model, clips), want) < 1e-5
        want = reference.text(torch.tensor(ids))
        assert towers.distance(towers.texts_of(model, ids), want) < 1e-5
    np.testing.assert_allclose(model.log_tau[...], -reference.logit_scale.item(), rtol=1e-6)


def test_model_dim_other_than_the_width_raises_user_error(tmp_path):
    from coco_jax.errors import UserError

    path = tmp_path / "siglip.npz"
    config = towers.make_config(small, path)
    np.savez(path, **big_vision(config, True))
    config.model.dim = 32
    with pytest.raises(UserError, match=r"config\.model\.dim must be the tower's width, 48"):
        towers.load(config)
