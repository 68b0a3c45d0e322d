"""Every field a run can set, with its default. An experiment in configs/ starts from here."""

import ml_collections
from ml_collections import ConfigDict

ABLATIONS = ("label", "label+desc", "label+cycle", "full")
POOLS = ("unseen", "auxiliary", "episodic")
PROTOCOLS = ("test", "validation", "cross")
TRAINS = ("all", "lora", "none")


def default() -> ConfigDict:
    """The defaults; locked, so that a misspelt field is an error."""
    c = ConfigDict()
    c.seed = 0
    c.split = "1"  # which of the dataset's class splits
    c.ablation = "full"  # label | label+desc | label+cycle | full
    # test: train on the seen classes, test on the unseen ones.
    # validation: test on the split's validation classes instead, or, where it has none, hold
    # `validation_classes` of the seen ones out. All choices are made here; the unseen classes take
    # no part in it.
    # cross: train on the seen classes of `data.name`, test on `data.test_name`.
    c.protocol = "test"
    c.validation_classes = 6

    # `coco_jax.main` runs every ablation x split x seed named here and makes one table of them;
    # where a list is empty, the single value above.
    c.sweep = ConfigDict()
    c.sweep.ablation = ()
    c.sweep.split = ()
    c.sweep.seed = ()

    c.data = ConfigDict()
    c.data.name = ml_collections.config_dict.placeholder(str)  # a TFDS name
    c.data.dir = "data"  # TFDS data_dir
    # Under the protocol "cross": the dataset tested, in which of its class splits, and whether seen
    # classes of the same name as a tested one are kept in training (the literature's custom) or not.
    c.data.test_name = ml_collections.config_dict.placeholder(str)
    c.data.test_splits = ("1",)
    c.data.shared_classes = "keep"  # keep | drop
    c.data.batch = 64  # videos a step, over all devices
    c.data.workers = 0  # decoding processes; 0 decodes in threads of this one
    c.data.threads = 4
    c.data.cache = False  # keep decoded videos in memory; for small datasets
    c.data.sampling = "random"  # random: one frame a segment (TSN); dense: a fixed stride
    c.data.stride = 0.08  # seconds between frames when sampling is dense
    c.data.flip = True  # mirror half of the training clips
    c.data.crop = 1.0  # side of the (square) crop as a share of the frame's short side
    c.data.color = 0.0  # strength of colour jitter on training clips
    c.data.views = 1  # dense clips a video at evaluation, averaged

    c.text = ConfigDict()
    c.text.corpus = ml_collections.config_dict.placeholder(
        str
    )  # a TFDS name, e.g. actionhub/motion
    c.text.templates = ("{}", "a video of {}", "a person doing {}")
    c.text.descriptions = 8  # M: descriptions a class, drawn afresh each step
    c.text.eval_descriptions = 64  # at evaluation, always the same ones
    c.text.tokenizer = ""  # its tokenizer: a path, or hf:org/name; "": learn one from the texts
    c.text.tokenizer_style = "own"  # own | clip | bert | siglip | siglip2 | videoprism
    c.text.length = 32  # tokens a text, cut or padded
    c.text.vocabulary = 512  # sentencepiece pieces
    c.text.shuffle_descriptions = (
        False  # control: give each class another's descriptions; ruins the result
    )

    c.video_tower = ConfigDict()
    c.video_tower.weights = ""  # a published checkpoint: a path, or hf:org/name (docs/towers.md)
    # all | lora | none: what of the tower learns. What comes after it, and what was added to a
    # published tower to see time, always does.
    c.video_tower.trainable = "all"
    c.video_tower.kind = "video"  # video: the transformer; features: an MLP over stored features
    c.video_tower.feature_dim = 2048  # their width
    c.video_tower.frames = 8
    c.video_tower.size = 224  # pixels a side
    c.video_tower.patch = 16
    c.video_tower.tubelet = 1  # frames a patch spans
    c.video_tower.width = 768
    c.video_tower.heads = 12
    c.video_tower.mlp_ratio = 4.0
    c.video_tower.depth = 12  # blocks within a frame
    # blocks | mean | transformer | divided | shift | tokens: how frames see each other
    # (models/temporal.py); on a published image tower all but `blocks` start as the mean.
    c.video_tower.temporal = "blocks"
    c.video_tower.temporal_depth = 2  # blocks across frames, where `temporal` has some
    c.video_tower.auxiliary_depth = 0  # blocks across all tokens after them; with `tokens` only
    c.video_tower.pool = "cls"  # cls | map | wide_map | mean
    c.video_tower.activation = "gelu"
    c.video_tower.dropout = 0.0
    c.video_tower.patch_bias = True
    c.video_tower.pre_norm = False  # a LayerNorm before the first block, as CLIP has
    c.video_tower.norm_epsilon = 1e-6  # of every LayerNorm
    c.video_tower.attention_logit_cap = 0.0  # bound of the attention's logits; 0: none
    c.video_tower.mean = (0.5, 0.5, 0.5)
    c.video_tower.std = (0.5, 0.5, 0.5)

    c.text_tower = ConfigDict()
    c.text_tower.weights = ""  # a published checkpoint of the text tower: a path, or hf:org/name
    # all | lora | none. With none every text goes through the tower once, into a bank on disk under
    # data.dir, and each step draws M features a class from that.
    c.text_tower.trainable = "all"
    c.text_tower.width = 512
    c.text_tower.heads = 8
    c.text_tower.mlp_ratio = 4.0
    c.text_tower.depth = 12
    c.text_tower.pool = "mean"  # mean | map | last | eos | cls
    c.text_tower.activation = "gelu"
    c.text_tower.dropout = 0.0
    c.text_tower.norm = "pre"  # pre | post (BERT)
    c.text_tower.causal = False  # a token sees what comes before it only
    c.text_tower.mask_padding = True  # id 0 is padding, and nobody looks at it
    c.text_tower.position = "learned"  # learned | sinusoid
    c.text_tower.norm_epsilon = 1e-6
    c.text_tower.attention_logit_cap = 0.0
    c.text_tower.out_bias = False  # a bias in the projection to the shared embedding

    c.lora = ConfigDict()  # where `trains` is "lora": queries and values of the tower's blocks
    c.lora.rank = 8
    c.lora.alpha = 8.0  # the correction is scaled by alpha / rank

    c.model = ConfigDict()
    c.model.dim = 512  # D, the shared embedding
    c.model.dtype = "bfloat16"  # of activations; parameters and losses are float32
    c.model.remat = False
    c.model.tau = 0.07  # initial temperature
    c.model.tau_min = 0.01
    c.model.tau_max = 1.0
    c.model.tau_d = 0.1  # how sharply a video picks among descriptions
    c.model.label_weight = 0.5  # w of the class semantic feature s_c
    c.model.alpha = 0.5  # weight of the label at inference, where descriptions are used
    c.model.lambda_desc = 1.0
    c.model.lambda_cycle = 3.0
    c.model.lambda_invariant = 0.0

    c.cycle = ConfigDict()
    c.cycle.pool = "unseen"  # unseen (text-transductive, the paper's) | auxiliary | episodic
    c.cycle.form = "squared"  # squared | contrastive
    c.cycle.heads = 1
    c.cycle.tau_r = 0.1
    c.cycle.learned_attention = True
    # Whose features the cycle loss does not move: "seen" (as keys and values), "unseen", "target".
    c.cycle.stop_gradient = ()

    c.optimizer = ConfigDict()
    c.optimizer.steps = 10_000
    c.optimizer.warmup = 500
    c.optimizer.learning_rate = 1e-3
    c.optimizer.final_learning_rate_ratio = 0.0  # as a share of `rate`, at the end of the cosine
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.weight_decay = 0.05
    c.optimizer.clip_norm = 1.0  # global norm of the gradient
    c.optimizer.microbatches = 1  # microbatches a step
    # (regular expression on a parameter's path, multiplier of the rate); the first match counts.
    c.optimizer.learning_rate_multipliers = ((".*", 1.0),)

    c.mesh = ConfigDict()
    c.mesh.data = -1  # -1: the devices that the other axes leave
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # (regular expression on a parameter's path, mesh axis of each of its dimensions or None).
    c.mesh.rules = (
        (r".*/attention/(query|key|value)/kernel", ("fsdp", "tensor", None)),
        (r".*/attention/out/kernel", ("tensor", None, "fsdp")),
        (r".*/mlp/up/kernel", ("fsdp", "tensor")),
        (r".*/mlp/down/kernel", ("tensor", "fsdp")),
        (r"text/embed/embedding", ("tensor", "fsdp")),
        (r".*/kernel", (None, "fsdp")),
    )

    # The evaluated towers are (1 - interpolate) x trained + interpolate x as they were at step 0,
    # where a checkpoint was loaded; it keeps zero-shot strength on other datasets.
    c.eval = ConfigDict()
    c.eval.interpolate = 0.0

    c.log_every = 10
    c.checkpoint_every = 1_000  # steps; the last step is always kept
    c.keep_checkpoints = 2  # checkpoints
    return c.lock()


def uses_descriptions(config: ConfigDict) -> bool:
    """Whether the ablation has L_desc, and descriptions in the class semantic features and scores."""
    return config.ablation in ("label+desc", "full")


def uses_cycle(config: ConfigDict) -> bool:
    """Whether the ablation has Cross-action Invariance Mining."""
    return config.ablation in ("label+cycle", "full")
