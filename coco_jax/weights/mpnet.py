"""MPNet (arXiv 2004.09297) checkpoints of Hugging Face and sentence-transformers.

A text's vector is the mean over its tokens, as in sentence-transformers. MPNet's tokenizer pads with 1,
and starts a text with the token 0. Ours pads with 0: the tower masks all zeros but the first.
"""

import numpy as np

from coco_jax.weights.bert import shared_rows
from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import Shape, rows

FIRST_POSITION = 2  # row of the first token; the rows before are for padding


def _positions(table: np.ndarray, shape: Shape) -> np.ndarray:
    return rows(table[FIRST_POSITION:], shape)


HUGGING_FACE = Family(
    name="MPNet (Hugging Face)",
    mark="encoder.relative_attention_bias.weight",
    text=[
        *shared_rows("attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm"),
        Row("embeddings.position_embeddings.weight", "text/position", _positions),
        Row("encoder.relative_attention_bias.weight", "text/relative"),
    ],
    dropped=[
        ("embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
        ("pooler.dense.*", "not used by sentence-transformers"),
        ("lm_head.*", "the head of pre-training"),
    ],
    new=["text_out/.*"],
    prefixes=("mpnet.", "0.auto_model."),
)
