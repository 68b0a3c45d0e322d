"""The data of a run: videos of its class split, and the texts of every class as token ids."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from coco_jax.config import uses_cycle, uses_definitions, uses_descriptions, validate
from coco_jax.data import action_names
from coco_jax.data import dataset as datasets
from coco_jax.data.corpus import Corpus, DescriptionSampler, check_described, load_corpus
from coco_jax.data.splits import LeakError, Plan, check_texts, class_split, make_plan
from coco_jax.data.tokenizers import Tokenizer, cached_tokenizer, published_tokenizer
from coco_jax.errors import UserError


def label_texts(
    config: ConfigDict, names: Sequence[str], definitions: Mapping[str, Sequence[str]]
) -> list[str]:
    """The P texts of each class's label, class by class.

    These are its name in every prompt template; then, if the ablation uses definitions, the first
    definition of the class, or the name in the first template if it has none.
    """
    texts = []
    for name in names:
        prompts = [template.format(name) for template in config.text.templates]
        if uses_definitions(config):
            prompts.append((definitions.get(name) or prompts)[0])
        texts += prompts
    return texts


def label_ids(
    config: ConfigDict,
    tokenizer: Tokenizer,
    names: Sequence[str],
    definitions: Mapping[str, Sequence[str]],
) -> Int[np.ndarray, "K P L"]:
    """Token ids of `label_texts`."""
    count = len(config.text.templates) + uses_definitions(config)
    texts = label_texts(config, names, definitions)
    return tokenizer(texts).reshape(len(names), count, tokenizer.length)


@dataclasses.dataclass(frozen=True)
class Task:
    """The videos and texts of a run.

    There are three groups of classes: "seen", "unseen", and "pool". The pool has the classes that the
    cycle uses as unseen ones; it is empty without a cycle and for the episodic pool.
    """

    config: ConfigDict
    dataset: datasets.Dataset
    plan: Plan
    tokenizer: Tokenizer
    # Of each group: token ids `K P L`, or features of a frozen text tower `K P W`.
    label_ids: dict[str, np.ndarray]
    descriptions: dict[str, DescriptionSampler | None]  # of each group; None without descriptions
    removed_descriptions: int  # how many were collected from tested videos
    classes: dict[str, list[str]]  # display names of "seen", "pool" and "unseen"
    corpus: Corpus  # without descriptions of tested videos
    whole_corpus: Corpus  # as it was built
    # The features `U N W` of the pool in each block, for the closed form; the only texts of its steps.
    pool: np.ndarray | None = None

    @property
    def seen_label(self) -> Int[np.ndarray, " N"]:
        """The index of each record's class among the seen classes, or -1."""
        return self._index(self.plan.seen)

    @property
    def candidate_label(self) -> Int[np.ndarray, " N"]:
        """The index of each record's class among the candidates: seen, then unseen classes; or -1."""
        return self._index(self.plan.seen + self.plan.unseen)

    def _index(self, names: tuple[str, ...]) -> Int[np.ndarray, " N"]:
        index_K = np.full(len(self.dataset.classes), -1)
        index_K[datasets.select(self.dataset.classes, names)] = np.arange(len(names))
        return index_K[self.dataset.records.labels]

    def step_texts(self, step: int) -> dict[str, np.ndarray]:
        """The text part of a batch, which depends only on the seed and the step."""
        if self.pool is not None:
            return {"pool": self.pool}
        rng = np.random.default_rng([self.config.seed, step])
        count, length = self.config.text.descriptions, self.config.text.length

        def draw(group: str) -> np.ndarray:
            sampler = self.descriptions[group]
            return sampler.draw(rng, count) if sampler else np.zeros((0, count, length), np.int32)

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
        """Labels, descriptions and their mask for the candidates in evaluation, seen classes first."""
        labels_KPL = np.concatenate([self.label_ids["seen"], self.label_ids["unseen"]])
        samplers = [s for group in ("seen", "unseen") if (s := self.descriptions[group])]
        if not samplers:
            return labels_KPL, None, None
        count = self.config.text.eval_descriptions
        ids, masks = zip(*(sampler.first(count) for sampler in samplers), strict=True)
        return labels_KPL, np.concatenate(ids), np.concatenate(masks)


def make_task(config: ConfigDict) -> Task:
    """Opens the data of a run.

    `config` is not changed; `Task.config` is a copy with the size of the tokenizer and, for the closed
    form, the number of seen classes.

    Raises:
      UserError: the config is not valid, or data is missing or does not fit it.
      LeakError: a rule of zero-shot evaluation is broken.
    """
    validate(config)
    dataset = datasets.open_dataset(config)
    plan = make_plan(dataset, config)
    _check_videos(dataset, plan, config.split)
    whole, corpus, removed = _open_corpus(config, dataset, plan)
    matches = corpus.matches(dataset.display_names(dataset.classes))
    classes = _choose_classes(config, dataset, plan, corpus, set(matches.values()))
    corpus = corpus.with_names(matches)
    config, tokenizer = _resolve_tokenizer(config, classes, corpus)
    if config.alignment != "learned":
        config.ridge.seen_classes = len(plan.seen)
    labels = {
        group: label_ids(config, tokenizer, names, corpus.definitions)
        for group, names in classes.items()
    }
    samplers = _sample_descriptions(config, classes, corpus, tokenizer)
    return Task(config, dataset, plan, tokenizer, labels, samplers, removed, classes, corpus, whole)


def _check_videos(dataset: datasets.Dataset, plan: Plan, split: str) -> None:
    for name, indices in (("train", plan.train), ("test", plan.test_unseen)):
        if not len(indices) and (plan.seen if name == "train" else plan.unseen):
            raise UserError(f"dataset {dataset.name!r} has no {name} video in split {split!r}")
    tested = {dataset.classes[i] for i in dataset.records.labels[plan.test_unseen]}
    empty = {name for given in dataset.class_splits.values() for name in given.get("empty", ())}
    if missing := sorted(set(plan.unseen) - tested - empty):
        raise UserError(
            f"dataset {dataset.name!r} has no video of the unseen classes {', '.join(missing)}; add "
            "some, or remove these classes from the split, and build it again"
        )


def _tested_videos(dataset: datasets.Dataset, plan: Plan) -> list[str]:
    return [dataset.records.video_ids[i] for i in (*plan.test_unseen, *plan.test_seen)]


def _open_corpus(
    config: ConfigDict, dataset: datasets.Dataset, plan: Plan
) -> tuple[Corpus, Corpus, int]:
    """The corpus, the part that is used, and how many descriptions of tested videos were removed."""
    if not config.text.corpus:
        return Corpus({}, {}), Corpus({}, {}), 0
    whole = load_corpus(config.text.corpus, config.data.dir)
    corpus, removed = whole.without_videos(_tested_videos(dataset, plan))
    if config.text.shuffle_descriptions:
        corpus = corpus.shuffled(config.seed)
    used = (name for names in corpus.video_ids.values() for name in names)
    check_texts(used, _tested_videos(dataset, plan))
    return whole, corpus, removed


def _choose_classes(
    config: ConfigDict, dataset: datasets.Dataset, plan: Plan, corpus: Corpus, matched: set[str]
) -> dict[str, list[str]]:
    """Display names of the classes in each group: "seen", "unseen", and the "pool" of the cycle.

    `matched` has the actions of the corpus that are classes of the dataset.
    """
    pool = []
    if uses_cycle(config) and config.cycle.pool == "unseen":
        pool = dataset.display_names(plan.unseen)
        if not pool:
            raise UserError(
                f"config.cycle.pool: split {config.split!r} has no unseen classes; use 'auxiliary' or "
                "'episodic'"
            )
    elif uses_cycle(config) and config.cycle.pool == "auxiliary":
        # Compared in normal form: "push up" in the corpus is the class "pushup" of the dataset.
        taken = {action_names.normal(name) for name in dataset.display_names(dataset.classes)}
        pool = sorted(
            name
            for name in corpus.texts
            if name not in matched and action_names.normal(name) not in taken
        )
        if not pool:
            raise UserError(
                f"config.cycle.pool: corpus {config.text.corpus!r} has only actions that are "
                "classes of the dataset; use 'unseen' or 'episodic'"
            )
    return {
        "seen": dataset.display_names(plan.seen),
        "pool": pool,
        "unseen": dataset.display_names(plan.unseen),
    }


def _resolve_tokenizer(
    config: ConfigDict, classes: dict[str, list[str]], corpus: Corpus
) -> tuple[ConfigDict, Tokenizer]:
    """A copy of the config with the tokenizer's real vocabulary, and the tokenizer."""
    config = config.copy_and_resolve_references()
    text = config.text
    if text.tokenizer:
        style, length = text.tokenizer_style, text.length
        return config, published_tokenizer(text.tokenizer, style, length, text.vocabulary)
    # Train it only on texts that training uses: with an inductive pool, no texts of unseen classes.
    names = [*classes["seen"], *classes["pool"]]
    texts = label_texts(config, names, corpus.definitions)
    texts += [description for name in names for description in corpus.texts.get(name, ())]
    folder = f"{config.data.dir}/tokenizers"
    tokenizer = cached_tokenizer(texts, text.vocabulary, text.length, folder)
    text.trained_vocabulary = tokenizer.size
    return config, tokenizer


def _sample_descriptions(
    config: ConfigDict, classes: dict[str, list[str]], corpus: Corpus, tokenizer: Tokenizer
) -> dict[str, DescriptionSampler | None]:
    """A sampler of token ids for each group; None without descriptions or with a frozen text tower.

    For a frozen tower, training/text_features.py makes samplers of features.
    """
    samplers: dict[str, DescriptionSampler | None] = dict.fromkeys(classes)
    if uses_descriptions(config):
        for group, names in classes.items():
            check_described(corpus.texts, names)
            if config.text_tower.trainable != "none":
                samplers[group] = DescriptionSampler.of_tokens(corpus.texts, names, tokenizer)
    return samplers


def validation_task(task: Task) -> Task:
    """The videos and texts of the validation classes, which are the only candidates.

    In the protocol `validation` they are the tested classes. In the protocol `test` the class split must
    have validation classes that are not trained on, as Kinetics-ZSAR's have.

    Raises:
      UserError: there are no such classes.
    """
    config, dataset = task.config, task.dataset
    names = _validation_classes(task)
    plan = Plan(
        seen=(),
        unseen=names,
        train=np.zeros(0, np.int64),
        test_unseen=np.flatnonzero(
            np.isin(dataset.records.labels, datasets.select(dataset.classes, names))
        ),
        test_seen=np.zeros(0, np.int64),
    )
    _check_videos(dataset, plan, config.split)
    corpus, removed = task.corpus.without_videos(_tested_videos(dataset, plan))
    classes = {"seen": [], "pool": [], "unseen": dataset.display_names(names)}
    labels = {
        group: label_ids(config, task.tokenizer, shown, corpus.definitions)
        for group, shown in classes.items()
    }
    return dataclasses.replace(
        task,
        plan=plan,
        label_ids=labels,
        descriptions=_sample_descriptions(config, classes, corpus, task.tokenizer),
        removed_descriptions=removed,
        classes=classes,
        corpus=corpus,
    )


def _validation_classes(task: Task) -> tuple[str, ...]:
    config, plan = task.config, task.plan
    if config.protocol == "validation":
        return plan.unseen
    advice = "set config.protocol='validation', or config.eval.every=0"
    if config.protocol != "test":
        raise UserError(
            f"config.eval.every: the protocol {config.protocol!r} has no validation classes; {advice}"
        )
    names = tuple(class_split(task.dataset, config.split).get("validation", ()))
    where = f"split {config.split!r} of {task.dataset.name}"
    if not names:
        raise UserError(f"config.eval.every: {where} has no validation classes; {advice}")
    if trained := sorted(set(names) & set(plan.seen)):
        raise UserError(
            f"config.eval.every: {where} trains on its validation classes, e.g. {trained[0]!r}; {advice}"
        )
    if tested := sorted(set(names) & set(plan.unseen)):
        raise LeakError(f"validation classes are tested: {tested[:5]}")
    return names
