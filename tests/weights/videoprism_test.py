"""Tests of VideoPrism against the published names and shapes, and against the port in `transformers`.

The published weights are not available to the tests. Instead, a randomly initialised model of
`transformers` is stored under the names of the published .npz.
"""

import numpy as np
import pytest

from coco_jax import presets, weights
from tests.helpers import towers

torch = pytest.importorskip("torch")


def small(config):
    """A small VideoPrism."""
    presets.apply(config, "videoprism_base")
    config.video_tower.update(
        frames=4, size=32, patch=8, width=48, heads=4, depth=3, temporal_depth=2, auxiliary_depth=1
    )
    config.text.update(length=10, vocabulary=99)
    config.text_tower.update(width=48, heads=4, depth=2)
    config.model.dim = 48


def published(config, make):
    """All tensors of the published .npz, each made by `make(name, *shape)`; layers are stacked."""
    found = {}

    def put(name, *shape):
        found[f"params/{name}"] = make(name, *shape)

    def attention(name, width, heads, each, stack=()):
        for part in ("query", "key", "value"):
            put(f"{name}/{part}/w", *stack, width, heads, each)
            put(f"{name}/{part}/b", *stack, heads, each)
        put(f"{name}/post/w", *stack, width, heads, each)
        put(f"{name}/post/b", *stack, width)

    def norm(name, width, stack=()):
        put(f"{name}/scale", *stack, width)
        put(f"{name}/bias", *stack, width)

    def layers(name, tower, depth):
        width, stack = tower.width, (depth,)
        norm(f"{name}/x_layers/layer_norm", width, stack)
        each = width // tower.heads
        attention(f"{name}/x_layers/self_attention", width, tower.heads, each, stack)
        norm(f"{name}/x_layers/ff_layer/layer_norm", width, stack)
        for layer, sizes in (
            ("ffn_layer1", (width, 4 * width)),
            ("ffn_layer2", (4 * width, width)),
        ):
            put(f"{name}/x_layers/ff_layer/{layer}/linear/kernel", *stack, *sizes)
            put(f"{name}/x_layers/ff_layer/{layer}/linear/bias", *stack, sizes[1])

    video, text = config.video_tower, config.text_tower
    see, pool = "vision_encoder", "contrastive_vision_pooler"
    put(f"{see}/patch_projection/linear/kernel", video.patch**2 * 3, video.width)
    put(f"{see}/patch_projection/linear/bias", video.width)
    put(f"{see}/spatial_pos_emb/emb_var", (video.size // video.patch) ** 2, video.width)
    put(f"{see}/temporal_pos_emb/emb_var", video.frames, video.width)
    layers(f"{see}/spatial_encoder/transformers_stack", video, video.depth)
    layers(f"{see}/temporal_encoder/transformers_stack", video, video.temporal_depth)
    norm(f"{see}/spatial_ln", video.width)
    norm(f"{see}/temporal_ln", video.width)
    layers("auxiliary_encoder/transformers_stack", video, video.auxiliary_depth)
    each = 4 * video.width // video.heads
    put(f"{pool}/pooling_attention_query", 1, video.width)
    attention(f"{pool}/pooling_attention", video.width, video.heads, each)
    put(f"{pool}/pooling_attention/per_dim_scale/per_dim_scale", each)
    norm(f"{pool}/pooling_attention_layer_norm", video.width)
    put("text_encoder/token_emb/emb_var", config.text.vocabulary, text.width)
    put("text_encoder/cls_emb", 1, 1, text.width)
    layers("text_encoder/unimodal_transformer", text, text.depth)
    norm("text_encoder/unimodal_ln", text.width)
    return found


def test_published_base_size_shapes_fill_both_towers(tmp_path):
    """`fill` raises if a tensor is not used or a parameter gets no value."""
    path = tmp_path / "videoprism.npz"
    config = towers.make_config("videoprism_base", path)
    config.video_tower.frames = 16
    tensors = published(config, lambda name, *shape: np.zeros(shape, np.float32))
    shapes = towers.shapes_of(config)[-1]
    filled = {}
    for part in ("video", "text"):
        filled |= weights.fill(weights.videoprism.LVT, part, tensors, shapes, "base", True)
    assert set(shapes) - set(filled) == {"log_tau"}
    count = sum(x.size for x in tensors.values())
    # The published counts of parameters: 114 M without the text encoder, 248 M with it, of which
    # 25 M are the token embedding of 32,000.
    assert 240e6 < count < 256e6, count


def from_transformers(reference, config):
    """The tensors of `transformers`' model under the published names."""
    state = {name: x.detach().numpy() for name, x in reference.state_dict().items()}
    video, text = config.video_tower, config.text_tower

    def layer(where, width, heads):
        each = width // heads

        def inward(name):
            return (
                state[f"{where}.{name}.weight"].T.reshape(width, heads, each),
                state[f"{where}.{name}.bias"].reshape(heads, each),
            )

        found = {}
        for part, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            w, b = inward(f"attention.{theirs}")
            found |= {f"self_attention/{part}/w": w, f"self_attention/{part}/b": b}
        post = state[f"{where}.attention.o_proj.weight"].reshape(width, heads, each)
        return found | {
            "self_attention/post/w": post,
            "self_attention/post/b": state[f"{where}.attention.o_proj.bias"],
            "layer_norm/scale": state[f"{where}.layernorm_before.weight"],
            "layer_norm/bias": state[f"{where}.layernorm_before.bias"],
            "ff_layer/layer_norm/scale": state[f"{where}.layernorm_after.weight"],
            "ff_layer/layer_norm/bias": state[f"{where}.layernorm_after.bias"],
            "ff_layer/ffn_layer1/linear/kernel": state[f"{where}.mlp.fc1.weight"].T,
            "ff_layer/ffn_layer1/linear/bias": state[f"{where}.mlp.fc1.bias"],
            "ff_layer/ffn_layer2/linear/kernel": state[f"{where}.mlp.fc2.weight"].T,
            "ff_layer/ffn_layer2/linear/bias": state[f"{where}.mlp.fc2.bias"],
        }

    def layers(where, tower, depth):
        each = [layer(f"{where}.{i}", tower.width, tower.heads) for i in range(depth)]
        return {name: np.stack([one[name] for one in each]) for name in each[0]}

    see, head = "video_model.vision_model", "video_model.head"
    patch = state[f"{see}.spatial_embeddings.patch_embeddings.projection.weight"][:, :, 0]
    found = {
        "vision_encoder/patch_projection/linear/kernel":
            patch.transpose(2, 3, 1, 0).reshape(-1, video.width),
        "vision_encoder/patch_projection/linear/bias":
            state[f"{see}.spatial_embeddings.patch_embeddings.projection.bias"],
        "vision_encoder/spatial_pos_emb/emb_var":
            state[f"{see}.spatial_embeddings.position_embeddings"][0],
        "vision_encoder/temporal_pos_emb/emb_var":
            state[f"{see}.temporal_embeddings.position_embeddings"][0],
        "contrastive_vision_pooler/pooling_attention_query":
            state[f"{head}.pooling_attention_query"][0],
        "contrastive_vision_pooler/pooling_attention/per_dim_scale/per_dim_scale":
            state[f"{head}.per_dim_scale"],
        "text_encoder/token_emb/emb_var": state["text_model.embeddings.token_embedding.weight"],
        "text_encoder/cls_emb":
            state["text_model.embeddings.cls_emb"].reshape(1, 1, text.width),
    }  # fmt: skip
    for name, theirs in (
        ("vision_encoder/spatial_ln", f"{see}.layernorm1"),
        ("vision_encoder/temporal_ln", f"{see}.layernorm2"),
        ("contrastive_vision_pooler/pooling_attention_layer_norm", "video_model.head_layernorm"),
        ("text_encoder/unimodal_ln", "text_model.layernorm"),
    ):
        found |= {
            f"{name}/scale": state[f"{theirs}.weight"],
            f"{name}/bias": state[f"{theirs}.bias"],
        }
    each = 4 * video.width // video.heads
    for part, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        w = state[f"{head}.{theirs}.weight"].T.reshape(video.width, video.heads, each)
        found[f"contrastive_vision_pooler/pooling_attention/{part}/w"] = w
        b = state[f"{head}.{theirs}.bias"].reshape(video.heads, each)
        found[f"contrastive_vision_pooler/pooling_attention/{part}/b"] = b
    post = state[f"{head}.o_proj.weight"].reshape(video.width, video.heads, each)
    found["contrastive_vision_pooler/pooling_attention/post/w"] = post
    found["contrastive_vision_pooler/pooling_attention/post/b"] = state[f"{head}.o_proj.bias"]
    for name, theirs, tower, depth in (
        ("vision_encoder/spatial_encoder/transformers_stack", f"{see}.spatial_layers", video, 3),
        ("vision_encoder/temporal_encoder/transformers_stack", f"{see}.temporal_layers", video, 2),
        ("auxiliary_encoder/transformers_stack", "video_model.auxiliary_layers", video, 1),
        ("text_encoder/unimodal_transformer", "text_model.layers", text, 2),
    ):
        for tail, value in layers(theirs, tower, depth).items():
            found[f"{name}/x_layers/{tail}"] = value
    return {f"params/{name}": np.ascontiguousarray(x) for name, x in found.items()}


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    from transformers import VideoPrismClipModel, VideoPrismConfig

    path = tmp_path_factory.mktemp("videoprism") / "videoprism.npz"
    config = towers.make_config(small, path)
    config.video_tower.frames = 4
    torch.manual_seed(0)
    same = dict(
        hidden_size=48,
        num_attention_heads=4,
        intermediate_size=192,
        apply_l2norm=False,
        # Small enough to change the logits of a random model.
        attn_logit_softcapping=0.5,
    )
    reference = VideoPrismClipModel(
        VideoPrismConfig(
            vision_config=dict(
                image_size=32, num_frames=4, tubelet_size=(1, 8, 8), num_spatial_layers=3,
                num_temporal_layers=2, num_auxiliary_layers=1, **same,
            ),
            text_config=dict(
                vocab_size=99, num_hidden_layers=2, max_position_embeddings=10, **same
            ),
        )
    ).eval()  # fmt: skip
    config.video_tower.attention_logit_cap = config.text_tower.attention_logit_cap = 0.5
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        # The original's wavelengths end at 10,000 exactly; transformers stores them with the
        # weights and starts with slightly other ones.
        angles = np.arange(10)[:, None] / 10_000 ** (np.arange(24) / 23)
        places = torch.tensor(np.concatenate([np.sin(angles), np.cos(angles)], 1))
        reference.text_model.embeddings.position_embedding.copy_(places)
    tensors = from_transformers(reference, config)
    expected = published(config, lambda name, *shape: shape)
    assert {name: x.shape for name, x in tensors.items()} == expected
    np.savez(path, **tensors)
    return config, reference


def test_video_tower_equals_transformers(little):
    config, reference = little
    model = towers.load(config)
    video = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        want = reference.get_video_features(
            torch.tensor(video.transpose(0, 1, 4, 2, 3).copy())
        ).pooler_output.reshape(2, -1)
    assert towers.distance(towers.videos_of(model, video), want) < 1e-5


def test_text_tower_equals_transformers(little):
    config, reference = little
    model, rng = towers.load(config), np.random.default_rng(0)
    ids = rng.integers(1, 99, (5, 10))
    ids[np.arange(10) >= rng.integers(2, 10, 5)[:, None]] = 0
    with torch.no_grad():
        tensor = torch.tensor(ids)
        want = reference.get_text_features(tensor, attention_mask=(tensor != 0).long())
    assert towers.distance(towers.texts_of(model, ids), want.pooler_output) < 1e-5


def test_other_resolutions_and_frame_counts_equal_transformers(little):
    config, reference = little
    for frames, size in ((6, 24),):
        other = config.copy_and_resolve_references()
        other.video_tower.update(frames=frames, size=size)
        rng = np.random.default_rng(0)
        video = rng.normal(size=(1, frames, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            want = reference.get_video_features(
                torch.tensor(video.transpose(0, 1, 4, 2, 3).copy()), interpolate_pos_encoding=True
            ).pooler_output.reshape(1, -1)
        got = towers.videos_of(towers.load(other), video)
        assert towers.distance(got, want) < 1e-5, (frames, size)
