"""Tests that PE-Core equals timm's image tower and open_clip's text tower, in both formats of files."""

import pickle
import random
import tracemalloc
import zipfile

import numpy as np
import pytest

from coco_jax import presets
from coco_jax.errors import UserError
from coco_jax.weights import files, pe
from coco_jax.weights.table import fill
from tests.helpers import hostile, towers
from tests.weights.clip_test import compare, texts

torch = pytest.importorskip("torch")

MODELS = {  # our preset: open_clip's model, timm's image tower
    "pe_core_t16": ("PE-Core-T-16-384", "vit_pe_core_tiny_patch16_384"),
    "pe_core_s16": ("PE-Core-S-16-384", "vit_pe_core_small_patch16_384"),
    "pe_core_b16": ("PE-Core-B-16", "vit_pe_core_base_patch16_224"),
    "pe_core_l14": ("PE-Core-L-14-336", "vit_pe_core_large_patch14_336"),
    "pe_core_g14": ("PE-Core-bigG-14-448", "vit_pe_core_gigantic_patch14_448"),
}
FILE = "open_clip_model.safetensors"


def small(preset):
    """A small model. G/14's preset has no class token and an MLP of another ratio than its pool's."""

    def change(config):
        presets.apply(config, preset)
        config.video_tower.update(size=32, patch=8, width=48, heads=4, depth=3)
        config.text.update(length=12, vocabulary=99)
        config.text_tower.update(width=32, heads=2, depth=2)
        config.model.dim = 24

    return change


class Reference(torch.nn.Module):
    """A random model of the config's size; its modules have open_clip's names."""

    def __init__(self, preset, config, noise=0.1):
        import timm
        from open_clip.transformer import TextTransformer

        super().__init__()
        torch.manual_seed(0)
        video, text = config.video_tower, config.text_tower
        side = video.size // video.patch
        self.visual = torch.nn.Module()
        # Positions count patches, as in PE; by default timm rescales them if the size is changed.
        self.visual.trunk = timm.create_model(
            MODELS[preset][1], img_size=video.size, patch_size=video.patch, embed_dim=video.width,
            depth=video.depth, num_heads=video.heads, mlp_ratio=video.mlp_ratio,
            num_classes=config.model.dim, ref_feat_shape=(side, side),
        )  # fmt: skip
        self.visual.trunk.head.bias.requires_grad_(False)  # zero: PE has none
        self.text = TextTransformer(
            context_length=config.text.length, vocab_size=config.text.vocabulary,
            width=text.width, heads=text.heads, layers=text.depth, output_dim=config.model.dim,
        )  # fmt: skip
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.requires_grad:
                    parameter.add_(noise * torch.randn_like(parameter))
        self.eval()

    def save(self, path):
        from safetensors.torch import save_file

        save_file(self.state_dict(), path)


@pytest.mark.parametrize("preset", ["pe_core_b16", "pe_core_g14"])
def test_embeddings_and_gradients_equal_timm_and_open_clip(preset, tmp_path):
    config = towers.make_config(small(preset), tmp_path)
    reference = Reference(preset, config)
    reference.save(tmp_path / FILE)
    model, rng = towers.load(config), np.random.default_rng(0)
    video, frames = towers.clip_of(rng)
    compare(
        config, model, reference, pe.OPEN_CLIP, reference.visual.trunk, reference.text,
        video=video, frames=frames, ids=texts(rng),
    )  # fmt: skip
    assert model.log_tau[...] == -reference.logit_scale.item()


def test_full_size_image_tower_equals_timm(tmp_path):
    """B/16; of the text tower, whose layers the test before compared, one layer."""
    changes = dict(text__vocabulary=1000, text_tower__depth=1)
    config = towers.make_config("pe_core_b16", tmp_path, **changes)
    reference = Reference("pe_core_b16", config, noise=0)
    reference.save(tmp_path / FILE)
    model, rng = towers.load(config), np.random.default_rng(1)
    video, frames = towers.clip_of(rng, 1, 1, 224)
    compare(
        config, model, reference, pe.OPEN_CLIP, reference.visual.trunk, reference.text,
        video=video, frames=frames, ids=texts(rng, 1000, 32, 2),
    )  # fmt: skip


@pytest.mark.parametrize("preset", MODELS)
def test_presets_have_the_shapes_of_open_clip(preset):
    """Every tensor of the whole model is used, and fills a parameter of its shape.

    No tensor has memory. All layers of a tower have the same shapes, so two of ours are compared.
    """
    import open_clip

    settings = open_clip.get_model_config(MODELS[preset][0])
    assert settings.pop("custom_text")
    with torch.device("meta"):
        reference = open_clip.model.CustomTextCLIP(**settings)
    config = towers.make_config(preset)
    video, text = config.video_tower, config.text_tower
    trunk, blocks = reference.visual.trunk, reference.text.transformer.resblocks
    assert video.size == reference.visual.image_size[0]
    assert video.pool_heads == trunk.attn_pool.num_heads
    assert (video.depth, video.heads) == (len(trunk.blocks), trunk.blocks[0].attn.num_heads)
    assert (text.depth, text.heads) == (len(blocks), blocks[0].attn.num_heads)
    for layer in range(1, video.depth):
        assert shapes_in(trunk.blocks[layer]) == shapes_in(trunk.blocks[0])
    for layer in range(1, text.depth):
        assert shapes_in(blocks[layer]) == shapes_in(blocks[0])
    video.depth = text.depth = 2
    del trunk.blocks[2:], blocks[2:]
    tensors = {n: np.broadcast_to(np.float32(0), x) for n, x in shapes_in(reference).items()}
    shapes = towers.shapes_of(config)[-1]
    for part in ("video", "text"):
        filled = fill(pe.OPEN_CLIP, part, tensors, shapes, preset, True)
        assert {name for name in shapes if name.startswith(part)} <= set(filled)


def shapes_in(module):
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def authors_tensors(config):
    """Random tensors with the names and shapes of PE's code (facebookresearch/perception_models).

    They are large enough for attention that is far from uniform.
    """
    torch.manual_seed(1)
    video, text, found = config.video_tower, config.text_tower, {}

    def put(name, *shape):
        found[name] = 0.2 * torch.randn(shape)

    def norm(name, width):
        put(f"{name}.weight", width)
        found[f"{name}.weight"] += 1
        put(f"{name}.bias", width)

    def attention(name, width):
        put(f"{name}.in_proj_weight", 3 * width, width)
        put(f"{name}.in_proj_bias", 3 * width)
        put(f"{name}.out_proj.weight", width, width)
        put(f"{name}.out_proj.bias", width)

    def mlp(name, width, hidden):
        put(f"{name}.c_fc.weight", hidden, width)
        put(f"{name}.c_fc.bias", hidden)
        put(f"{name}.c_proj.weight", width, hidden)
        put(f"{name}.c_proj.bias", width)

    def layers(name, tower):
        for i in range(tower.depth):
            norm(f"{name}.resblocks.{i}.ln_1", tower.width)
            norm(f"{name}.resblocks.{i}.ln_2", tower.width)
            attention(f"{name}.resblocks.{i}.attn", tower.width)
            mlp(f"{name}.resblocks.{i}.mlp", tower.width, round(tower.width * tower.mlp_ratio))

    if video.class_token:
        put("visual.class_embedding", video.width)
    tokens = (video.size // video.patch) ** 2 + video.class_token
    put("visual.positional_embedding", tokens, video.width)
    put("visual.conv1.weight", video.width, 3, video.patch, video.patch)
    norm("visual.ln_pre", video.width)
    layers("visual.transformer", video)
    norm("visual.ln_post", video.width)
    put("visual.attn_pool.probe", 1, 1, video.width)
    attention("visual.attn_pool.attn", video.width)
    norm("visual.attn_pool.layernorm", video.width)
    mlp("visual.attn_pool.mlp", video.width, 4 * video.width)
    put("visual.proj", video.width, config.model.dim)
    put("token_embedding.weight", config.text.vocabulary, text.width)
    put("positional_embedding", config.text.length, text.width)
    layers("transformer", text)
    norm("ln_final", text.width)
    put("text_projection", text.width, config.model.dim)
    put("logit_scale")
    return found


@pytest.mark.parametrize(("preset", "wrapped"), [("pe_core_b16", False), ("pe_core_g14", True)])
def test_authors_file_equals_its_conversion_by_timm(preset, wrapped, tmp_path):
    from timm.models.eva import checkpoint_filter_fn

    config = towers.make_config(small(preset), tmp_path)
    tensors, reference = authors_tensors(config), Reference(preset, config)
    prefix = "module." if wrapped else ""
    stored = {prefix + name: torch.nn.Parameter(x) for name, x in tensors.items()}
    torch.save({"state_dict": stored} if wrapped else stored, tmp_path / "PE-Core-B16-224.pt")
    trunk = reference.visual.trunk
    trunk.load_state_dict(checkpoint_filter_fn(tensors, trunk))
    reference.text.load_state_dict(
        {n: x for n, x in tensors.items() if not n.startswith(("visual.", "logit_scale"))}
    )
    model, rng = towers.load(config), np.random.default_rng(0)
    (video, frames), ids = towers.clip_of(rng), texts(rng)
    with torch.no_grad():
        want = trunk(torch.tensor(frames)).reshape(2, 2, -1).mean(1)
        assert towers.distance(towers.videos_of(model, video), want) < 1e-5
        want = reference.text(torch.tensor(ids))
        assert towers.distance(towers.texts_of(model, ids), want) < 1e-5
    assert model.log_tau[...] == -tensors["logit_scale"].item()


@pytest.mark.parametrize(("preset", "size"), [("pe_core_b16", 24), ("pe_core_g14", 48)])
def test_positions_of_other_resolutions_are_those_of_pe(preset, size, tmp_path):
    """Learned positions are resized linearly; rotary positions go on counting patches."""
    config = towers.make_config(small(preset), tmp_path)
    reference = Reference(preset, config)
    reference.save(tmp_path / FILE)
    tensors = reference.state_dict()
    other = config.copy_and_resolve_references()
    other.video_tower.size = size
    position = tensors["visual.trunk.pos_embed"]
    first = int(config.video_tower.class_token)
    grid = position[:, first:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(size // 8, size // 8), mode="bilinear")
    resized = resized.permute(0, 2, 3, 1).flatten(1, 2)
    tensors["visual.trunk.pos_embed"] = torch.cat([position[:, :first], resized], 1)
    reference = Reference(preset, other)
    reference.load_state_dict(tensors)
    video, frames = towers.clip_of(np.random.default_rng(2), 1, 1, size)
    with torch.no_grad():
        want = reference.visual.trunk(torch.tensor(frames))
    assert towers.distance(towers.videos_of(towers.load(other), video), want) < 1e-5


def test_checkpoint_of_another_kind_raises_user_error(tmp_path):
    config = towers.make_config(small("pe_core_b16"), tmp_path)
    reference = Reference("pe_core_b16", config)
    reference.save(tmp_path / FILE)
    config.video_tower.class_token = False
    with pytest.raises(UserError, match=r"config\.video_tower\.class_token=True"):
        towers.load(config)
    config.video_tower.class_token = True
    with torch.no_grad():
        reference.visual.trunk.head.bias.add_(0.1)
    reference.save(tmp_path / FILE)
    with pytest.raises(UserError, match="has a bias other than zero"):
        towers.load(config)


def test_torch_file_without_torch_equals_torch(tmp_path):
    """Other dtypes, views of one storage, transposed tensors."""
    path, x = tmp_path / files.PE_CORE[0], torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": x, "part": x[1:, 2:], "transposed": x.T, "scalar": x[2, 3],
        "half": x.half(), "bfloat16": x.bfloat16(),
    }  # fmt: skip
    torch.save(tensors, path)
    got = files.read(path)
    assert got.keys() == tensors.keys()
    for name, want in tensors.items():
        np.testing.assert_array_equal(got[name], want.float().numpy())


class Evil:
    def __reduce__(self):
        return print, ("code that must not run",)


@pytest.mark.parametrize("change", ["code", "outside", "number", "cut"])
def test_torch_file_with_more_than_tensors_raises_user_error(tmp_path, capsys, change):
    path = tmp_path / files.PE_CORE[0]
    content = {"code": Evil(), "number": 3}.get(change, torch.ones(4))
    torch.save({"x": content}, path)
    if change == "outside":  # the tensor's shape is larger than its storage
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                # (4,) -> (200,): the opcode BININT1, the number, then TUPLE1.
                changed = data.replace(b"K\x04\x85", b"K\xc8\x85")
                assert changed != data or not name.endswith("data.pkl")
                archive.writestr(name, changed)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged, or contains more than tensors"):
        files.read(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("seed", range(16))
def test_hostile_torch_file_raises_user_error_without_much_memory(tmp_path, seed):
    """Tensors larger than their values, in one or together; names that are replaced; code."""
    path = hostile.odd_torch_file(random.Random(seed), tmp_path, tmp_path)
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged, or contains more than tensors") as error:
        files.read(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert "\n" not in str(error.value) and not (tmp_path / "executed").exists()


def test_only_pe_core_files_are_read_as_torch_files(tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="a pickle"):
        files.read(path)
