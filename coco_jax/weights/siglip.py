"""SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786) checkpoints of Hugging Face and big_vision.

The image tower has no projection, so `config.model.dim` must be its width.
"""

from coco_jax.weights.clip import TEMPORAL
from coco_jax.weights.clip import hugging_face_layer as hf_layer
from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import (
    convolution,
    from_heads,
    grid,
    heads,
    identity,
    log_tau,
    patches,
    rows,
    to_heads,
    transpose,
)

# The bias of SigLIP's sigmoid loss does not change a softmax or a ranking.
BIAS = "added to all logits, so it does not change a softmax"

HUGGING_FACE = Family(
    name="SigLIP (Hugging Face)",
    mark="vision_model.head.probe",
    video=[
        Row("vision_model.embeddings.patch_embedding.weight", "video/embed/kernel", convolution),
        Row("vision_model.embeddings.patch_embedding.bias", "video/embed/bias"),
        Row("vision_model.embeddings.position_embedding.weight", "video/position", grid),
        *hf_layer("vision_model.encoder", "video/spatial"),
        Row("vision_model.post_layernorm.weight", "video/norm/scale"),
        Row("vision_model.post_layernorm.bias", "video/norm/bias"),
        Row("vision_model.head.probe", "video/map/probe"),
        Row(
            "vision_model.head.attention.in_proj_weight",
            "video/map/attention/query|key|value/kernel",
            to_heads,
        ),
        Row(
            "vision_model.head.attention.in_proj_bias",
            "video/map/attention/query|key|value/bias",
            heads,
        ),
        Row(
            "vision_model.head.attention.out_proj.weight",
            "video/map/attention/out/kernel",
            from_heads,
        ),
        Row("vision_model.head.attention.out_proj.bias", "video/map/attention/out/bias"),
        Row("vision_model.head.layernorm.weight", "video/map/norm/scale"),
        Row("vision_model.head.layernorm.bias", "video/map/norm/bias"),
        Row("vision_model.head.mlp.fc1.weight", "video/map/mlp/up/kernel", transpose),
        Row("vision_model.head.mlp.fc1.bias", "video/map/mlp/up/bias"),
        Row("vision_model.head.mlp.fc2.weight", "video/map/mlp/down/kernel", transpose),
        Row("vision_model.head.mlp.fc2.bias", "video/map/mlp/down/bias"),
        Row((), "video_out/kernel", identity),
    ],
    text=[
        Row("text_model.embeddings.token_embedding.weight", "text/embed/embedding"),
        Row("text_model.embeddings.position_embedding.weight", "text/position", rows),
        *hf_layer("text_model.encoder", "text/blocks"),
        Row("text_model.final_layer_norm.weight", "text/norm/scale"),
        Row("text_model.final_layer_norm.bias", "text/norm/bias"),
        Row("text_model.head.weight", "text_out/kernel", transpose),
        Row("text_model.head.bias", "text_out/bias"),
    ],
    both=[Row("logit_scale", "log_tau", log_tau)],
    dropped=[
        ("logit_bias", BIAS),
        ("vision_model.embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
        ("text_model.embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
    ],
    new=TEMPORAL,
)


def _layer(theirs: str, ours: str) -> list[Row]:
    """Rows of big_vision's layers, which have the layout of our parameters.

    With `{i}` in `theirs` layers are stored one by one, without it they are stacked along axis 0.
    """
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    return [
        Row(f"{theirs}/LayerNorm_0/scale", f"{ours}/norm1/scale"),
        Row(f"{theirs}/LayerNorm_0/bias", f"{ours}/norm1/bias"),
        *(
            Row(f"{attention}/{name}/{kind}", f"{ours}/attention/{name}/{kind}")
            for name in ("query", "key", "value", "out")
            for kind in ("kernel", "bias")
        ),
        Row(f"{theirs}/LayerNorm_1/scale", f"{ours}/norm2/scale"),
        Row(f"{theirs}/LayerNorm_1/bias", f"{ours}/norm2/bias"),
        Row(f"{theirs}/MlpBlock_0/Dense_0/kernel", f"{ours}/mlp/up/kernel"),
        Row(f"{theirs}/MlpBlock_0/Dense_0/bias", f"{ours}/mlp/up/bias"),
        Row(f"{theirs}/MlpBlock_0/Dense_1/kernel", f"{ours}/mlp/down/kernel"),
        Row(f"{theirs}/MlpBlock_0/Dense_1/bias", f"{ours}/mlp/down/bias"),
    ]


def _layers(theirs: str, ours: str) -> list[Row]:
    """Rows for both ways of storing layers: one by one, or stacked by `nn.scan`."""
    return [
        *_layer(f"{theirs}/encoderblock_{{i}}", f"{ours}/layers/{{i}}"),
        *_layer(f"{theirs}/encoderblock", f"{ours}/layers/{{i}}"),
    ]


HEAD = "img/MAPHead_0"
BIG_VISION = Family(
    name="SigLIP (big_vision)",
    mark="img/MAPHead_0/probe",
    video=[
        Row("img/embedding/kernel", "video/embed/kernel", patches),
        Row("img/embedding/bias", "video/embed/bias"),
        Row("img/pos_embedding", "video/position", grid),
        *_layers("img/Transformer", "video/spatial"),
        Row("img/Transformer/encoder_norm/scale", "video/norm/scale"),
        Row("img/Transformer/encoder_norm/bias", "video/norm/bias"),
        Row(f"{HEAD}/probe", "video/map/probe"),
        *(
            Row(
                f"{HEAD}/MultiHeadDotProductAttention_0/{name}/{kind}",
                f"video/map/attention/{name}/{kind}",
            )
            for name in ("query", "key", "value", "out")
            for kind in ("kernel", "bias")
        ),
        Row(f"{HEAD}/LayerNorm_0/scale", "video/map/norm/scale"),
        Row(f"{HEAD}/LayerNorm_0/bias", "video/map/norm/bias"),
        Row(f"{HEAD}/MlpBlock_0/Dense_0/kernel", "video/map/mlp/up/kernel"),
        Row(f"{HEAD}/MlpBlock_0/Dense_0/bias", "video/map/mlp/up/bias"),
        Row(f"{HEAD}/MlpBlock_0/Dense_1/kernel", "video/map/mlp/down/kernel"),
        Row(f"{HEAD}/MlpBlock_0/Dense_1/bias", "video/map/mlp/down/bias"),
        Row((), "video_out/kernel", identity),
    ],
    text=[
        Row("txt/Embed_0/embedding", "text/embed/embedding"),
        Row("txt/pos_embedding", "text/position", rows),
        *_layers("txt/Encoder_0", "text/blocks"),
        Row("txt/Encoder_0/encoder_norm/scale", "text/norm/scale"),
        Row("txt/Encoder_0/encoder_norm/bias", "text/norm/bias"),
        Row("txt/head/kernel", "text_out/kernel"),
        Row("txt/head/bias", "text_out/bias"),
    ],
    both=[Row("t", "log_tau", log_tau)],
    dropped=[("b", BIAS)],
    new=TEMPORAL,
    prefixes=("params/",),
)
