"""Every field of a run's config, with its default value. The files in configs/ change these defaults.

`default()` makes a config, `validate()` checks one, and `load_stored()` reads one that a run stored.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from coco_jax.errors import UserError

VERSION = 2  # version of the format of configs; `migrate` converts older ones
ABLATIONS = ("label", "label+desc", "label+cycle", "full")
ALIGNMENTS = ("learned", "ridge", "episodic")
TRAINABLE = ("all", "lora", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu")

# Fields that have a fixed set of values, and these values.
CHOICES: dict[str, tuple[str, ...]] = {
    "ablation": ABLATIONS,
    "alignment": ALIGNMENTS,
    "protocol": ("test", "validation", "cross", "frozen"),
    "data.shared_classes": ("keep", "drop"),
    "data.sampling": ("random", "dense"),
    "text.tokenizer_style": ("own", "clip", "bert", "siglip", "siglip2", "videoprism"),
    "text.definitions": ("never", "with_descriptions", "always"),
    "video_tower.kind": ("video", "i3d", "features"),
    "video_tower.extractor": ("", "i3d"),
    "video_tower.trainable": TRAINABLE,
    "video_tower.temporal": ("blocks", "mean", "transformer", "divided", "shift", "tokens"),
    "video_tower.pool": ("cls", "map", "wide_map", "mean"),
    "video_tower.activation": ACTIVATIONS,
    "text_tower.trainable": TRAINABLE,
    "text_tower.pool": ("mean", "map", "last", "eos", "cls"),
    "text_tower.activation": ACTIVATIONS,
    "text_tower.norm": ("pre", "post"),
    "text_tower.position": ("learned", "sinusoid", "relative"),
    "model.start": ("random", "ridge"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "cycle.pool": ("unseen", "auxiliary", "episodic"),
    "cycle.form": ("squared", "contrastive"),
}
STOP_GRADIENT = ("seen", "unseen", "target")  # allowed elements of cycle.stop_gradient
WRITERS = ("tensorboard", "wandb")  # allowed elements of writers

# The smallest and the largest allowed value of every field that is a number. The upper bounds are far
# above published models: they keep a mistyped or foreign config from exhausting the machine.
COUNT = (1, 2**31 - 1)
SIZE = (1, 65_536)
DEPTH = (0, 128)
HEADS = (1, 1_024)
SHARE = (0.0, 1.0)
WEIGHT = (0.0, 1e6)
TEMPERATURE = (1e-6, 1e6)
RATIO = (0.01, 100.0)
EPSILON = (1e-15, 1.0)
BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "validation_classes": (0, 65_536),
    "data.batch": SIZE,
    "data.workers": (0, 1_024),
    "data.threads": (1, 1_024),
    "data.stride": (1e-3, 1e3),
    "data.crop": (0.01, 1.0),
    "data.color": SHARE,
    "data.views": (1, 1_024),
    "data.feature_noise": WEIGHT,
    "text.feature_noise": WEIGHT,
    "text.descriptions": SIZE,
    "text.eval_descriptions": SIZE,
    "text.length": (1, 4_096),
    "text.vocabulary": (4, 2**22),
    "text.trained_vocabulary": (0, 2**22),
    "video_tower.feature_dim": (1, 2**20),
    "video_tower.frames": (1, 4_096),
    "video_tower.size": (1, 4_096),
    "video_tower.patch": (1, 4_096),
    "video_tower.tubelet": (1, 4_096),
    "video_tower.width": SIZE,
    "video_tower.heads": HEADS,
    "video_tower.pool_heads": (0, 1_024),
    "video_tower.mlp_ratio": RATIO,
    "video_tower.pool_mlp_ratio": (0.0, 100.0),
    "video_tower.depth": DEPTH,
    "video_tower.temporal_depth": DEPTH,
    "video_tower.auxiliary_depth": DEPTH,
    "video_tower.dropout": (0.0, 0.99),
    "video_tower.norm_epsilon": EPSILON,
    "video_tower.attention_logit_cap": WEIGHT,
    "text_tower.width": SIZE,
    "text_tower.heads": HEADS,
    "text_tower.mlp_ratio": RATIO,
    "text_tower.depth": DEPTH,
    "text_tower.dropout": (0.0, 0.99),
    "text_tower.norm_epsilon": EPSILON,
    "text_tower.attention_logit_cap": WEIGHT,
    "lora.rank": SIZE,
    "lora.alpha": WEIGHT,
    "model.dim": SIZE,
    "model.tau": TEMPERATURE,
    "model.tau_min": TEMPERATURE,
    "model.tau_max": TEMPERATURE,
    "model.tau_d": TEMPERATURE,
    "model.label_weight": SHARE,
    "model.alpha": SHARE,
    "model.lambda_desc": WEIGHT,
    "model.lambda_cycle": WEIGHT,
    "model.lambda_invariant": WEIGHT,
    "ridge.width": TEMPERATURE,
    "ridge.strength": TEMPERATURE,
    "ridge.hubness": WEIGHT,
    "ridge.neighbours": SIZE,
    "ridge.held_out": (0.01, 0.99),
    "ridge.seen_classes": (0, 2**20),
    "cycle.heads": HEADS,
    "cycle.tau_r": TEMPERATURE,
    "optimizer.steps": (0, 2**31 - 1),
    "optimizer.warmup": (0, 2**31 - 1),
    "optimizer.learning_rate": (1e-15, 1e38),
    "optimizer.final_learning_rate_ratio": WEIGHT,
    "optimizer.b1": (0.0, 0.999_999),
    "optimizer.b2": (0.0, 0.999_999),
    "optimizer.weight_decay": WEIGHT,
    "optimizer.clip_norm": (1e-15, 1e38),
    "optimizer.microbatches": SIZE,
    "mesh.data": (-1, 2**20),
    "mesh.fsdp": (-1, 2**20),
    "mesh.tensor": (-1, 2**20),
    "eval.interpolate": SHARE,
    "eval.every": (0, 2**31 - 1),
    "eval.patience": (0, 2**31 - 1),
    "log_every": COUNT,
    "checkpoint_every": COUNT,
    "keep_checkpoints": COUNT,
}
MAX_CLIP = 2**31  # bytes of a clip: frames x size x size x 3
MAX_CHARACTERS = 4_096  # of a field that is text
MAX_ITEMS = 1_000  # of a field that is a list
MAX_WAYS = 2**20  # in which a regular expression may match a path, roughly

# Fields that may differ when a run is resumed: they do not change the result (except that another
# mesh adds floats in another order). Names that end with a dot are sections.
FREE = (
    "version", "text.trained_vocabulary", "ridge.seen_classes", "sweep.", "log_every",
    "checkpoint_every", "keep_checkpoints", "mesh.", "data.dir", "data.workers", "data.threads",
    "data.cache", "writers",
)  # fmt: skip


def default() -> ConfigDict:
    """The defaults; locked, so that a misspelt field is an error."""
    c = ConfigDict()
    c.version = VERSION
    c.seed = 0
    c.split = "1"  # class split of the dataset
    c.ablation = "full"  # label | label+desc | label+cycle | full
    # How texts are mapped to videos (docs/method.md). learned: projections trained by gradient descent |
    # ridge: kernel ridge regression from the texts of each seen class to the mean feature of its videos;
    # nothing is trained | episodic: the same, with its constants trained on episodes of seen classes.
    # The last two need stored features (video_tower.kind) and a frozen text tower.
    c.alignment = "learned"
    # test: train on the seen classes, test on the unseen classes.
    # validation: test on the split's validation classes or, if it has none, on `validation_classes`
    #   of its seen classes, which are then not trained on. Choose hyper-parameters with this one: it
    #   does not use the unseen classes.
    # cross: train on the seen classes of `data.name`, test on `data.test_name`.
    # frozen: train on nothing, test published towers on `data.name`, each of `data.test_splits`.
    c.protocol = "test"
    c.validation_classes = 6

    # `coco_jax.main` runs every combination of these values and makes one table of the results. An
    # empty list stands for the single value above.
    c.sweep = ConfigDict()
    c.sweep.ablation = ()
    c.sweep.split = ()
    c.sweep.seed = ()

    c.data = ConfigDict()
    c.data.name = placeholder(str)  # a TFDS name
    c.data.dir = "data"  # TFDS data_dir
    # For protocol "cross": the dataset to test on. For "cross" and "frozen": the tested class splits.
    c.data.test_name = placeholder(str)
    c.data.test_splits = ("1",)
    # For protocol "cross": train on classes that the tested dataset also has (keep, as papers do)
    # or leave them out (drop).
    c.data.shared_classes = "keep"
    c.data.batch = 64  # videos per step, over all devices
    c.data.workers = 0  # decoding processes; 0 decodes in threads of the training process
    c.data.threads = 4  # decoding threads of each process
    # Keep decoded videos and features in memory; for small datasets. Each of `workers` processes keeps
    # its own and in time all of them, so several workers need several times the memory.
    c.data.cache = False
    c.data.sampling = "random"  # random: one frame per segment (TSN) | dense: a fixed stride
    c.data.stride = 0.08  # seconds between frames; sampling "dense" only
    c.data.flip = True  # mirror half of the training clips
    c.data.crop = 1.0  # side of the square crop as a share of the frame's short side
    c.data.color = 0.0  # strength of colour jitter on training clips
    # Gaussian noise on stored features in training, drawn anew in each step; its norm as a share of the
    # feature's norm.
    c.data.feature_noise = 0.0
    c.data.views = 1  # clips of each video in evaluation, averaged; sampling "dense" only

    c.text = ConfigDict()
    c.text.corpus = placeholder(str)  # descriptions: a TFDS name, e.g. actionhub/motion
    c.text.templates = ("{}", "a video of {}", "a person doing {}")  # prompt templates
    # When the label of a class includes the definition that the corpus has of it: never |
    # with_descriptions: in ablations with descriptions | always
    c.text.definitions = "never"
    c.text.descriptions = 8  # M: descriptions of each class, drawn at random in every step
    c.text.eval_descriptions = 64  # descriptions of each class in evaluation: always the first ones
    c.text.tokenizer = ""  # a path, or hf:org/name; "": train one on the texts
    c.text.tokenizer_style = "own"  # own | clip | bert | siglip | siglip2 | videoprism
    c.text.length = 32  # tokens per text; texts are truncated or padded to it
    c.text.vocabulary = 512  # number of token ids; a trained tokenizer may have fewer
    c.text.trained_vocabulary = 0  # number of ids of the trained tokenizer; the run sets it
    c.text.feature_noise = 0.0  # as data.feature_noise, on the features of texts
    c.text.shuffle_descriptions = False  # control: gives each class another class's descriptions

    c.video_tower = ConfigDict()
    # A published checkpoint: a path, hf:org/name, or package:NAME (docs/towers.md).
    c.video_tower.weights = ""
    # all | lora | none: which parameters of the tower are trained. Projections, and temporal modules
    # added to a published tower, are always trained.
    c.video_tower.trainable = "all"
    # video: the transformer | i3d: the 3-D convolutional network of arXiv 1705.07750, of which only
    # frames, size, mean and std are settings | features: a tower over stored features
    c.video_tower.kind = "video"
    c.video_tower.feature_dim = 2048  # width of stored features
    # Kind "features": the network that made them, which prediction runs on videos. "i3d": those that
    # `coco-jax features` writes; "": another one, so the model names actions of stored features only.
    c.video_tower.extractor = ""
    c.video_tower.linear = False  # kind "features": without the hidden layer; `width` is not used
    c.video_tower.frames = 8
    c.video_tower.size = 224  # pixels per side
    c.video_tower.patch = 16  # pixels per side
    c.video_tower.tubelet = 1  # frames that a patch covers
    c.video_tower.width = 768
    c.video_tower.heads = 12
    c.video_tower.mlp_ratio = 4.0
    c.video_tower.depth = 12  # blocks within a frame
    # blocks | mean | transformer | divided | shift | tokens: how frames are mixed
    # (models/temporal.py). With all but "blocks" and "tokens", the output of the tower before training
    # is the mean over frames.
    c.video_tower.temporal = "blocks"
    c.video_tower.temporal_depth = 2  # for temporal "blocks", "transformer" and "tokens"
    c.video_tower.auxiliary_depth = 0  # blocks over all tokens; for temporal "tokens"
    c.video_tower.pool = "cls"  # cls | map | wide_map | mean
    c.video_tower.pool_heads = 0  # heads of pools "map" and "wide_map"; 0: `heads`
    c.video_tower.pool_mlp_ratio = 0.0  # of the MLP of pool "map"; 0: `mlp_ratio`
    c.video_tower.class_token = False  # a class token with the patches; pool "cls" always has it
    c.video_tower.rope = False  # rotary positions as well, in attention within a frame, as in PE
    c.video_tower.activation = "gelu"  # gelu | gelu_tanh | quick_gelu | relu
    c.video_tower.dropout = 0.0
    c.video_tower.patch_bias = True
    c.video_tower.pre_norm = False  # a LayerNorm before the first block, as in CLIP
    c.video_tower.norm_epsilon = 1e-6
    c.video_tower.attention_logit_cap = 0.0  # bound of attention logits; 0: none
    c.video_tower.mean = (0.5, 0.5, 0.5)  # of pixels in [0, 1], RGB
    c.video_tower.std = (0.5, 0.5, 0.5)

    c.text_tower = ConfigDict()
    c.text_tower.weights = ""  # a published checkpoint, as above
    # all | lora | none, as for the video tower. With "none" every text is embedded once and its
    # features are cached under data.dir; each step draws text.descriptions of them for each class.
    c.text_tower.trainable = "all"
    c.text_tower.width = 512
    c.text_tower.heads = 8
    c.text_tower.mlp_ratio = 4.0
    c.text_tower.depth = 12
    c.text_tower.pool = "mean"  # mean | map | last | eos | cls
    c.text_tower.activation = "gelu"  # gelu | gelu_tanh | quick_gelu | relu
    c.text_tower.dropout = 0.0
    c.text_tower.norm = "pre"  # pre | post (BERT)
    c.text_tower.causal = False  # causal attention mask
    c.text_tower.mask_padding = True  # padding is masked in attention and pooling
    # learned | sinusoid | relative: learned, and a learned value for each range of distances, which is
    # added to the attention logits (MPNet)
    c.text_tower.position = "learned"
    c.text_tower.norm_epsilon = 1e-6
    c.text_tower.attention_logit_cap = 0.0
    c.text_tower.out_bias = False  # a bias in the projection to the shared embedding

    c.lora = ConfigDict()  # for `trainable` "lora": on queries and values of the tower's blocks
    c.lora.rank = 8
    c.lora.alpha = 8.0  # the correction is scaled by alpha / rank

    c.model = ConfigDict()
    c.model.dim = 512  # D, the shared embedding
    c.model.dtype = "bfloat16"  # of activations; parameters and losses are float32
    # Recompute activations in the backward pass to save memory; on CPUs it saves none (docs/train.md).
    c.model.remat = False
    c.model.tau = 0.07  # initial temperature
    c.model.tau_min = 0.01
    c.model.tau_max = 1.0
    c.model.tau_d = 0.1  # temperature of a video's attention over descriptions
    # Subtract from stored features, and from the features of a frozen text tower, their mean over the
    # seen classes.
    c.model.centre = False
    # Initial projections. ridge: linear ridge regression from texts to features, for `centre`, a linear
    # video tower and model.dim = video_tower.feature_dim.
    c.model.start = "random"
    c.model.label_weight = 0.5  # w of the class semantic feature s_c
    c.model.alpha = 0.5  # weight of the label in scores, if descriptions are used
    c.model.lambda_desc = 1.0  # weight of L_desc (docs/method.md)
    c.model.lambda_cycle = 3.0  # weight of L_cycle
    c.model.lambda_invariant = 0.0  # weight of L_invariant

    c.cycle = ConfigDict()
    # unseen: the tested classes, as in the paper | auxiliary: other actions of the corpus |
    # episodic: half of the seen classes. Only "unseen" uses texts of tested classes.
    c.cycle.pool = "unseen"
    c.cycle.form = "squared"  # squared | contrastive
    c.cycle.heads = 1
    c.cycle.tau_r = 0.1  # temperature of the cycle's attention
    c.cycle.learned_attention = True
    # Features that get no gradient from the cycle loss: any of seen (keys and values), unseen, target.
    c.cycle.stop_gradient = ()

    c.ridge = ConfigDict()  # for `alignment` "ridge", and the initial values for "episodic"
    c.ridge.weights = (1.0, 1.0, 4.0)  # of label, definition and descriptions in the kernel
    c.ridge.width = 0.5  # of the kernel, if the weights are scaled to sum to 1
    c.ridge.strength = 0.3  # of the regularisation
    c.ridge.hubness = (
        0.3  # weight of the penalty for predictions that are near to many seen classes
    )
    c.ridge.neighbours = 5  # number of seen classes from which hubness is computed
    c.ridge.held_out = 0.25  # share of the seen classes that each episode predicts from the others
    c.ridge.seen_classes = 0  # number of seen classes; the run sets it

    c.optimizer = ConfigDict()
    c.optimizer.steps = 10_000  # 0 only for protocol "frozen"
    c.optimizer.warmup = 500  # steps of linear warm-up; then a cosine
    c.optimizer.learning_rate = 1e-3
    c.optimizer.final_learning_rate_ratio = 0.0  # last learning rate as a share of the highest
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.weight_decay = 0.05  # of kernels only
    c.optimizer.clip_norm = 1.0  # bound of the gradient's global norm
    # Number of parts in which a batch is processed, to save memory. The gradient is that of the whole
    # batch (GradCache).
    c.optimizer.microbatches = 1
    # (regular expression for a parameter's path, factor); the first match counts.
    c.optimizer.learning_rate_multipliers = ((".*", 1.0),)

    c.mesh = ConfigDict()  # devices along each axis (docs/scale.md)
    c.mesh.data = -1  # -1: all devices that the other axes leave
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # (regular expression for a parameter's path, mesh axis or None for each of its dimensions).
    c.mesh.rules = (
        (r".*/attention/(query|key|value)/kernel", ("fsdp", "tensor", None)),
        (r".*/attention/out/kernel", ("tensor", None, "fsdp")),
        (r".*/mlp/up/kernel", ("fsdp", "tensor")),
        (r".*/mlp/down/kernel", ("tensor", "fsdp")),
        (r"text/embed/embedding", ("tensor", "fsdp")),
        (r".*/kernel", (None, "fsdp")),
    )

    c.eval = ConfigDict()
    # Evaluates (1 - interpolate) x trained + interpolate x published weights of the towers
    # (WiSE-FT, arXiv 2109.01903), which keeps zero-shot accuracy on other datasets.
    c.eval.interpolate = 0.0
    # Also evaluate ridge regression on the same texts and features: linear, and with `ridge`; linear
    # ridge regression from the labels alone; and ConSE (arXiv 1312.5650).
    c.eval.ridge = False
    # Evaluate on validation classes (never on test classes) every so many steps and after the last one;
    # 0: never. It does not change the training.
    c.eval.every = 0
    # Evaluate the step with the highest top-1 on the validation classes instead of the last step.
    c.eval.keep_best = False
    # Stop if top-1 on the validation classes has not risen in so many evaluations; 0: never.
    c.eval.patience = 0

    # Where curves are written: tensorboard, wandb (Weights & Biases; needs the extra [wandb]).
    c.writers = ("tensorboard",)
    c.log_every = 10  # steps
    c.checkpoint_every = 1_000  # steps; the last step is always stored
    c.keep_checkpoints = 2  # number of latest checkpoints that are kept
    return c.lock()


def uses_descriptions(config: ConfigDict) -> bool:
    """Whether the ablation has L_desc, and descriptions in the class semantic features and scores."""
    return config.ablation in ("label+desc", "full")


def uses_cycle(config: ConfigDict) -> bool:
    """Whether the ablation has Cross-action Invariance Mining."""
    return config.ablation in ("label+cycle", "full")


def uses_definitions(config: ConfigDict) -> bool:
    """Whether the labels of the ablation include definitions."""
    return config.text.definitions == "always" or (
        config.text.definitions == "with_descriptions" and uses_descriptions(config)
    )


def text_blocks(config: ConfigDict) -> tuple[str, ...]:
    """The kinds of texts of a class that the ablation uses."""
    used = {
        "label": True,
        "definition": uses_definitions(config),
        "captions": uses_descriptions(config),
    }
    return tuple(block for block, is_used in used.items() if is_used)


def training_steps(config: ConfigDict) -> int:
    """The number of training steps; ridge regression and frozen towers have none."""
    return 0 if config.alignment == "ridge" else config.optimizer.steps


def get(config: ConfigDict, field: str) -> Any:
    """The value of a field written as `data.batch`."""
    section, _, name = field.rpartition(".")
    return (config[section] if section else config)[name]


def validate(config: ConfigDict) -> None:
    """Checks a whole config before anything is read.

    Raises:
      UserError: names the field, its value, and what it may be.
    """
    for field, value in DEFAULTS.items():
        if problem := _type_problem(value, get(config, field)):
            raise UserError(f"config.{field}: {problem}")
    for field, allowed in CHOICES.items():
        _check_choice(field, get(config, field), allowed)
    for role in config.cycle.stop_gradient:
        _check_choice("cycle.stop_gradient", role, STOP_GRADIENT)
    for writer in config.writers:
        _check_choice("writers", writer, WRITERS)
    for field, (low, high) in BOUNDS.items():
        if not low <= get(config, field) <= high:  # also if it is NaN
            bounds = " to ".join(f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (low, high))
            raise UserError(f"config.{field}: {_shown(get(config, field))} must be from {bounds}")
    _check_lists(config)
    if not config.data.name:
        raise UserError("config.data.name: no dataset; give the name of a dataset that was built")
    if config.protocol == "cross" and not config.data.test_name:
        raise UserError("config.data.test_name: no dataset; protocol 'cross' needs one to test on")
    if uses_descriptions(config) and not config.text.corpus:
        raise UserError(
            f"config.text.corpus: ablation {config.ablation!r} needs descriptions; name a corpus, or "
            "set config.ablation='label'"
        )
    if uses_definitions(config) and not config.text.corpus:
        raise UserError(
            "config.text.corpus: config.text.definitions='always' needs a corpus with definitions; name "
            "one, or set 'never'"
        )
    _check_combinations(config)
    _check_divisible(config)


def _check_choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config.{field}: {_shown(value)} is not one of {', '.join(allowed)}")


def _type_problem(example: Any, value: Any) -> str:
    """Why `value` does not have the type of `example`, a default; "" if it has."""
    kinds: dict[type, tuple[str, tuple[type, ...]]] = {
        bool: ("neither True nor False", (bool,)),
        int: ("not a whole number", (int,)),
        float: ("not a number", (float, int)),
        str: ("not text", (str,)),
        list: ("not a list", (list, tuple)),
        type(None): ("not text", (str, type(None))),
    }
    problem, allowed = kinds[type(example)]
    if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(example, bool):
        return f"{_shown(value)} is {problem}"
    if isinstance(value, str) and (len(value) > MAX_CHARACTERS or "\0" in value):
        return f"{_shown(value)} has a NUL character or more than {MAX_CHARACTERS:,} characters"
    if isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        return f"{_shown(value)} has more than {MAX_ITEMS:,} elements"
    return ""


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_lists(config: ConfigDict) -> None:
    """Checks the elements of fields that are lists."""
    for template in config.text.templates:
        # One placeholder and nothing else that str.format would interpret.
        if (
            not isinstance(template, str)
            or [template.count(x) for x in ("{}", "{", "}")] != [1] * 3
        ):
            raise UserError(
                f"config.text.templates: {_shown(template)} must be text with one {{}}, the place of "
                "the action's name, and no other braces"
            )
    if not config.text.templates:
        raise UserError("config.text.templates: no template; give at least one, e.g. ('{}',)")
    for field, low in (("video_tower.mean", -1e6), ("video_tower.std", 1e-6)):
        value = get(config, field)
        if len(value) != 3 or not all(_is_number(x) and low <= x <= 1e6 for x in value):
            raise UserError(
                f"config.{field}: {_shown(value)} must be three numbers from {low:g} to 1e+06"
            )
    for row in config.optimizer.learning_rate_multipliers:
        if not (_is_pair(row) and _is_number(row[1]) and 0 <= row[1] <= 1e6):
            raise UserError(
                f"config.optimizer.learning_rate_multipliers: {_shown(row)} must be (regular "
                "expression, factor from 0 to 1e+06)"
            )
        _check_expression("optimizer.learning_rate_multipliers", row[0])
    axes = (None, "data", "fsdp", "tensor")
    for row in config.mesh.rules:
        if not (
            _is_pair(row) and isinstance(row[1], tuple | list) and all(x in axes for x in row[1])
        ):
            raise UserError(
                f"config.mesh.rules: {_shown(row)} must be (regular expression, an axis of the mesh or "
                "None for each dimension)"
            )
        _check_expression("mesh.rules", row[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(row: Any) -> bool:
    return isinstance(row, tuple | list) and len(row) == 2 and isinstance(row[0], str)


def _check_expression(field: str, expression: str) -> None:
    """Checks that a regular expression compiles, and that Python matches it to a path in short time.

    Python tries all ways to match. If no group is repeated, their number is at most the product of
    the numbers of choices: about 64 for each repetition (the length of a path), 2 for each `?`, and
    the number of branches of each group.
    """
    count = expression.count
    bars, groups = count("|"), max(count("("), 1)
    ways = 6 * sum(map(count, "*+{")) + count("?") + groups * math.log2(1 + bars / groups)
    repeated_group = re.search(r"\)[*+{]", expression)
    if ways > math.log2(MAX_WAYS) or repeated_group or len(expression) > MAX_CHARACTERS:
        raise UserError(
            f"config.{field}: the regular expression {_shown(expression)} could take very long to "
            "match; repeat no group, use at most three of * + {, and few of | ?"
        )
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"config.{field}: {_shown(expression)} is not a regular expression: {error}"
        ) from error


def _check_combinations(config: ConfigDict) -> None:
    data, text, video = config.data, config.text, config.video_tower
    published = video.weights or config.text_tower.weights
    closed_form = config.alignment != "learned"
    has_features = video.kind == "features" and config.text_tower.trainable == "none"
    frozen = config.protocol == "frozen"
    problems = {
        "protocol: 'frozen' tests published towers as they are; set config.optimizer.steps=0, "
        "config.alignment='learned', an ablation without a cycle, weights of both towers and "
        "config.video_tower.temporal other than 'blocks'": frozen
        and (
            config.optimizer.steps > 0
            or closed_form
            or uses_cycle(config)
            or not (video.weights and config.text_tower.weights)
            or video.temporal == "blocks"
        ),
        "eval.every: 0, so there are no evaluations to choose the best step or to stop by; set it, or "
        "config.eval.keep_best=False and config.eval.patience=0": not config.eval.every
        and (config.eval.keep_best or config.eval.patience),
        "eval.every: nothing is trained; set 0": config.eval.every and not training_steps(config),
        "optimizer.steps: 0 steps are for config.protocol='frozen'": not frozen
        and not closed_form
        and not config.optimizer.steps,
        f"video_tower: a clip of {video.frames} frames of {video.size} x {video.size} pixels has more "
        f"than {MAX_CLIP:,} bytes": 3 * video.frames * video.size**2 > MAX_CLIP,
        "mesh: an axis of 0 devices; use 1, or -1 for all remaining devices": 0
        in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor),
        f"model.tau_min: {config.model.tau_min} is more than tau_max, {config.model.tau_max}": (
            config.model.tau_min > config.model.tau_max
        ),
        **{
            f"{field} needs stored features and a frozen text tower; set "
            "config.video_tower.kind='features' and config.text_tower.trainable='none'": is_set
            for field, is_set in {
                f"alignment: {config.alignment!r}": closed_form and not has_features,
                "model.centre: it": config.model.centre and not has_features,
                "eval.ridge: it": config.eval.ridge and not has_features,
            }.items()
        },
        "model.start: 'ridge' needs config.model.centre=True, config.video_tower.linear=True and "
        "config.model.dim equal to config.video_tower.feature_dim": config.model.start == "ridge"
        and not (config.model.centre and video.linear and config.model.dim == video.feature_dim),
        f"alignment: {config.alignment!r} has no optimizer.microbatches, model.lambda_invariant, "
        "cycle.heads and cycle.stop_gradient; leave them at their defaults": closed_form
        and (
            config.optimizer.microbatches > 1
            or config.model.lambda_invariant
            or config.cycle.heads > 1
            or config.cycle.stop_gradient
        ),
        "ridge.weights: must be three numbers above 0": (
            len(config.ridge.weights) != 3 or min(config.ridge.weights) <= 0
        ),
        "eval.interpolate: there are no published weights to interpolate with; set "
        "config.video_tower.weights or config.text_tower.weights": (
            config.eval.interpolate and not published
        ),
        "text.tokenizer: published weights need their own tokenizer; name it": (
            config.text_tower.weights and not text.tokenizer
        ),
        f"text.tokenizer_style: {text.tokenizer_style!r} needs a published tokenizer; name one as "
        "config.text.tokenizer, or set 'own'": text.tokenizer_style != "own" and not text.tokenizer,
        "text_tower.pool: 'eos' needs a tokenizer whose end mark has the highest id; set "
        "config.text.tokenizer_style='clip', or another pool": (
            config.text_tower.pool == "eos" and text.tokenizer_style != "clip"
        ),
        "video_tower.rope: rotary positions need a multiple of 4 values in each head; change "
        "config.video_tower.heads": video.rope and video.width % (4 * video.heads),
        "video_tower.pool: 'cls' pools one frame, and video_tower.temporal='tokens' pools all; set "
        "'map', 'wide_map' or 'mean'": video.temporal == "tokens" and video.pool == "cls",
        "data.views: several views differ only with config.data.sampling='dense'": (
            data.views > 1 and data.sampling != "dense"
        ),
        "model.lambda_invariant: L_invariant classifies all seen classes, and an episode has half of "
        "them; choose another config.cycle.pool": (
            config.model.lambda_invariant and config.cycle.pool == "episodic"
        ),
    }
    for problem, is_true in problems.items():
        if is_true:
            raise UserError(f"config.{problem}")


def _check_divisible(config: ConfigDict) -> None:
    pairs = [
        ("data.batch", "optimizer.microbatches"),
        ("text_tower.width", "text_tower.heads"),
        ("model.dim", "cycle.heads"),
    ]
    if config.video_tower.kind == "video":
        pairs += [
            ("video_tower.size", "video_tower.patch"),
            ("video_tower.frames", "video_tower.tubelet"),
            ("video_tower.width", "video_tower.heads"),
        ]
        if config.video_tower.pool_heads:
            pairs += [("video_tower.width", "video_tower.pool_heads")]
    for field, divisor in pairs:
        if get(config, field) % get(config, divisor):
            raise UserError(
                f"config.{field}: {get(config, field)} is not a multiple of {divisor}, "
                f"{get(config, divisor)}"
            )


# Fields that version 2 renamed: old name, new name.
RENAMED_SECTIONS = {"video": "video_tower", "tower_text": "text_tower"}
RENAMED_FIELDS = {
    "keep": "keep_checkpoints",
    "data.tested": "data.test_name",
    "data.tested_splits": "data.test_splits",
    "data.overlap": "data.shared_classes",
    "text.style": "text.tokenizer_style",
    "text.shuffle": "text.shuffle_descriptions",
    "text.weights": "text_tower.weights",
    "video_tower.trains": "video_tower.trainable",
    "video_tower.cap": "video_tower.attention_logit_cap",
    "video_tower.epsilon": "video_tower.norm_epsilon",
    "video_tower.features": "video_tower.feature_dim",
    "text_tower.trains": "text_tower.trainable",
    "text_tower.cap": "text_tower.attention_logit_cap",
    "text_tower.epsilon": "text_tower.norm_epsilon",
    "cycle.frozen": "cycle.stop_gradient",
    "cycle.learned": "cycle.learned_attention",
    "optimizer.rate": "optimizer.learning_rate",
    "optimizer.final_rate": "optimizer.final_learning_rate_ratio",
    "optimizer.clip": "optimizer.clip_norm",
    "optimizer.groups": "optimizer.learning_rate_multipliers",
    "optimizer.accumulate": "optimizer.microbatches",
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as `{"data.batch": 64, ...}`, with lists for tuples, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat


DEFAULTS = flatten(default().to_dict())


def migrate(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a stored config to the fields of this version; returns it flat, as `flatten` does.

    Fields that did not exist in the stored version get their defaults.

    Raises:
      UserError: it is of a later version.
    """
    version = stored.get("version", 1)
    if version not in (1, VERSION):
        raise UserError(
            f"the config has version {_shown(version)}, this coco_jax reads up to {VERSION}; update "
            "coco_jax"
        )
    flat = {}
    for field, value in flatten(stored).items():
        section, dot, name = field.partition(".")
        if version == 1:
            field = RENAMED_SECTIONS.get(section, section) + dot + name if dot else field
            field = RENAMED_FIELDS.get(field, field)
        flat[field] = value
    return DEFAULTS | flat | {"version": VERSION}


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str] = FREE
) -> list[str]:
    """Lists `field: old -> new` for every changed field, except those that start with one of `free`.

    Args:
      old: a config, as this version or an earlier one stored it.
      new: another config.
      free: prefixes of fields to ignore; by default those that do not affect the result of a resumed
        run.
    """
    a, b = migrate(old), migrate(new)
    if "version" not in old and not b["text.tokenizer"]:
        # Version 1 stored the size of the trained tokenizer instead of the configured vocabulary.
        b["text.vocabulary"] = a["text.vocabulary"]
    return [
        f"{name}: {a.get(name)} -> {b.get(name)}"
        for name in sorted(a | b)
        if a.get(name) != b.get(name) and not name.startswith(tuple(free))
    ]


def load_stored(stored: Mapping[str, Any], where: str) -> ConfigDict:
    """The config that a run stored, migrated to this version and checked.

    Args:
      stored: the object of its config.json.
      where: the file, for messages.

    Raises:
      UserError: it has unknown fields, values of a wrong type, or is of a later version.
    """
    config = default()
    try:
        for field, value in migrate(stored).items():
            _set_stored(config, field, value)
        validate(config)
    except (RecursionError, OverflowError) as error:
        raise UserError(f"{where}: nested too deeply, or a number is too large") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return config


def _set_stored(config: ConfigDict, field: str, value: Any) -> None:
    if field not in DEFAULTS:
        raise UserError(no_such_field(field))
    if problem := _type_problem(DEFAULTS[field], value):
        raise UserError(f"config.{field}: {problem}")
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = _tuples(value)


def no_such_field(field: str) -> str:
    """The error message for a field that does not exist, with the nearest existing name."""
    near = difflib.get_close_matches(field, DEFAULTS, 1, cutoff=0.5)
    hint = f"; did you mean config.{near[0]}?" if near else ""
    return f"there is no field config.{field}{hint}"


def _tuples(value: Any) -> Any:
    """Converts the lists of JSON to the tuples of a config."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
