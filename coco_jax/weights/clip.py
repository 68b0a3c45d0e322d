"""CLIP checkpoints (arXiv 2103.00020) in the formats of Hugging Face and open_clip."""

from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import (
    convolution,
    from_heads,
    grid_after_cls,
    heads,
    log_tau,
    rows,
    to_heads,
    transpose,
)

# Parameters that `video_tower.temporal` adds to an image tower.
TEMPORAL = (r"video/temporal/.*", r"video/time_.*")


def hugging_face_layer(theirs: str, ours: str) -> list[Row]:
    """Rows of one transformer layer in the format of Hugging Face; `{i}` is the layer's number."""
    theirs, ours = f"{theirs}.layers.{{i}}", f"{ours}/layers/{{i}}"
    return [
        Row(f"{theirs}.layer_norm1.weight", f"{ours}/norm1/scale"),
        Row(f"{theirs}.layer_norm1.bias", f"{ours}/norm1/bias"),
        Row(f"{theirs}.self_attn.q_proj.weight", f"{ours}/attention/query/kernel", to_heads),
        Row(f"{theirs}.self_attn.q_proj.bias", f"{ours}/attention/query/bias", heads),
        Row(f"{theirs}.self_attn.k_proj.weight", f"{ours}/attention/key/kernel", to_heads),
        Row(f"{theirs}.self_attn.k_proj.bias", f"{ours}/attention/key/bias", heads),
        Row(f"{theirs}.self_attn.v_proj.weight", f"{ours}/attention/value/kernel", to_heads),
        Row(f"{theirs}.self_attn.v_proj.bias", f"{ours}/attention/value/bias", heads),
        Row(f"{theirs}.self_attn.out_proj.weight", f"{ours}/attention/out/kernel", from_heads),
        Row(f"{theirs}.self_attn.out_proj.bias", f"{ours}/attention/out/bias"),
        Row(f"{theirs}.layer_norm2.weight", f"{ours}/norm2/scale"),
        Row(f"{theirs}.layer_norm2.bias", f"{ours}/norm2/bias"),
        Row(f"{theirs}.mlp.fc1.weight", f"{ours}/mlp/up/kernel", transpose),
        Row(f"{theirs}.mlp.fc1.bias", f"{ours}/mlp/up/bias"),
        Row(f"{theirs}.mlp.fc2.weight", f"{ours}/mlp/down/kernel", transpose),
        Row(f"{theirs}.mlp.fc2.bias", f"{ours}/mlp/down/bias"),
    ]


def open_clip_layer(theirs: str, ours: str) -> list[Row]:
    """Rows of one open_clip layer, which stores queries, keys and values as one matrix."""
    theirs, ours = f"{theirs}.resblocks.{{i}}", f"{ours}/layers/{{i}}"
    return [
        Row(f"{theirs}.ln_1.weight", f"{ours}/norm1/scale"),
        Row(f"{theirs}.ln_1.bias", f"{ours}/norm1/bias"),
        Row(f"{theirs}.attn.in_proj_weight", f"{ours}/attention/query|key|value/kernel", to_heads),
        Row(f"{theirs}.attn.in_proj_bias", f"{ours}/attention/query|key|value/bias", heads),
        Row(f"{theirs}.attn.out_proj.weight", f"{ours}/attention/out/kernel", from_heads),
        Row(f"{theirs}.attn.out_proj.bias", f"{ours}/attention/out/bias"),
        Row(f"{theirs}.ln_2.weight", f"{ours}/norm2/scale"),
        Row(f"{theirs}.ln_2.bias", f"{ours}/norm2/bias"),
        Row(f"{theirs}.mlp.c_fc.weight", f"{ours}/mlp/up/kernel", transpose),
        Row(f"{theirs}.mlp.c_fc.bias", f"{ours}/mlp/up/bias"),
        Row(f"{theirs}.mlp.c_proj.weight", f"{ours}/mlp/down/kernel", transpose),
        Row(f"{theirs}.mlp.c_proj.bias", f"{ours}/mlp/down/bias"),
    ]


def open_clip_text(prefix: str = "") -> list[Row]:
    """Rows of open_clip's text tower, whose names begin with `prefix`."""
    return [
        Row(f"{prefix}token_embedding.weight", "text/embed/embedding"),
        Row(f"{prefix}positional_embedding", "text/position", rows),
        *open_clip_layer(f"{prefix}transformer", "text/blocks"),
        Row(f"{prefix}ln_final.weight", "text/norm/scale"),
        Row(f"{prefix}ln_final.bias", "text/norm/bias"),
        Row(f"{prefix}text_projection", "text_out/kernel"),
    ]


HUGGING_FACE = Family(
    name="CLIP (Hugging Face)",
    mark="vision_model.embeddings.class_embedding",
    video=[
        Row("vision_model.embeddings.patch_embedding.weight", "video/embed/kernel", convolution),
        Row("vision_model.embeddings.class_embedding", "video/cls"),
        Row("vision_model.embeddings.position_embedding.weight", "video/position", grid_after_cls),
        Row("vision_model.pre_layrnorm.weight", "video/pre_norm/scale"),
        Row("vision_model.pre_layrnorm.bias", "video/pre_norm/bias"),
        *hugging_face_layer("vision_model.encoder", "video/spatial"),
        Row("vision_model.post_layernorm.weight", "video/norm/scale"),
        Row("vision_model.post_layernorm.bias", "video/norm/bias"),
        Row("visual_projection.weight", "video_out/kernel", transpose),
    ],
    text=[
        Row("text_model.embeddings.token_embedding.weight", "text/embed/embedding"),
        Row("text_model.embeddings.position_embedding.weight", "text/position", rows),
        *hugging_face_layer("text_model.encoder", "text/blocks"),
        Row("text_model.final_layer_norm.weight", "text/norm/scale"),
        Row("text_model.final_layer_norm.bias", "text/norm/bias"),
        Row("text_projection.weight", "text_out/kernel", transpose),
    ],
    both=[Row("logit_scale", "log_tau", log_tau)],
    dropped=[
        ("vision_model.embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
        ("text_model.embeddings.position_ids", "the constant 0, 1, 2, ... in older files"),
    ],
    new=TEMPORAL,
)

OPEN_CLIP = Family(
    name="CLIP (open_clip)",
    mark="visual.class_embedding",
    video=[
        Row("visual.conv1.weight", "video/embed/kernel", convolution),
        Row("visual.class_embedding", "video/cls"),
        Row("visual.positional_embedding", "video/position", grid_after_cls),
        Row("visual.ln_pre.weight", "video/pre_norm/scale"),
        Row("visual.ln_pre.bias", "video/pre_norm/bias"),
        *open_clip_layer("visual.transformer", "video/spatial"),
        Row("visual.ln_post.weight", "video/norm/scale"),
        Row("visual.ln_post.bias", "video/norm/bias"),
        Row("visual.proj", "video_out/kernel"),
    ],
    text=open_clip_text(),
    both=[Row("logit_scale", "log_tau", log_tau)],
    dropped=[("attn_mask", "the causal mask, which the tower computes")],
    new=TEMPORAL,
)
