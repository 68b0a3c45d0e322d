"""BERT (arXiv 1810.04805) and MiniLM checkpoints of Hugging Face and sentence-transformers.

A text's vector is the mean over its tokens, as in sentence-transformers. BERT's pooler is not used: it
was trained for next-sentence prediction.
"""

from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import (
    first,
    from_heads,
    heads,
    identity_if_square,
    rows,
    to_heads,
    transpose,
)

LAYER = "encoder.layer.{i}"
OURS = "text/blocks/layers/{i}"

HUGGING_FACE = Family(
    name="BERT (Hugging Face)",
    mark="embeddings.word_embeddings.weight",
    text=[
        Row("embeddings.word_embeddings.weight", "text/embed/embedding"),
        Row("embeddings.position_embeddings.weight", "text/position", rows),
        Row("embeddings.token_type_embeddings.weight", "text/token_type", first),
        Row("embeddings.LayerNorm.weight", "text/norm/scale"),
        Row("embeddings.LayerNorm.bias", "text/norm/bias"),
        Row(f"{LAYER}.attention.self.query.weight", f"{OURS}/attention/query/kernel", to_heads),
        Row(f"{LAYER}.attention.self.query.bias", f"{OURS}/attention/query/bias", heads),
        Row(f"{LAYER}.attention.self.key.weight", f"{OURS}/attention/key/kernel", to_heads),
        Row(f"{LAYER}.attention.self.key.bias", f"{OURS}/attention/key/bias", heads),
        Row(f"{LAYER}.attention.self.value.weight", f"{OURS}/attention/value/kernel", to_heads),
        Row(f"{LAYER}.attention.self.value.bias", f"{OURS}/attention/value/bias", heads),
        Row(f"{LAYER}.attention.output.dense.weight", f"{OURS}/attention/out/kernel", from_heads),
        Row(f"{LAYER}.attention.output.dense.bias", f"{OURS}/attention/out/bias"),
        Row(f"{LAYER}.attention.output.LayerNorm.weight", f"{OURS}/norm1/scale"),
        Row(f"{LAYER}.attention.output.LayerNorm.bias", f"{OURS}/norm1/bias"),
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
        ("pooler.dense.*", "the head of next-sentence prediction"),
        ("cls.*", "the heads of pre-training"),
    ],
    new=["text_out/.*"],
    prefixes=("bert.", "0.auto_model."),
)
