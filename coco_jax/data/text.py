"""Texts to token ids: a sentencepiece model trained on the corpus, cached by what it was fed."""

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from jaxtyping import Int

from coco_jax.errors import UserError

PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3


class Tokenizer:
    """Text to `length` ids: pieces, an end mark, then padding (0). Text is lower-cased."""

    def __init__(self, model: bytes, length: int):
        self.model, self.length = model, length
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self._pieces.vocab_size()

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
        """Encodes texts as int32 ids; longer ones are cut, their end mark kept."""
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
    """The tokenizer of these texts, from `folder` where an earlier run left it."""
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
    with contextlib.suppress(OSError):  # a data folder that is shared and read-only has no cache
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(model)
        partial.replace(path)  # whole or not there, whoever else trains the same one
    return Tokenizer(model, length)


def load_tokenizer(path: pathlib.Path, length: int) -> Tokenizer:
    """Reads a tokenizer that a run stored.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        return Tokenizer(path.read_bytes(), length)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: no usable tokenizer ({error}); point at a run's folder"
        ) from error
