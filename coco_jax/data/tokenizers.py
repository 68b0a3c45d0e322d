"""Tokenizers: a sentencepiece model trained on the corpus, or that of a published tower."""

import hashlib
import io
import pathlib
import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece
from jaxtyping import Int

from coco_jax.errors import UserError
from coco_jax.files import read_bytes, store
from coco_jax.weights.files import locate

PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3
MAX_FILE = 64 << 20  # bytes of a tokenizer; that of SigLIP 2, with 256,000 pieces, has 34 MB


class Tokenizer:
    """Encodes a lower-cased text as `length` ids: pieces, an end mark, then padding (0)."""

    def __init__(self, model: bytes, length: int):
        """Reads the bytes of a sentencepiece model.

        Raises:
          ValueError: there are none.
          RuntimeError: they are not a sentencepiece model.
        """
        if not model:
            raise ValueError("the file is empty")
        self.model, self.length = model, length
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self._pieces.vocab_size()

    def unknown_texts(self, texts: Sequence[str]) -> list[str]:
        """The texts of which the tokenizer knows no piece; all of them would have the same ids."""
        unknown = self._pieces.unk_id()
        encoded = zip(texts, self._pieces.encode(list(texts)), strict=True)
        blank = self._pieces.encode("")
        space = {piece for piece in range(self.size) if self._pieces.id_to_piece(piece) == "▁"}
        return [t for t, ids in encoded if not set(ids) - {unknown, *blank} - space]

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
        """Encodes texts as int32 ids; longer texts are truncated before the end mark."""
        ids_NL = np.full((len(texts), self.length), PAD, np.int32)
        for row, pieces in zip(ids_NL, self._pieces.encode(list(texts)), strict=True):
            pieces = [*pieces[: self.length - 1], END]
            row[: len(pieces)] = pieces
        return ids_NL


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> bytes:
    """Trains a unigram model of at most `vocabulary` pieces; the same texts give the same bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        byte_fallback=False,
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        input_sentence_size=1_000_000,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def cached_tokenizer(texts: Sequence[str], vocabulary: int, length: int, folder: str) -> Tokenizer:
    """The tokenizer trained on these texts; read from `folder` if an earlier run stored it there."""
    digest = hashlib.sha256(str(vocabulary).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    path = pathlib.Path(folder) / f"{digest.hexdigest()[:16]}.model"
    if path.exists():
        return Tokenizer(path.read_bytes(), length)
    try:
        model = train_tokenizer(texts, vocabulary)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.text.vocabulary: {vocabulary} pieces do not fit these texts ({reason})"
        ) from error
    store(path, model)
    return Tokenizer(model, length)


def _without_punctuation(text: str) -> str:
    """SigLIP's cleaning: lower case, no punctuation, single spaces."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def _with_a_period(text: str) -> str:
    """VideoPrism's cleaning: lower case, spaces for punctuation, single spaces, a period."""
    blank = str.maketrans(string.punctuation, " " * len(string.punctuation))
    return " ".join(text.translate(blank).lower().split()) + "."


class Style(NamedTuple):
    """How the tokenizer of a published tower encodes a text."""

    files: tuple[str, ...]  # names in a folder or repository; the first that exists is used
    marks: bool = False  # the tokenizer itself adds begin and end marks
    clean: Callable[[str], str] = str
    lower: bool = False  # convert to lower case
    begin: bool = False  # add the begin mark of the model, if it has one
    end: int | None = None  # id of the end mark to add
    pad: int | str = PAD  # id or token for padding


STYLES = {
    "own": Style(("tokenizer.model",), end=END),
    "clip": Style(("tokenizer.json",), marks=True, pad="<|endoftext|>"),
    "bert": Style(("tokenizer.json",), marks=True),
    "siglip": Style(
        ("spiece.model", "sentencepiece.model"), clean=_without_punctuation, end=1, pad=1
    ),
    "siglip2": Style(("tokenizer.json", "tokenizer.model"), lower=True, end=1),
    "videoprism": Style(("sentencepiece.model",), clean=_with_a_period, begin=True),
}


class PublishedTokenizer(Tokenizer):
    """A published tower's tokenizer: Hugging Face's tokenizer.json, or a sentencepiece model."""

    def __init__(self, model: bytes, length: int, style: str):
        """Reads the bytes of the file.

        Raises:
          ValueError: they are not a tokenizer, or not one of this style.
          RuntimeError: they are not a sentencepiece model.
        """
        self.style = STYLES[style]
        pad, self.begin = self.style.pad, []
        if model.lstrip()[:1] != b"{":
            super().__init__(model, length)
            if not isinstance(pad, int):
                raise ValueError(f"{style!r} needs a tokenizer.json")
            self.pad = pad
            if self.style.begin and self._pieces.bos_id() >= 0:
                self.begin = [self._pieces.bos_id()]
            return
        import tokenizers

        self.model, self.length = model, length
        try:
            self._json = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises plain Exception
            raise ValueError(str(error)) from error
        self._json.no_padding()
        self._json.no_truncation()
        if self.style.lower:  # in its normalizer, which does not change special tokens in a text
            steps = [tokenizers.normalizers.Lowercase(), self._json.normalizer]
            self._json.normalizer = tokenizers.normalizers.Sequence([one for one in steps if one])
        if self.style.marks:
            self._json.enable_truncation(length)
        found = pad if isinstance(pad, int) else self._json.token_to_id(pad)
        if found is None:
            raise ValueError(f"it has no {pad!r}, which {style!r} pads with")
        self.pad = found

    @property
    def size(self) -> int:
        """How many ids there are."""
        if hasattr(self, "_json"):
            return self._json.get_vocab_size(with_added_tokens=True)
        return super().size

    def unknown_texts(self, texts: Sequence[str]) -> list[str]:
        """The texts of which the tokenizer knows no piece; [] if it falls back to bytes."""
        if not hasattr(self, "_json"):
            return super().unknown_texts(texts)
        unknown = getattr(self._json.model, "unk_token", None)
        if unknown is None:
            return []
        encoded = zip(
            texts, self._json.encode_batch(list(texts), add_special_tokens=False), strict=True
        )
        return [text for text, ids in encoded if set(ids.tokens) <= {unknown}]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if hasattr(self, "_json"):
            encoded = self._json.encode_batch(texts, add_special_tokens=self.style.marks)
            return [one.ids for one in encoded]
        return self._pieces.encode([one.lower() for one in texts] if self.style.lower else texts)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
        """Encodes texts as int32 ids; longer texts are truncated, but keep their marks."""
        ids_NL = np.full((len(texts), self.length), self.pad, np.int32)
        end = [] if self.style.end is None else [self.style.end]
        encoded = self._encode([self.style.clean(text) for text in texts])
        for row, ids in zip(ids_NL, encoded, strict=True):
            ids = [*self.begin, *ids][: self.length - len(end)] + end
            row[: len(ids)] = ids
        return ids_NL


def published_tokenizer(where: str, style: str, length: int, vocabulary: int) -> Tokenizer:
    """The tokenizer that `config.text.tokenizer` names.

    Raises:
      UserError: it is missing or damaged, or has more ids than the tower has embeddings.
    """
    path = locate(where, "text.tokenizer", STYLES[style].files)
    tokenizer = load_tokenizer(path, length, style)
    if tokenizer.size > vocabulary:
        raise UserError(
            f"config.text.tokenizer: {path} has {tokenizer.size} ids, and config.text.vocabulary is "
            f"{vocabulary}; use the tokenizer of the text tower"
        )
    return tokenizer


def load_tokenizer(path: pathlib.Path, length: int, style: str = "own") -> Tokenizer:
    """Reads the tokenizer of a run or of a published tower.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        model = read_bytes(path, MAX_FILE)
        return (
            Tokenizer(model, length) if style == "own" else PublishedTokenizer(model, length, style)
        )
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: no usable tokenizer ({reason}); give the folder of a run, or the tokenizer file "
            "of the text tower"
        ) from error
