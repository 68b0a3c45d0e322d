"""VideoPrism-LvT checkpoints (arXiv 2402.13217): the public .npz of the video-text model.

The original model stacks layers along axis 0, stores norm scales minus 1, multiplies embeddings by the
square root of their width, and scales each dimension of the pooling queries by a learned factor. The
transforms fold all of this into our parameters. Neither tower has a projection.
"""

import numpy as np

from coco_jax.weights.table import Family, Row
from coco_jax.weights.transforms import (
    add_one,
    identity,
    linear_grid,
    linear_line,
    root_scaled,
)


def _out(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(out, heads, head_dim) -> (heads, head_dim, out)."""
    return x.transpose(1, 2, 0)


def _scaled(x: np.ndarray, per_dim: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Queries times softplus(per_dim) / softplus(0); attention divides by sqrt(head_dim) as usual."""
    return x * (1.442695041 * np.logaddexp(0, per_dim)).astype(np.float32)


def _front(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Adds an axis of length 1 at the front."""
    return x[None]


def _layers(theirs: str, ours: str) -> list[Row]:
    theirs, ours = f"{theirs}/x_layers", f"{ours}/layers/{{i}}"
    attention = f"{theirs}/self_attention"
    return [
        Row(f"{theirs}/layer_norm/scale", f"{ours}/norm1/scale", add_one),
        Row(f"{theirs}/layer_norm/bias", f"{ours}/norm1/bias"),
        *(
            Row(f"{attention}/{name}/{short}", f"{ours}/attention/{name}/{kind}")
            for name in ("query", "key", "value")
            for short, kind in (("w", "kernel"), ("b", "bias"))
        ),
        Row(f"{attention}/post/w", f"{ours}/attention/out/kernel", _out),
        Row(f"{attention}/post/b", f"{ours}/attention/out/bias"),
        Row(f"{theirs}/ff_layer/layer_norm/scale", f"{ours}/norm2/scale", add_one),
        Row(f"{theirs}/ff_layer/layer_norm/bias", f"{ours}/norm2/bias"),
        Row(f"{theirs}/ff_layer/ffn_layer1/linear/kernel", f"{ours}/mlp/up/kernel"),
        Row(f"{theirs}/ff_layer/ffn_layer1/linear/bias", f"{ours}/mlp/up/bias"),
        Row(f"{theirs}/ff_layer/ffn_layer2/linear/kernel", f"{ours}/mlp/down/kernel"),
        Row(f"{theirs}/ff_layer/ffn_layer2/linear/bias", f"{ours}/mlp/down/bias"),
    ]


VISION = "vision_encoder"
POOL = "contrastive_vision_pooler"
PER_DIM = f"{POOL}/pooling_attention/per_dim_scale/per_dim_scale"
LVT = Family(
    name="VideoPrism-LvT",
    mark=f"{POOL}/pooling_attention_query",
    video=[
        Row(f"{VISION}/patch_projection/linear/kernel", "video/embed/kernel"),
        Row(f"{VISION}/patch_projection/linear/bias", "video/embed/bias"),
        Row(f"{VISION}/spatial_pos_emb/emb_var", "video/position", linear_grid),
        *_layers(f"{VISION}/spatial_encoder/transformers_stack", "video/spatial"),
        Row(f"{VISION}/spatial_ln/scale", "video/norm/scale", add_one),
        Row(f"{VISION}/spatial_ln/bias", "video/norm/bias"),
        Row(f"{VISION}/temporal_pos_emb/emb_var", "video/time_position", linear_line),
        *_layers(f"{VISION}/temporal_encoder/transformers_stack", "video/temporal"),
        Row(f"{VISION}/temporal_ln/scale", "video/time_norm/scale", add_one),
        Row(f"{VISION}/temporal_ln/bias", "video/time_norm/bias"),
        *_layers("auxiliary_encoder/transformers_stack", "video/auxiliary"),
        Row(f"{POOL}/pooling_attention_query", "video/map/probe", _front),
        Row(
            (f"{POOL}/pooling_attention/query/w", PER_DIM),
            "video/map/attention/query/kernel",
            _scaled,
        ),
        Row(
            (f"{POOL}/pooling_attention/query/b", PER_DIM),
            "video/map/attention/query/bias",
            _scaled,
        ),
        *(
            Row(f"{POOL}/pooling_attention/{name}/{short}", f"video/map/attention/{name}/{kind}")
            for name in ("key", "value")
            for short, kind in (("w", "kernel"), ("b", "bias"))
        ),
        Row(f"{POOL}/pooling_attention/post/w", "video/map/attention/out/kernel", _out),
        Row(f"{POOL}/pooling_attention/post/b", "video/map/attention/out/bias"),
        Row(f"{POOL}/pooling_attention_layer_norm/scale", "video/map/norm/scale", add_one),
        Row(f"{POOL}/pooling_attention_layer_norm/bias", "video/map/norm/bias"),
        Row((), "video_out/kernel", identity),
    ],
    text=[
        Row("text_encoder/token_emb/emb_var", "text/embed/embedding", root_scaled),
        Row("text_encoder/cls_emb", "text/cls", root_scaled),
        *_layers("text_encoder/unimodal_transformer", "text/blocks"),
        Row("text_encoder/unimodal_ln/scale", "text/norm/scale", add_one),
        Row("text_encoder/unimodal_ln/bias", "text/norm/bias"),
        Row((), "text_out/kernel", identity),
    ],
    prefixes=("params/",),
)
