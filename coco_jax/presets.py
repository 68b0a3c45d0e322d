"""Published towers: each function sets the fields of a config that a checkpoint's shapes fix.

They set no dataset and nothing about training; the number of frames for VideoPrism alone. The sizes
are those of each model's published config. `hf:` needs a network once; a path serves as well.
"""

from ml_collections import ConfigDict

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _clip(config: ConfigDict, where: str, patch: int, video: tuple, text: tuple, dim: int) -> None:
    """CLIP's two towers; `video` and `text` are (width, heads, depth)."""
    config.video_tower.update(
        weights=where, size=224, patch=patch, tubelet=1, mlp_ratio=4.0, pool="cls",
        temporal="mean", temporal_depth=2, activation="quick_gelu", patch_bias=False,
        pre_norm=True, norm_epsilon=1e-5, attention_logit_cap=0.0, mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
    config.text_tower.weights = where
    config.text.update(tokenizer=where, tokenizer_style="clip", length=77, vocabulary=49_408)
    config.text_tower.update(
        mlp_ratio=4.0, pool="eos", activation="quick_gelu", norm="pre", causal=True,
        mask_padding=False, position="learned", norm_epsilon=1e-5, attention_logit_cap=0.0, out_bias=False,
    )  # fmt: skip
    for tower, (width, heads, depth) in ((config.video_tower, video), (config.text_tower, text)):
        tower.update(width=width, heads=heads, depth=depth)
    config.model.dim = dim


def clip_b32(config: ConfigDict) -> None:
    """OpenAI's CLIP ViT-B/32."""
    _clip(config, "hf:openai/clip-vit-base-patch32", 32, (768, 12, 12), (512, 8, 12), 512)


def clip_b16(config: ConfigDict) -> None:
    """OpenAI's CLIP ViT-B/16."""
    _clip(config, "hf:openai/clip-vit-base-patch16", 16, (768, 12, 12), (512, 8, 12), 512)


def clip_l14(config: ConfigDict) -> None:
    """OpenAI's CLIP ViT-L/14."""
    _clip(config, "hf:openai/clip-vit-large-patch14", 14, (1024, 16, 24), (768, 12, 12), 768)


def open_clip_h14(config: ConfigDict) -> None:
    """OpenCLIP's ViT-H/14, trained on LAION-2B."""
    where = "hf:laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    _clip(config, where, 14, (1280, 16, 32), (1024, 16, 24), 1024)
    config.video_tower.activation = config.text_tower.activation = "gelu"


def _siglip(
    config: ConfigDict, where: str, style: str, vocabulary: int, patch: int, size: int, tower: tuple
) -> None:
    """SigLIP's two towers, which are alike; `tower` is (width, heads, depth, MLP's width)."""
    width, heads, depth, hidden = tower
    same = dict(
        width=width, heads=heads, depth=depth, mlp_ratio=hidden / width, activation="gelu_tanh",
        norm_epsilon=1e-6, attention_logit_cap=0.0,
    )  # fmt: skip
    config.video_tower.update(
        weights=where, size=size, patch=patch, tubelet=1, pool="map", temporal="mean",
        temporal_depth=2, patch_bias=True, pre_norm=False, mean=(0.5,) * 3, std=(0.5,) * 3, **same,
    )  # fmt: skip
    config.text_tower.weights = where
    config.text.update(tokenizer=where, tokenizer_style=style, length=64, vocabulary=vocabulary)
    config.text_tower.update(
        pool="last", norm="pre", causal=False, mask_padding=False, position="learned",
        out_bias=True, **same,
    )  # fmt: skip
    config.model.update(dim=width, tau_min=0.005)  # they were trained to about 1 / 115


BASE = (768, 12, 12, 3072)
LARGE = (1024, 16, 24, 4096)
SO400M = (1152, 16, 27, 4304)


def siglip_b16(config: ConfigDict) -> None:
    """SigLIP B/16."""
    _siglip(config, "hf:google/siglip-base-patch16-224", "siglip", 32_000, 16, 224, BASE)


def siglip_l16(config: ConfigDict) -> None:
    """SigLIP L/16 at 256 pixels."""
    _siglip(config, "hf:google/siglip-large-patch16-256", "siglip", 32_000, 16, 256, LARGE)


def siglip2_b16(config: ConfigDict) -> None:
    """SigLIP 2 B/16."""
    _siglip(config, "hf:google/siglip2-base-patch16-224", "siglip2", 256_000, 16, 224, BASE)


def siglip2_l16(config: ConfigDict) -> None:
    """SigLIP 2 L/16 at 256 pixels."""
    _siglip(config, "hf:google/siglip2-large-patch16-256", "siglip2", 256_000, 16, 256, LARGE)


def siglip2_so400m(config: ConfigDict) -> None:
    """SigLIP 2 So400m/14."""
    _siglip(config, "hf:google/siglip2-so400m-patch14-224", "siglip2", 256_000, 14, 224, SO400M)


def _videoprism(config: ConfigDict, where: str, frames: int, video: tuple, heads: int) -> None:
    """VideoPrism's two towers; `video` is (width, depth)."""
    width, depth = video
    same = dict(
        width=width, heads=heads, mlp_ratio=4.0, norm_epsilon=1e-6, attention_logit_cap=50.0
    )
    config.video_tower.update(
        weights=where, frames=frames, size=288, patch=18, tubelet=1, depth=depth,
        temporal="tokens", temporal_depth=4, auxiliary_depth=2, pool="wide_map", activation="gelu",
        patch_bias=True, pre_norm=False, mean=(0.0,) * 3, std=(1.0,) * 3, **same,
    )  # fmt: skip
    config.text_tower.weights = where
    config.text.update(
        tokenizer=f"{where}/sentencepiece.model", tokenizer_style="videoprism", length=64,
        vocabulary=32_000,
    )  # fmt: skip
    config.text_tower.update(
        depth=12, pool="cls", activation="relu", norm="pre", causal=True, mask_padding=True,
        position="sinusoid", out_bias=False, **same,
    )  # fmt: skip
    config.model.dim = width


def videoprism_base(config: ConfigDict) -> None:
    """VideoPrism-LvT base: 16 frames of 288 pixels."""
    _videoprism(config, "hf:google/videoprism-lvt-base-f16r288", 16, (768, 12), 12)


def videoprism_large(config: ConfigDict) -> None:
    """VideoPrism-LvT large: 8 frames of 288 pixels."""
    _videoprism(config, "hf:google/videoprism-lvt-large-f8r288", 8, (1024, 24), 16)


def _bert(config: ConfigDict, where: str, width: int, heads: int, depth: int) -> None:
    """A text tower alone; the shared embedding takes its width, so that it starts as it is."""
    config.text_tower.weights = where
    config.text.update(tokenizer=where, tokenizer_style="bert", length=64, vocabulary=30_522)
    config.text_tower.update(
        width=width, heads=heads, depth=depth, mlp_ratio=4.0, pool="mean", activation="gelu",
        norm="post", causal=False, mask_padding=True, position="learned", norm_epsilon=1e-12, attention_logit_cap=0.0,
        out_bias=False,
    )  # fmt: skip
    config.model.dim = width


def minilm(config: ConfigDict) -> None:
    """all-MiniLM-L6-v2: sentence embeddings, trained on a billion pairs of sentences."""
    _bert(config, "hf:sentence-transformers/all-MiniLM-L6-v2", 384, 12, 6)


def bert_base(config: ConfigDict) -> None:
    """BERT base, lower-cased."""
    _bert(config, "hf:google-bert/bert-base-uncased", 768, 12, 12)
