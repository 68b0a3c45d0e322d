"""The description corpus: the texts of each class, and random draws from them for each step."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from coco_jax.data import action_names
from coco_jax.data.dataset import normal_id, open_builder
from coco_jax.data.tokenizers import Tokenizer
from coco_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Descriptions by action, in the order of the corpus, and the ids of their source videos.

    `texts` are what `DescriptionSampler` draws from: captions. `definitions`, which say what an action
    is and belong to no video, are kept apart; few corpora have any.
    """

    texts: Mapping[str, tuple[str, ...]]
    video_ids: Mapping[str, tuple[str, ...]]  # "" where unknown; beside `texts`
    definitions: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def without_videos(self, excluded: Iterable[str]) -> tuple["Corpus", int]:
        """Removes descriptions that were collected from these videos.

        Ids are compared in their normal form (`dataset.normal_id`).

        Returns:
          The remaining corpus, and the number of removed descriptions.
        """
        excluded = set(map(normal_id, excluded)) - {""}
        keep = {
            action: [i for i, video in enumerate(videos) if normal_id(video) not in excluded]
            for action, videos in self.video_ids.items()
        }
        left = Corpus(
            {a: tuple(self.texts[a][i] for i in kept) for a, kept in keep.items()},
            {a: tuple(self.video_ids[a][i] for i in kept) for a, kept in keep.items()},
            self.definitions,
        )
        return left, self.count - left.count

    @property
    def count(self) -> int:
        """The number of descriptions."""
        return sum(map(len, self.texts.values()))

    def sha256(self) -> str:
        """A checksum of all texts by action; it does not depend on the order of the actions."""
        digest = hashlib.sha256()
        for kind in (self.texts, self.definitions):
            for action in sorted(kind):
                digest.update(json.dumps([action, *kind[action]]).encode() + b"\n")
            digest.update(b"\n")
        return digest.hexdigest()

    def matches(self, names: Iterable[str]) -> dict[str, str]:
        """The action that each name means, however it is spelled: "PushUps" is "push up".

        The rules are those of `action_names.Classes.hits`; a name that means no action, or several, is
        left out.
        """
        actions = action_names.Classes(self.texts)
        hits = {name: actions.hits(name) for name in dict.fromkeys(names)}
        return {name: found[0] for name, found in hits.items() if len(found) == 1}

    def with_names(self, matches: Mapping[str, str]) -> "Corpus":
        """Adds the texts of actions under further names, `{name: action}`."""

        def added(by_action: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
            more = {name: by_action[a] for name, a in matches.items() if a in by_action}
            return {**by_action, **more}

        return Corpus(added(self.texts), added(self.video_ids), added(self.definitions))

    def shuffled(self, seed: int) -> "Corpus":
        """Gives every action the descriptions and definitions of another one, as a control."""
        names = sorted(self.texts)
        order = np.random.default_rng(seed).permutation(len(names))
        # A cyclic shift of a random order: no action keeps its own descriptions.
        other = {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
        return Corpus(
            {name: self.texts[other[name]] for name in names},
            {name: self.video_ids[other[name]] for name in names},
            {
                name: self.definitions[other[name]]
                for name in names
                if other[name] in self.definitions
            },
        )


@functools.lru_cache(maxsize=1)
def load_corpus(name: str, data_dir: str) -> Corpus:
    """Reads a corpus that `tfds_builders/actionhub` built.

    Raises:
      UserError: there is no such corpus in `data_dir`.
    """
    texts: dict[str, list[str]] = {}
    videos: dict[str, list[str]] = {}
    definitions: dict[str, list[str]] = {}
    for row in open_builder(name, data_dir).as_data_source("train"):
        action, text, video = (row[n].decode() for n in ("action", "description", "video_id"))
        # Corpora of version 1.0.0 have no kinds. A text on one video must go where that video is tested,
        # so it is a caption.
        if row.get("kind", b"caption") == b"definition" and not video:
            definitions.setdefault(action, []).append(text)
        else:
            texts.setdefault(action, []).append(text)
            videos.setdefault(action, []).append(video)
    return Corpus(
        {action: tuple(found) for action, found in texts.items()},
        {action: tuple(found) for action, found in videos.items()},
        {action: tuple(found) for action, found in definitions.items()},
    )


class DescriptionSampler:
    """Draws descriptions of some classes, as token ids or as features."""

    def __init__(self, rows_N: np.ndarray, counts_K: Int[np.ndarray, " K"]):
        """Stores the rows.

        Args:
          rows_N: int32 token ids `N L` or bfloat16 features `N W`, ordered by class.
          counts_K: number of rows of each class.
        """
        self.rows_N, self.counts_K = rows_N, counts_K
        self.starts_K = np.cumsum(counts_K) - counts_K

    @classmethod
    def of_tokens(
        cls, texts: Mapping[str, Sequence[str]], classes: Sequence[str], tokenizer: Tokenizer
    ) -> "DescriptionSampler":
        """Tokenizes the descriptions of `classes` once.

        Raises:
          UserError: a class has no description.
        """
        check_described(texts, classes)
        ids = [tokenizer(texts[name]) for name in classes]
        empty_0L = np.zeros((0, tokenizer.length), np.int32)
        return cls(np.concatenate([empty_0L, *ids]), np.array([len(x) for x in ids], np.int64))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` descriptions of each class, with replacement: `K M L` ids or `K M W` features."""
        picks_KM = rng.integers(self.counts_K[:, None], size=(len(self.counts_K), count))
        return self._take(self.starts_K[:, None] + picks_KM)

    def first(self, count: int) -> tuple[np.ndarray, Bool[np.ndarray, "K M"]]:
        """The first `count` descriptions of each class, and which of them exist."""
        places_KM = np.broadcast_to(np.arange(count), (len(self.counts_K), count))
        mask_KM = places_KM < self.counts_K[:, None]
        return self._take(self.starts_K[:, None] + np.where(mask_KM, places_KM, 0)), mask_KM

    def _take(self, places_KM: Int[np.ndarray, "K M"]) -> np.ndarray:
        return self.rows_N[places_KM]


def check_described(texts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> None:
    """Checks that every class has a description.

    Raises:
      UserError: a class has none; the message names up to five such classes.
    """
    bare = [name for name in classes if not texts.get(name)]
    if bare:
        shown = ", ".join(repr(name) for name in bare[:5]) + (" ..." if len(bare) > 5 else "")
        raise UserError(
            f"{len(bare)} of {len(classes)} classes have no description in the corpus: {shown}; "
            "add some, or train config.ablation='label'"
        )
