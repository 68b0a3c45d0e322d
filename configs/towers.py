"""Published towers: each function sets the fields of a config that a checkpoint's shapes fix.

They set no dataset and nothing about training, and never the number of frames. Sources of the
sizes: each model's published config. `hf:` needs a network once; a path serves as well.
"""

from ml_collections import ConfigDict

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _clip(config: ConfigDict, where: str, patch: int, video: tuple, text: tuple, dim: int) -> None:
    """CLIP's two towers; `video` and `text` are (width, heads, depth)."""
    config.video.update(
        weights=where, size=224, patch=patch, tubelet=1, mlp_ratio=4.0, pool="cls",
        temporal="mean", temporal_depth=2, activation="quick_gelu", patch_bias=False,
        pre_norm=True, epsilon=1e-5, cap=0.0, mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
    config.text.update(weights=where, tokenizer=where, style="clip", length=77, vocabulary=49_408)
    config.tower_text.update(
        mlp_ratio=4.0, pool="eos", activation="quick_gelu", norm="pre", causal=True,
        mask_padding=False, position="learned", epsilon=1e-5, cap=0.0, out_bias=False,
    )  # fmt: skip
    for tower, (width, heads, depth) in ((config.video, video), (config.tower_text, text)):
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
    config.video.activation = config.tower_text.activation = "gelu"


def _bert(config: ConfigDict, where: str, width: int, heads: int, depth: int) -> None:
    """A text tower alone; the shared embedding takes its width, so that it starts as it is."""
    config.text.update(weights=where, tokenizer=where, style="bert", length=64, vocabulary=30_522)
    config.tower_text.update(
        width=width, heads=heads, depth=depth, mlp_ratio=4.0, pool="mean", activation="gelu",
        norm="post", causal=False, mask_padding=True, position="learned", epsilon=1e-12, cap=0.0,
        out_bias=False,
    )  # fmt: skip
    config.model.dim = width


def minilm(config: ConfigDict) -> None:
    """all-MiniLM-L6-v2: sentence embeddings, trained on a billion pairs of sentences."""
    _bert(config, "hf:sentence-transformers/all-MiniLM-L6-v2", 384, 12, 6)


def bert_base(config: ConfigDict) -> None:
    """BERT base, lower-cased."""
    _bert(config, "hf:google-bert/bert-base-uncased", 768, 12, 12)
