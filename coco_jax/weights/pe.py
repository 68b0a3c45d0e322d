"""PE-Core (Perception Encoder, arXiv 2504.13181): the authors' checkpoints, and open_clip's."""

import numpy as np

from coco_jax.weights.clip import TEMPORAL, open_clip_layer, open_clip_text
from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import (
    Shape,
    convolution,
    from_heads,
    heads,
    log_tau,
    pe_grid,
    to_heads,
    transpose,
)


def _without_bias(kernel: np.ndarray, bias: np.ndarray, shape: Shape) -> np.ndarray:
    """A linear layer of timm whose bias, which PE does not have, is zero."""
    if bias.any():
        raise ValueError("has a bias other than zero, which PE-Core's projection does not have")
    return transpose(kernel, shape)


def _timm_layer(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.norm1.weight", f"{ours}/norm1/scale"),
        Row(f"{theirs}.norm1.bias", f"{ours}/norm1/bias"),
        Row(f"{theirs}.attn.qkv.weight", f"{ours}/attention/query|key|value/kernel", to_heads),
        Row(f"{theirs}.attn.qkv.bias", f"{ours}/attention/query|key|value/bias", heads),
        Row(f"{theirs}.attn.proj.weight", f"{ours}/attention/out/kernel", from_heads),
        Row(f"{theirs}.attn.proj.bias", f"{ours}/attention/out/bias"),
        Row(f"{theirs}.norm2.weight", f"{ours}/norm2/scale"),
        Row(f"{theirs}.norm2.bias", f"{ours}/norm2/bias"),
        *_timm_mlp(f"{theirs}.mlp", f"{ours}/mlp"),
    ]


def _timm_mlp(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.fc1.weight", f"{ours}/up/kernel", transpose),
        Row(f"{theirs}.fc1.bias", f"{ours}/up/bias"),
        Row(f"{theirs}.fc2.weight", f"{ours}/down/kernel", transpose),
        Row(f"{theirs}.fc2.bias", f"{ours}/down/bias"),
    ]


MAP, POOL = "video/map", "visual.attn_pool"
META = Family(
    name="PE-Core (perception_models)",
    mark=f"{POOL}.probe",
    video=[
        Row("visual.conv1.weight", "video/embed/kernel", convolution),
        Row("visual.class_embedding", "video/cls"),
        Row("visual.positional_embedding", "video/position", pe_grid),
        Row("visual.ln_pre.weight", "video/pre_norm/scale"),
        Row("visual.ln_pre.bias", "video/pre_norm/bias"),
        *open_clip_layer("visual.transformer", "video/spatial"),
        Row("visual.ln_post.weight", "video/norm/scale"),
        Row("visual.ln_post.bias", "video/norm/bias"),
        Row(f"{POOL}.probe", f"{MAP}/probe"),
        Row(f"{POOL}.attn.in_proj_weight", f"{MAP}/attention/query|key|value/kernel", to_heads),
        Row(f"{POOL}.attn.in_proj_bias", f"{MAP}/attention/query|key|value/bias", heads),
        Row(f"{POOL}.attn.out_proj.weight", f"{MAP}/attention/out/kernel", from_heads),
        Row(f"{POOL}.attn.out_proj.bias", f"{MAP}/attention/out/bias"),
        Row(f"{POOL}.layernorm.weight", f"{MAP}/norm/scale"),
        Row(f"{POOL}.layernorm.bias", f"{MAP}/norm/bias"),
        Row(f"{POOL}.mlp.c_fc.weight", f"{MAP}/mlp/up/kernel", transpose),
        Row(f"{POOL}.mlp.c_fc.bias", f"{MAP}/mlp/up/bias"),
        Row(f"{POOL}.mlp.c_proj.weight", f"{MAP}/mlp/down/kernel", transpose),
        Row(f"{POOL}.mlp.c_proj.bias", f"{MAP}/mlp/down/bias"),
        Row("visual.proj", "video_out/kernel"),
    ],
    text=open_clip_text(),
    both=[Row("logit_scale", "log_tau", log_tau)],
    new=TEMPORAL,
    prefixes=("module.",),
)

TRUNK = "visual.trunk"
OPEN_CLIP = Family(
    name="PE-Core (open_clip)",
    mark=f"{TRUNK}.norm_pre.weight",
    video=[
        Row(f"{TRUNK}.patch_embed.proj.weight", "video/embed/kernel", convolution),
        Row(f"{TRUNK}.cls_token", "video/cls"),
        Row(f"{TRUNK}.pos_embed", "video/position", pe_grid),
        Row(f"{TRUNK}.norm_pre.weight", "video/pre_norm/scale"),
        Row(f"{TRUNK}.norm_pre.bias", "video/pre_norm/bias"),
        *_timm_layer(f"{TRUNK}.blocks.{{i}}", "video/spatial/layers/{i}"),
        Row(f"{TRUNK}.norm.weight", "video/norm/scale"),
        Row(f"{TRUNK}.norm.bias", "video/norm/bias"),
        Row(f"{TRUNK}.attn_pool.latent", f"{MAP}/probe"),
        Row(f"{TRUNK}.attn_pool.q.weight", f"{MAP}/attention/query/kernel", to_heads),
        Row(f"{TRUNK}.attn_pool.q.bias", f"{MAP}/attention/query/bias", heads),
        Row(f"{TRUNK}.attn_pool.kv.weight", f"{MAP}/attention/key|value/kernel", to_heads),
        Row(f"{TRUNK}.attn_pool.kv.bias", f"{MAP}/attention/key|value/bias", heads),
        Row(f"{TRUNK}.attn_pool.proj.weight", f"{MAP}/attention/out/kernel", from_heads),
        Row(f"{TRUNK}.attn_pool.proj.bias", f"{MAP}/attention/out/bias"),
        Row(f"{TRUNK}.attn_pool.norm.weight", f"{MAP}/norm/scale"),
        Row(f"{TRUNK}.attn_pool.norm.bias", f"{MAP}/norm/bias"),
        *_timm_mlp(f"{TRUNK}.attn_pool.mlp", f"{MAP}/mlp"),
        Row((f"{TRUNK}.head.weight", f"{TRUNK}.head.bias"), "video_out/kernel", _without_bias),
    ],
    text=open_clip_text("text."),
    both=[Row("logit_scale", "log_tau", log_tau)],
    new=TEMPORAL,
)
