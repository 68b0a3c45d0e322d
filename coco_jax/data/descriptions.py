"""The description corpus: which texts a class has, and M of them for each step."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from coco_jax.data.dataset import open_builder
from coco_jax.data.text import Tokenizer
from coco_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Descriptions by action, in the corpus's order, and the videos some were collected from."""

    texts: Mapping[str, tuple[str, ...]]
    video_ids: Mapping[str, tuple[str, ...]]  # "" where unknown; beside `texts`

    def without_videos(self, excluded: Iterable[str]) -> tuple["Corpus", int]:
        """The corpus less the descriptions collected from these videos, and how many those were."""
        excluded = set(excluded) - {""}
        keep = {
            action: [i for i, video in enumerate(videos) if video not in excluded]
            for action, videos in self.video_ids.items()
        }
        left = Corpus(
            {a: tuple(self.texts[a][i] for i in kept) for a, kept in keep.items()},
            {a: tuple(self.video_ids[a][i] for i in kept) for a, kept in keep.items()},
        )
        return left, self.count - left.count

    @property
    def count(self) -> int:
        """How many descriptions there are."""
        return sum(map(len, self.texts.values()))

    def shuffled(self, seed: int) -> "Corpus":
        """A control: every action gets the descriptions of another one."""
        names = sorted(self.texts)
        order = np.random.default_rng(seed).permutation(len(names))
        # A single cycle through a random order: no action keeps its own.
        other = {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
        return Corpus(
            {name: self.texts[other[name]] for name in names},
            {name: self.video_ids[other[name]] for name in names},
        )


def load_corpus(name: str, data_dir: str) -> Corpus:
    """Reads a corpus that `tfds_builders/actionhub` built.

    Raises:
      UserError: it is not there.
    """
    texts: dict[str, list[str]] = {}
    videos: dict[str, list[str]] = {}
    for row in open_builder(name, data_dir).as_data_source("train"):
        action = row["action"].decode()
        texts.setdefault(action, []).append(row["description"].decode())
        videos.setdefault(action, []).append(row["video_id"].decode())
    return Corpus({a: tuple(t) for a, t in texts.items()}, {a: tuple(v) for a, v in videos.items()})


class Bank:
    """Token ids of the descriptions of some classes, ready to be drawn from."""

    def __init__(
        self, texts: Mapping[str, Sequence[str]], classes: Sequence[str], tokenizer: Tokenizer
    ):
        """Tokenizes once.

        Raises:
          UserError: a class has no description.
        """
        bare = [name for name in classes if not texts.get(name)]
        if bare:
            shown = ", ".join(repr(name) for name in bare[:5]) + (" ..." if len(bare) > 5 else "")
            raise UserError(
                f"{len(bare)} of {len(classes)} classes have no description in the corpus: {shown}; "
                "add some, or train config.ablation='label'"
            )
        counts_K = np.array([len(texts[name]) for name in classes], np.int64)
        self.counts_K = counts_K
        self.starts_K = np.cumsum(counts_K) - counts_K
        self.ids_NL = (
            np.concatenate([tokenizer(texts[name]) for name in classes])
            if len(classes)
            else np.zeros((0, tokenizer.length), np.int32)
        )

    def draw(self, rng: np.random.Generator, count: int) -> Int[np.ndarray, "K M L"]:
        """`count` descriptions of each class, with replacement."""
        picks_KM = rng.integers(self.counts_K[:, None], size=(len(self.counts_K), count))
        return self.ids_NL[self.starts_K[:, None] + picks_KM]

    def first(self, count: int) -> tuple[Int[np.ndarray, "K M L"], Bool[np.ndarray, "K M"]]:
        """The first `count` descriptions of each class, and which of them exist."""
        places_KM = np.broadcast_to(np.arange(count), (len(self.counts_K), count))
        shown_KM = places_KM < self.counts_K[:, None]
        return self.ids_NL[self.starts_K[:, None] + np.where(shown_KM, places_KM, 0)], shown_KM
