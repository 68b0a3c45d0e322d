"""MPNet (arXiv 2004.09297) checkpoints of Hugging Face and sentence-transformers.

A text's vector is the mean over its tokens, as in sentence-transformers. MPNet's tokenizer pads with 1,
and starts a text with the token 0. Ours pads with 0: the tower masks all zeros but the first.
"""

import numpy as np

from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import (
    Shape,
    from_heads,
    heads,
    identity_if_square,
    rows,
    to_heads,
    transpose,
)

LAYER = "encoder.layer.{i}"
OURS = "text/blocks/layers/{i}"
FIRST_POSITION = 2  # row of the first token; the rows before are for padding


def _positions(table: np.ndarray, shape: Shape) -> np.ndarray:
    return rows(table[FIRST_POSITION:], shape)


HUGGING_FACE = Family(
    name="MPNet (Hugging Face)",
    mark="encoder.relative_attention_bias.weight",
    text=[
        Row("embeddings.word_embeddings.weight", "text/embed/embedding"),
        Row("embeddings.position_embeddings.weight", "text/position", _positions),
        Row("embeddings.LayerNorm.weight", "text/norm/scale"),
        Row("embeddings.LayerNorm.bias", "text/norm/bias"),
        Row("encoder.relative_attention_bias.weight", "text/relative"),
        Row(f"{LAYER}.attention.attn.q.weight", f"{OURS}/attention/query/kernel", to_heads),
        Row(f"{LAYER}.attention.attn.q.bias", f"{OURS}/attention/query/bias", heads),
        Row(f"{LAYER}.attention.attn.k.weight", f"{OURS}/attention/key/kernel", to_heads),
        Row(f"{LAYER}.attention.attn.k.bias", f"{OURS}/attention/key/bias", heads),
        Row(f"{LAYER}.attention.attn.v.weight", f"{OURS}/attention/value/kernel", to_heads),
        Row(f"{LAYER}.attention.attn.v.bias", f"{OURS}/attention/value/bias", heads),
        Row(f"{LAYER}.attention.attn.o.weight", f"{OURS}/attention/out/kernel", from_heads),
        Row(f"{LAYER}.attention.attn.o.bias", f"{OURS}/attention/out/bias"),
        Row(f"{LAYER}.attention.LayerNorm.weight", f"{OURS}/norm1/scale"),
        Row(f"{LAYER}.attention.LayerNorm.bias", f"{OURS}/norm1/bias"),
        Row(f"{LAYER}.intermediate.dense.weight", f"{OURS}/mlp/up/kernel", transpose),
        Row(f"{LAYER}.intermediate.dense.bias", f"{OURS}/mlp/up/bias"),
        Row(f"{LAYER}.output.dense.weight", f"{OURS}/mlp/down/kernel", transpose),
        Row(f"{LAYER}.output.dense.bias", f"{OURS}/mlp/down/bias"),
        Row(f"{LAYER}.output.LayerNorm.weight", f"{OURS}/norm2/scale"),
        Row(f"{LAYER}.output.LayerNorm.bias", f"{OURS}/norm2/bias"),
        Row((), "text_out/kernel", identity_if_square),
    ],
    dropped=[
        ("embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
        ("pooler.dense.*", "not used by sentence-transformers"),
        ("lm_head.*", "the head of pre-training"),
    ],
    new=["text_out/.*"],
    prefixes=("mpnet.", "0.auto_model."),
)
