"""What one run reads: videos by its plan, and texts as token ids for the step and the evaluation."""

import dataclasses
import re

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from coco_jax.config import ABLATIONS, POOLS, PROTOCOLS, TRAINS
from coco_jax.data import dataset as datasets
from coco_jax.data.corpus import Corpus, DescriptionSampler, check_described, load_corpus
from coco_jax.data.splits import Plan, check_texts, make_plan
from coco_jax.data.tokenizers import STYLES, Tokenizer, cached_tokenizer, published_tokenizer
from coco_jax.errors import UserError
from coco_jax.models.temporal import KINDS
from coco_jax.models.text import POOLS as TEXT_POOLS
from coco_jax.models.text import POSITIONS
from coco_jax.models.transformer import ACTIVATIONS, NORMS
from coco_jax.models.video import POOLS as VIDEO_POOLS

POSITIVE = (
    "data.batch", "data.crop", "data.views", "data.threads", "video_tower.frames", "video_tower.size", "video_tower.patch",
    "video_tower.tubelet", "video_tower.width", "video_tower.heads", "text_tower.width", "text_tower.heads", "text.length",
    "text.descriptions", "text.eval_descriptions", "model.dim", "model.tau", "model.tau_min",
    "model.tau_d", "cycle.heads", "cycle.tau_r", "optimizer.steps", "optimizer.microbatches",
    "optimizer.learning_rate", "lora.rank", "video_tower.norm_epsilon", "text_tower.norm_epsilon", "log_every",
    "checkpoint_every", "keep_checkpoints",
)  # fmt: skip


def label_ids(tokenizer: Tokenizer, names, templates) -> Int[np.ndarray, "K P L"]:
    """Token ids of every class name in every prompt template."""
    texts = [template.format(name) for name in names for template in templates]
    return tokenizer(texts).reshape(len(names), len(templates), tokenizer.length)


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset under a protocol, with the texts of all classes that take part."""

    config: ConfigDict
    dataset: datasets.Dataset
    plan: Plan
    tokenizer: Tokenizer
    pool: tuple[str, ...]  # classes that play "unseen" in the cycle; () if it needs no others
    # Token ids `K P L` of "seen", "pool", "unseen", or a frozen tower's features `K P W`.
    label_ids: dict[str, np.ndarray]
    banks: dict[
        str, DescriptionSampler | None
    ]  # of "seen", "pool", "unseen"; None without descriptions
    left_out: int  # descriptions that were collected from tested videos
    names: dict[str, list[str]]  # of "seen", "pool", "unseen", as texts call them
    corpus: Corpus

    @property
    def seen_label(self) -> Int[np.ndarray, " N"]:
        """For every record its index among the seen classes, or -1."""
        return self._index(self.plan.seen)

    @property
    def candidate_label(self) -> Int[np.ndarray, " N"]:
        """For every record its index among the candidates: seen classes first, then unseen."""
        return self._index(self.plan.seen + self.plan.unseen)

    def _index(self, names: tuple[str, ...]) -> Int[np.ndarray, " N"]:
        index_K = np.full(len(self.dataset.classes), -1)
        index_K[datasets.select(self.dataset.classes, names)] = np.arange(len(names))
        return index_K[self.dataset.records.labels]

    def step_texts(self, step: int) -> dict[str, np.ndarray]:
        """The text part of a batch: a pure function of the seed and the step."""
        rng = np.random.default_rng([self.config.seed, step])
        count, length = self.config.text.descriptions, self.config.text.length

        def draw(which: str) -> np.ndarray:
            bank = self.banks[which]
            return bank.draw(rng, count) if bank else np.zeros((0, count, length), np.int32)

        return {
            "label_ids": self.label_ids["seen"],
            "pool_label_ids": self.label_ids["pool"],
            "description_ids": draw("seen"),
            "pool_description_ids": draw("pool"),
            "episode": rng.permutation(len(self.plan.seen)).astype(np.int32),
        }

    def candidate_texts(
        self,
    ) -> tuple[np.ndarray, np.ndarray | None, Bool[np.ndarray, "K M"] | None]:
        """Labels and descriptions of the candidates, seen first, as the evaluation uses them."""
        labels_KPL = np.concatenate([self.label_ids["seen"], self.label_ids["unseen"]])
        banks = [bank for which in ("seen", "unseen") if (bank := self.banks[which])]
        if not banks:
            return labels_KPL, None, None
        ids, shown = zip(*(b.first(self.config.text.eval_descriptions) for b in banks), strict=True)
        return labels_KPL, np.concatenate(ids), np.concatenate(shown)


def validate(config: ConfigDict) -> None:
    """Checks what can be checked before anything is read.

    Raises:
      UserError: naming the field, its value, and what it may be.
    """
    for field, value, allowed in (
        ("ablation", config.ablation, ABLATIONS),
        ("protocol", config.protocol, PROTOCOLS),
        ("cycle.pool", config.cycle.pool, POOLS),
        ("cycle.form", config.cycle.form, ("squared", "contrastive")),
        ("video_tower.kind", config.video_tower.kind, ("video", "features")),
        ("data.shared_classes", config.data.shared_classes, ("keep", "drop")),
        ("data.sampling", config.data.sampling, ("random", "dense")),
        ("video_tower.pool", config.video_tower.pool, VIDEO_POOLS),
        ("video_tower.temporal", config.video_tower.temporal, KINDS),
        ("video_tower.trainable", config.video_tower.trainable, TRAINS),
        ("text_tower.trainable", config.text_tower.trainable, TRAINS),
        ("text.tokenizer_style", config.text.tokenizer_style, tuple(STYLES)),
        ("text_tower.norm", config.text_tower.norm, NORMS),
        ("text_tower.position", config.text_tower.position, POSITIONS),
        ("video_tower.activation", config.video_tower.activation, tuple(ACTIVATIONS)),
        ("text_tower.pool", config.text_tower.pool, TEXT_POOLS),
        ("text_tower.activation", config.text_tower.activation, tuple(ACTIVATIONS)),
        ("model.dtype", config.model.dtype, ("float32", "bfloat16", "float16")),
        *(
            ("cycle.stop_gradient", who, ("seen", "unseen", "target"))
            for who in config.cycle.stop_gradient
        ),
    ):
        if value not in allowed:
            raise UserError(f"config.{field}: {value!r} is not one of {', '.join(allowed)}")
    for field in POSITIVE:
        section, _, name = field.rpartition(".")
        value = (config[section] if section else config)[name]
        if not value > 0:
            raise UserError(f"config.{field}: {value} must be more than 0")
    if not 0 <= config.eval.interpolate <= 1:
        raise UserError(f"config.eval.interpolate: {config.eval.interpolate} is not from 0 to 1")
    if config.eval.interpolate and not (config.video_tower.weights or config.text_tower.weights):
        raise UserError(
            "config.eval.interpolate: there are no published weights to go back to; set "
            "config.video_tower.weights or config.text_tower.weights"
        )
    if config.text_tower.weights and not config.text.tokenizer:
        raise UserError(
            "config.text.tokenizer: published weights know the ids of their own tokenizer alone; name it"
        )
    if config.text.tokenizer_style != "own" and not config.text.tokenizer:
        raise UserError(
            f"config.text.tokenizer_style: {config.text.tokenizer_style!r} is of a published tokenizer; name one as "
            "config.text.tokenizer, or take 'own'"
        )
    if config.video_tower.temporal == "tokens" and config.video_tower.pool == "cls":
        raise UserError(
            "config.video_tower.pool: 'cls' is of one frame, and video.temporal='tokens' pools all; take "
            "'map', 'wide_map' or 'mean'"
        )
    if config.data.crop > 1:
        raise UserError(f"config.data.crop: {config.data.crop} is a share of the frame; at most 1")
    if config.data.views > 1 and config.data.sampling != "dense":
        raise UserError(
            "config.data.views: several views differ only with config.data.sampling='dense'"
        )
    if config.model.lambda_invariant and config.cycle.pool == "episodic":
        raise UserError(
            "config.model.lambda_invariant: L_invariant classifies all seen classes, and an episode "
            "holds half of them; choose another config.cycle.pool"
        )
    for expression, *_ in (*config.optimizer.learning_rate_multipliers, *config.mesh.rules):
        try:
            re.compile(expression)
        except re.error as error:
            raise UserError(f"config: {expression!r} is no regular expression: {error}") from error
    if not config.data.name:
        raise UserError("config.data.name: no dataset; name one that a builder here has built")
    if config.protocol == "cross" and not config.data.test_name:
        raise UserError(
            "config.data.test_name: no dataset; the protocol 'cross' tests on another one"
        )
    uses_texts = config.ablation in ("label+desc", "full")
    if uses_texts and not config.text.corpus:
        raise UserError(
            f"config.text.corpus: the ablation {config.ablation!r} needs descriptions; name a corpus, "
            "or set config.ablation='label'"
        )
    video, text, accumulate = config.video_tower, config.text_tower, config.optimizer.microbatches
    for field, value, divisor, what in (
        ("data.batch", config.data.batch, accumulate, "microbatches (optimizer.microbatches)"),
        ("video_tower.size", video.size, video.patch, "pixels a patch (video.patch)"),
        ("video_tower.frames", video.frames, video.tubelet, "frames a patch (video.tubelet)"),
        ("video_tower.width", video.width, video.heads, "heads (video.heads)"),
        ("text_tower.width", text.width, text.heads, "heads (text_tower.heads)"),
        ("model.dim", config.model.dim, config.cycle.heads, "heads (cycle.heads)"),
    ):
        if config.video_tower.kind == "features" and field.startswith("video_tower."):
            continue  # there is no transformer over pixels
        if value % divisor:
            raise UserError(f"config.{field}: {value} does not divide into {divisor} {what}")


def make_tokenizer(config: ConfigDict, known, corpus: Corpus) -> Tokenizer:
    """The text tower's published tokenizer, or one that learns from the texts of `known` classes.

    A learned one sets `config.text.vocabulary` to what it has.
    """
    text = config.text
    if text.tokenizer:
        return published_tokenizer(
            text.tokenizer, text.tokenizer_style, text.length, text.vocabulary
        )
    texts = [t.format(name) for name in known for t in text.templates]
    texts += [one for name in known for one in corpus.texts.get(name, ())]
    folder = f"{config.data.dir}/tokenizers"
    tokenizer = cached_tokenizer(texts, text.vocabulary, text.length, folder)
    text.vocabulary = tokenizer.size
    return tokenizer


def make_task(config: ConfigDict) -> Task:
    """Opens the data of a run; sets `config.text.vocabulary` to what a learned tokenizer has.

    Raises:
      UserError: data that is missing or does not fit the config.
      LeakError: a rule of zero-shot evaluation is broken.
    """
    validate(config)
    dataset = datasets.open_dataset(config)
    plan = make_plan(dataset, config)
    for name, indices in (("train", plan.train), ("test", plan.test_unseen)):
        if not len(indices):
            raise UserError(
                f"dataset {dataset.name!r} has no {name} video in split {config.split!r}"
            )

    bare = set(plan.unseen) - {dataset.classes[i] for i in dataset.records.labels[plan.test_unseen]}
    if bare:
        raise UserError(
            f"dataset {dataset.name!r} has no video of the unseen classes {', '.join(sorted(bare))}"
        )

    corpus, left_out = Corpus({}, {}), 0
    tested = [dataset.records.video_ids[i] for i in (*plan.test_unseen, *plan.test_seen)]
    if config.text.corpus:
        corpus = load_corpus(config.text.corpus, config.data.dir)
        corpus, left_out = corpus.without_videos(tested)
        if config.text.shuffle_descriptions:
            corpus = corpus.shuffled(config.seed)

    pool: tuple[str, ...] = ()
    if config.ablation in ("label+cycle", "full") and config.cycle.pool != "episodic":
        pool = plan.unseen
        if config.cycle.pool == "auxiliary":
            pool = tuple(sorted(set(corpus.texts) - set(dataset.display_names(dataset.classes))))
            if not pool:
                raise UserError(
                    f"config.cycle.pool: corpus {config.text.corpus!r} has no action beside the "
                    "dataset's classes; use 'unseen' or 'episodic'"
                )

    # Only texts that training may see teach the tokenizer: under an inductive pool not the unseen.
    known = dataset.display_names((*plan.seen, *pool))
    tokenizer = make_tokenizer(config, known, corpus)

    members = {"seen": plan.seen, "pool": pool, "unseen": plan.unseen}
    groups = {which: dataset.display_names(names) for which, names in members.items()}
    labels = {k: label_ids(tokenizer, names, config.text.templates) for k, names in groups.items()}
    banks: dict[str, DescriptionSampler | None] = dict.fromkeys(groups)
    if config.ablation in ("label+desc", "full"):
        if config.text_tower.trainable == "none":  # `frozen.py` opens them, once there is a tower
            for chosen in groups.values():
                check_described(corpus.texts, chosen)
        else:
            banks = {
                k: DescriptionSampler.of_tokens(corpus.texts, c, tokenizer)
                for k, c in groups.items()
            }
        names = (*known, *groups["unseen"])
        used = {video for name in names for video in corpus.video_ids.get(name, ())}
        check_texts(used, tested)
    return Task(config, dataset, plan, tokenizer, pool, labels, banks, left_out, groups, corpus)
