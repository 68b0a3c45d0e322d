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


def shared_rows(query: str, key: str, value: str, out: str, norm: str) -> list[Row]:
    """The rows of checkpoints whose blocks are BERT's, also if the attention has other names.

    Args:
      query: name of the projection to queries, after "encoder.layer.{i}.attention.".
      key: the same of keys.
      value: the same of values.
      out: the same of the output projection.
      norm: the same of the LayerNorm.
    """
    inputs = {"query": query, "key": key, "value": value}
    theirs = f"{LAYER}.attention"
    return [
        Row("embeddings.word_embeddings.weight", "text/embed/embedding"),
        Row("embeddings.LayerNorm.weight", "text/norm/scale"),
        Row("embeddings.LayerNorm.bias", "text/norm/bias"),
        *(
            row
            for ours, name in inputs.items()
            for row in (
                Row(f"{theirs}.{name}.weight", f"{OURS}/attention/{ours}/kernel", to_heads),
                Row(f"{theirs}.{name}.bias", f"{OURS}/attention/{ours}/bias", heads),
            )
        ),
        Row(f"{theirs}.{out}.weight", f"{OURS}/attention/out/kernel", from_heads),
        Row(f"{theirs}.{out}.bias", f"{OURS}/attention/out/bias"),
        Row(f"{theirs}.{norm}.weight", f"{OURS}/norm1/scale"),
        Row(f"{theirs}.{norm}.bias", f"{OURS}/norm1/bias"),
        Row(f"{LAYER}.intermediate.dense.weight", f"{OURS}/mlp/up/kernel", transpose),
        Row(f"{LAYER}.intermediate.dense.bias", f"{OURS}/mlp/up/bias"),
        Row(f"{LAYER}.output.dense.weight", f"{OURS}/mlp/down/kernel", transpose),
        Row(f"{LAYER}.output.dense.bias", f"{OURS}/mlp/down/bias"),
        Row(f"{LAYER}.output.LayerNorm.weight", f"{OURS}/norm2/scale"),
        Row(f"{LAYER}.output.LayerNorm.bias", f"{OURS}/norm2/bias"),
        Row((), "text_out/kernel", identity_if_square),
    ]


HUGGING_FACE = Family(
    name="BERT (Hugging Face)",
    mark="embeddings.word_embeddings.weight",
    text=[
        *shared_rows("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"),
        Row("embeddings.position_embeddings.weight", "text/position", rows),
        Row("embeddings.token_type_embeddings.weight", "text/token_type", first),
    ],
    dropped=[
        ("embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
        ("pooler.dense.*", "the head of next-sentence prediction"),
        ("cls.*", "the heads of pre-training"),
    ],
    new=["text_out/.*"],
    prefixes=("bert.", "0.auto_model."),
)
