"""Names actions in real videos without training: I3D, MPNet, and the starter corpus.

I3D's linear classifier has one column for each of the 400 Kinetics actions. The column, centred and of
unit length, is the action's prototype. From the texts of an action (name, definition, captions; MPNet's
features) a kernel ridge regression, fitted on these 400 pairs, predicts the prototype of any action. A
video is compared with the predicted prototypes of the candidates. Like CoCo (docs/method.md), this
aligns videos with labels and descriptions, but the regression is solved in closed form. Numbers:
docs/pretrained.md.
"""

import dataclasses
import functools
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from coco_jax import presets
from coco_jax.config import default
from coco_jax.data import action_names
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.errors import UserError
from coco_jax.models import ridge as closed_form
from coco_jax.recognition import cards
from coco_jax.recognition import folder as folders
from coco_jax.recognition.inputs import check_actions
from coco_jax.recognition.parts import (
    BLOCKS,
    CAPTIONS,
    ENCODERS,
    MAP,
    TEMPLATES,
    UNMAPPED_LABELS,
    Parts,
    TextEncoder,
    trim_heap,
    unit,
    video_tower,
)
from coco_jax.recognition.ranking import Path, Ranked, VideoRanker, pad, padded_count
from coco_jax.recognition.tables import Table, fingerprint
from coco_jax.recognition.timeline import WINDOW

# WEIGHTS and SIMILARITY_TEMPERATURE were chosen on classes held out of the seen ones; WIDTH, RIDGE and
# HUBNESS are round numbers that were checked there. TEMPERATURE, RIVAL and THRESHOLD were chosen there,
# on simulated videos, by benchmarks/calibration.py (docs/pretrained.md).
WEIGHTS = {"label": 1.0, "definition": 1.0, "captions": 4.0}  # of the distances 1 - cosine
WIDTH = 3.0  # of the Gaussian kernel
RIDGE = 0.3
HUBNESS = 0.3  # weight of the penalty for prototypes that are near to many others
TEMPERATURE = 0.07  # of the softmax over the candidates
SIMILARITY_TEMPERATURE = 0.06  # of the softmax over actions with similar names
# A video's raw scores are relative to the logit of its fifth best action in the corpus. How high logits
# are depends on how clearly the video shows its action, and this comparison removes most of that.
RIVAL = 5
THRESHOLD = -0.14  # of raw scores; below it an answer counts as "none of these"
NEIGHBOURS = 5  # number of nearest seen prototypes from which hubness is computed
# Weight of the mean prototype under I3D's class probabilities; the video's own feature has weight 1.
# The value was seen to help on real clips, so results on clips are slightly favourable to it.
POSTERIOR_WEIGHT = 0.5


_predict = jax.jit(closed_form.predict)
_hubness = jax.jit(closed_form.hubness, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Candidate actions and their predicted prototypes."""

    names: tuple[str, ...]
    v_KF: Float[np.ndarray, "K F"]  # unit length
    penalty_K: Float[np.ndarray, " K"]  # HUBNESS times the hubness


def _clip_config(windows: int) -> ConfigDict:
    """What the clip reader needs: windows as I3D was trained, evenly spread over a video."""
    config = default()
    presets.apply(config, "i3d")
    config.data.update(sampling="dense", stride=0.04, crop=0.875, views=windows)
    return config


def predict_prototypes(
    texts: Mapping[str, Float[np.ndarray, "K W"]],
    seen_texts: Mapping[str, Float[np.ndarray, "S W"]],
    seen_SF: Float[np.ndarray, "S F"],
    block_weights: Mapping[str, float] = WEIGHTS,
    width: float = WIDTH,
    ridge: float = RIDGE,
) -> Float[np.ndarray, "K F"]:
    """Predicts prototypes of actions from their texts, by kernel ridge regression.

    v = norm(k (G + ridge I)^-1 seen_SF). The kernel of two actions is
    exp(-sum_b w_b (1 - cos_b) / width), where cos_b is the cosine of their features of block b, after
    the mean over the seen actions is subtracted. k has the kernel between each action and the seen
    ones, G that between the seen ones.

    Args:
      texts: features of the actions by block: label, definition, captions.
      seen_texts: the same of the seen actions.
      seen_SF: prototypes of the seen actions, unit length.
      block_weights: a block without a weight is not used.
      width: of the kernel.
      ridge: strength of the regularisation.
    """
    x_KNW, y_SNW = (np.stack([x[block] for block in block_weights], 1) for x in (texts, seen_texts))
    weight_N = np.array(list(block_weights.values()), np.float32)
    return np.asarray(_predict(x_KNW, y_SNW, seen_SF, weight_N, width, ridge))


def estimate_texts(
    label_NW: Float[np.ndarray, "N W"],
    known: Mapping[str, Float[np.ndarray, "A W"]],
    temperature: float = SIMILARITY_TEMPERATURE,
    compared: tuple[Float[np.ndarray, "N U"], Float[np.ndarray, "A U"]] | None = None,
) -> dict[str, Float[np.ndarray, "N W"]]:
    """Features of all texts of actions, from those of their names.

    The definition and the captions are the mean of the name's own feature and of the texts of actions
    with similar names.

    Args:
      label_NW: features of the names, unit length.
      known: features of the texts of other actions by block: label, definition, captions.
      temperature: of the softmax over the cosines of the names.
      compared: features of the names and of the labels of `known`, by which they are compared; by
        default `label_NW` and `known["label"]`.

    Returns:
      Features by block, unit length.
    """
    name_NU, known_AU = compared or (label_NW, known["label"])
    weight_NA = np.exp((name_NU @ known_AU.T - 1) / temperature)
    weight_NA /= weight_NA.sum(1, keepdims=True)
    found = {"label": label_NW}
    for block in BLOCKS[1:]:
        found[block] = unit(label_NW + unit(weight_NA @ known[block]))
    return found


def hubness(
    v_KF: Float[np.ndarray, "K F"], seen_SF: Float[np.ndarray, "S F"]
) -> Float[np.ndarray, " K"]:
    """The mean cosine of each predicted prototype with the `NEIGHBOURS` seen ones nearest to it."""
    return np.asarray(_hubness(v_KF, seen_SF, NEIGHBOURS))


def _origin(
    centred_FS: Float[np.ndarray, "F S"], bias_S: Float[np.ndarray, " S"]
) -> Float[np.ndarray, " F"]:
    """The feature of smallest norm for which all logits are equal; it is subtracted from features.

    It is a sum of the kernel's columns. They are centred, so their products with each other are a
    singular matrix: a constant is added to it, which all solutions with the sum 0 leave as it is.
    """
    kernel_FS = centred_FS.astype(np.float64)
    products_SS = kernel_FS.T @ kernel_FS
    weight_S = np.linalg.solve(products_SS + products_SS.diagonal().mean(), bias_S.mean() - bias_S)
    return (kernel_FS @ weight_S).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The constants of a recogniser; a saved model keeps those that it was saved with."""

    label_weight: float = WEIGHTS["label"]
    definition_weight: float = WEIGHTS["definition"]
    captions_weight: float = WEIGHTS["captions"]
    width: float = WIDTH
    ridge: float = RIDGE
    hubness: float = HUBNESS
    temperature: float = TEMPERATURE
    similarity_temperature: float = SIMILARITY_TEMPERATURE
    posterior_weight: float = POSTERIOR_WEIGHT
    threshold: float = THRESHOLD

    @classmethod
    def of_saved(cls, stored: Mapping[str, Any], where: pathlib.Path) -> "Settings":
        """Settings from JSON.

        Raises:
          UserError: one is missing or out of range.
        """

        def number(name: str, low: float) -> float:
            return folders.checked(
                stored,
                name,
                lambda x: type(x) in (int, float) and low <= x <= 1e6,
                f"a number from {low:g} to 1e6",
                where,
            )

        fields = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: number(name, -1e6 if name == "threshold" else 1e-6) for name in fields})


class PretrainedRecognizer(VideoRanker):
    """Names any actions in videos; made by `coco_jax.load()`.

    Only its parts were trained: I3D on Kinetics-400, the text encoder on texts.
    """

    def __init__(
        self, windows: int = 3, *, parts: Parts | None = None, settings: Settings | None = None
    ):
        """Loads the weights of I3D and the texts of the starter corpus.

        Args:
          windows: the largest number of windows of 2.56 s that are read from a video, evenly spread.
          parts: what the recogniser is made of; by default `Parts.published()`, the parts in packages.
          settings: its constants.

        Raises:
          UserError: a package with weights is not installed or damaged, or `windows` is below 1.
        """
        if windows < 1:
            raise UserError(f"windows: {windows} is not at least 1")
        self.windows = windows
        self.settings = settings = settings or Settings()
        self.default_threshold = settings.threshold
        parts = parts or Parts.published()
        title = ENCODERS[parts.encoder_kind].title
        self.training_data = f"Kinetics-400 (I3D) and English texts ({title})"
        self._lock = threading.Lock()
        tower, self._classifier = video_tower(), parts.classifier
        self._params = tower.fill(parts.video)
        self._parts = parts = parts._replace(video={})  # they are in `_params`: 49 MB are kept once
        self._embed = jax.jit(
            lambda params, clip: nnx.merge(tower.graph, params)(
                clip.astype(jnp.float32) / 127.5 - 1
            )
        )
        centred_FS = self._classifier.kernel - self._classifier.kernel.mean(1, keepdims=True)
        self._seen_SF = unit(centred_FS.T)
        self._origin_F = _origin(centred_FS, self._classifier.bias)
        self._row_of = {name: row for row, name in enumerate(parts.actions)}
        self._names = action_names.Classes(parts.actions)
        found = [self._row(name) for name in self._classifier.classes]
        seen_rows = [row for row in found if row is not None]
        assert len(seen_rows) == len(self._classifier.classes)  # tests check the corpus
        self._seen_texts = {block: x[seen_rows] for block, x in parts.features.items()}
        self._corpus = self._prototypes(parts.actions, parts.features)

    @classmethod
    def of_saved(cls, folder: pathlib.Path, settings: Mapping[str, Any]) -> "PretrainedRecognizer":
        """The recogniser of a folder that `save` wrote; `settings` are those of its config.json.

        Raises:
          UserError: a file is missing, damaged, or does not fit the others.
        """
        where = folder / folders.CONFIG
        windows = folders.checked(
            settings, "windows", lambda x: type(x) is int and 1 <= x <= 100, "from 1 to 100", where
        )
        encoder = folders.checked(
            settings,
            "text_encoder",
            lambda x: isinstance(x, str) and x in ENCODERS,
            f"one of {', '.join(ENCODERS)}",
            where,
        )
        constants = Settings.of_saved(settings, where)
        return cls(windows, parts=Parts.of_saved(folder, encoder), settings=constants)

    def save(self, folder: Path) -> None:
        """Writes a folder that `coco_jax.load` reads, to pass on; docs/predict.md lists its files.

        Args:
          folder: a new or an empty folder.

        Raises:
          UserError: the folder is not empty or cannot be written.
        """
        parts, encoder = self._parts, self._encoder
        arrays = {
            **video_tower().arrays(self._params),
            **encoder.arrays,
            "classifier/kernel": parts.classifier.kernel,
            "classifier/bias": parts.classifier.bias,
            **{f"features/{block}": parts.features[block].astype(np.float16) for block in BLOCKS},
        }
        if ENCODERS[encoder.kind].is_mapped:
            assert encoder.map_UW is not None and parts.unmapped_labels_AU is not None
            arrays |= {MAP: encoder.map_UW, UNMAPPED_LABELS: parts.unmapped_labels_AU}
        seen = [
            parts.actions[row]
            for row in map(self._row, parts.classifier.classes)
            if row is not None
        ]
        texts = {"actions": list(parts.actions), "seen": seen}
        settings = {
            "windows": self.windows,
            "text_encoder": encoder.kind,
            **dataclasses.asdict(self.settings),
        }
        folders.write(
            pathlib.Path(folder),
            folders.Content(
                "pretrained",
                settings,
                arrays,
                encoder.tokenizer.model,
                texts,
                cards.of_pretrained(len(parts.actions), encoder.kind),
            ),
        )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All parameters except those of the text encoder, by path."""
        parts = self._parts
        return {
            **video_tower().arrays(self._params),
            "classifier/kernel": parts.classifier.kernel,
            "classifier/bias": parts.classifier.bias,
            **{f"features/{block}": x for block, x in parts.features.items()},
        }

    @property
    def temperature(self) -> float:
        """Chosen on class prototypes (docs/pretrained.md)."""
        return self.settings.temperature

    @property
    def _encoder(self) -> TextEncoder:
        """Loaded once, when a text that is not in the corpus is embedded for the first time."""
        with self._lock:
            return self._load_encoder

    @functools.cached_property
    def _load_encoder(self) -> TextEncoder:
        encoder = self._parts.encoder()
        trim_heap()  # loading leaves several hundred megabytes
        return encoder

    def release_text_encoder(self) -> None:
        """Frees the memory of MPNet or MiniLM; `embed_actions` loads it again if it is needed.

        A model that somebody saved keeps a copy of the weights, from which it is loaded again.
        """
        with self._lock:
            if vars(self).pop("_load_encoder", None) is not None:
                trim_heap()

    def embed_actions(
        self,
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
        *,
        replace: bool = False,
    ) -> Prototypes:
        """Predicts the prototypes of candidate actions.

        An action of the starter corpus, in any spelling, has its definition and captions. For any other
        name they are estimated from the texts of actions with similar names. The given descriptions
        are averaged with the captions of the corpus, or replace the estimated captions.

        Args:
          actions: their names, all different.
          descriptions: captions of some or all of the actions.
          replace: use the given descriptions instead of the captions of the corpus.

        Raises:
          UserError: there are no actions, a name is empty or repeated, or `descriptions` has an action
            that is not among `actions`.
        """
        check_actions(actions)
        descriptions = {name: texts for name, texts in (descriptions or {}).items() if texts}
        if unknown := sorted(set(descriptions) - set(actions)):
            raise UserError(f"descriptions of {unknown[0]!r}, which is not among the actions")
        rows = [self._row(name) for name in actions]
        new = [name for name, row in zip(actions, rows, strict=True) if row is None]
        estimated = iter(self._estimate(new) if new else ())
        texts: dict[str, list[np.ndarray]] = {block: [] for block in BLOCKS}
        for name, row in zip(actions, rows, strict=True):
            if row is None:
                of_action = next(estimated)
            else:
                of_action = {block: self._parts.features[block][row] for block in BLOCKS}
            if name in descriptions:
                own_W = self._encoder(list(descriptions[name])).sum(0)
                count = 0 if row is None or replace else CAPTIONS
                of_action["captions"] = unit(count * of_action["captions"] + own_W)
            for block in BLOCKS:
                texts[block].append(of_action[block])
        count = padded_count(len(actions))
        features = {block: pad(np.stack(x), count) for block, x in texts.items()}
        return self._prototypes(actions, features)

    def nearest_seen(self, v_XF: Float[np.ndarray, "X F"], count: int = 5) -> list[list[Ranked]]:
        """The actions that I3D was trained on, nearest to vectors of videos or to prototypes.

        Args:
          v_XF: vectors of videos, or the prototypes of candidates.
          count: the number of actions for each.

        Returns:
          For each vector the actions with the highest cosines, and these as scores.
        """
        cosine_XS = unit(v_XF) @ self._seen_SF.T
        order_XN = np.argsort(-cosine_XS, axis=1, kind="stable")[:, :count]
        names = self._classifier.classes
        return [
            [Ranked(names[i], float(cosine_S[i])) for i in order_N]
            for cosine_S, order_N in zip(cosine_XS, order_XN.tolist(), strict=True)
        ]

    def _prototypes(
        self, actions: Sequence[str], features: Mapping[str, Float[np.ndarray, "K W"]]
    ) -> Prototypes:
        constants = self.settings
        block_weights = {
            "label": constants.label_weight,
            "definition": constants.definition_weight,
            "captions": constants.captions_weight,
        }
        v_KF = predict_prototypes(
            features,
            self._seen_texts,
            self._seen_SF,
            block_weights,
            constants.width,
            constants.ridge,
        )
        penalty_K = constants.hubness * hubness(v_KF, self._seen_SF)
        return Prototypes(tuple(actions), v_KF[: len(actions)], penalty_K[: len(actions)])

    def _estimate(self, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Features of actions that are not in the starter corpus, from their names alone."""
        encoder, known_AU = self._encoder, self._parts.unmapped_labels_AU
        unmapped_NU = encoder.unmapped_means(
            [[t.format(name) for t in TEMPLATES] for name in names]
        )
        found = estimate_texts(
            encoder.mapped(unmapped_NU),
            self._parts.features,
            self.settings.similarity_temperature,
            None if known_AU is None else (unmapped_NU, known_AU),
        )
        return [{block: x[n] for block, x in found.items()} for n in range(len(names))]

    def _row(self, name: str) -> int | None:
        hits = self._names.hits(name)  # as in `starter.find`
        return self._row_of[hits[0]] if len(hits) == 1 else None

    def embed_clips(self, clips_BTHWC: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B F"]:
        """The vectors of windows that are compared with prototypes.

        A vector is the feature minus the origin (where all logits are equal), as a unit vector, plus
        `POSTERIOR_WEIGHT` times the mean of the seen prototypes, weighted by the class probabilities of
        the classifier.
        """
        classifier = self._classifier
        feature_BF = np.asarray(self._embed(self._params, clips_BTHWC))
        logits_BS = feature_BF @ classifier.kernel + classifier.bias
        posterior_BS = np.exp(logits_BS - logits_BS.max(1, keepdims=True))
        posterior_BS /= posterior_BS.sum(1, keepdims=True)
        v_BF = unit(feature_BF - self._origin_F)
        v_BF += self.settings.posterior_weight * (posterior_BS @ self._seen_SF)
        return v_BF.astype(np.float32)

    def clip_reader(self, clips: int | None = None) -> ClipReader:
        """Reads windows of 64 frames, evenly spread over a video; by default `windows` of them."""
        return ClipReader(_clip_config(clips or self.windows), training=False)

    def clips_of(self, path: Path | bytes) -> int:
        """The number of windows from which the vector of a video is made.

        Raises:
          VideoError: the file cannot be read.
        """
        return self.windows_of(videos.probe(path).duration)

    def pool(self, v_XF: Float[np.ndarray, "X F"]) -> Float[np.ndarray, " F"]:
        """The vector of a video: the mean over its windows."""
        return v_XF.mean(0)

    def windows_of(self, duration: float) -> int:
        """The number of windows for a video of `duration` seconds: no more than cover it."""
        return min(self.windows, max(int(np.ceil(duration / WINDOW)), 1))

    def compare(
        self, v_XF: Float[np.ndarray, "*X F"], candidates: Prototypes
    ) -> Float[np.ndarray, "*X K"]:
        """The logits of the candidates, minus the `RIVAL`-th highest logit among the corpus's actions.

        Args:
          v_XF: vectors of videos or windows.
          candidates: the result of `embed_actions`.
        """
        return v_XF @ candidates.v_KF.T - candidates.penalty_K - self._rival(v_XF)

    def _rival(self, v_XF: Float[np.ndarray, "*X F"]) -> Float[np.ndarray, "*X 1"]:
        logit_XA = v_XF @ self._corpus.v_KF.T - self._corpus.penalty_K
        return np.partition(logit_XA, -RIVAL)[..., -RIVAL, None]

    @property
    def vector_width(self) -> int:
        """The number of values of a vector."""
        return self._seen_SF.shape[1]

    @property
    def row_width(self) -> int:
        """One more: see `rows`."""
        return self.vector_width + 1

    def rows(self, v_XF: Float[np.ndarray, "X F"]) -> Float[np.ndarray, "X W"]:
        """A vector, and minus the `RIVAL`-th highest logit among the corpus's actions."""
        return np.concatenate([v_XF, -self._rival(v_XF)], 1).astype(np.float32)

    def table(self, candidates: Prototypes) -> Table:
        """The prototypes; the last value of a row is added to each score."""
        ones_K1 = np.ones((len(candidates.names), 1), np.float32)
        vectors_KW = np.concatenate([candidates.v_KF, ones_K1], 1).astype(np.float32)
        return Table(candidates.names, vectors_KW, -candidates.penalty_K)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the parts and the settings; `windows` does not count."""
        settings = {
            **dataclasses.asdict(self.settings),
            "actions": self._parts.actions,
            "classes": self._parts.classifier.classes,
        }
        return fingerprint(self.arrays, settings)

    def clip_function(self) -> Callable[[ArrayLike], jax.Array]:
        """As `embed_clips` and then `rows`, in JAX."""
        classifier, constants, corpus = self._classifier, self.settings, self._corpus

        def rows(clips: ArrayLike) -> jax.Array:
            feature_BF = self._embed(self._params, clips)
            posterior_BS = jax.nn.softmax(feature_BF @ classifier.kernel + classifier.bias)
            v_BF = feature_BF - self._origin_F.astype(np.float32)
            v_BF /= jnp.maximum(jnp.linalg.norm(v_BF, axis=-1, keepdims=True), 1e-8)
            v_BF += constants.posterior_weight * (posterior_BS @ self._seen_SF.astype(np.float32))
            logit_BA = v_BF @ corpus.v_KF.T - corpus.penalty_K
            rival_B1 = jax.lax.top_k(logit_BA, RIVAL)[0][:, -1:]
            return jnp.concatenate([v_BF, -rival_B1], 1)

        return rows

    def features(self, path: Path | bytes) -> Float[np.ndarray, " F"]:
        """The mean of I3D's features over the windows of a video.

        Raises:
          VideoError: the file cannot be decoded.
        """
        clips = self.clip_reader(self.clips_of(path)).read_views(path)
        return np.mean([np.asarray(self.clip_features(clip[None]))[0] for clip in clips], 0)

    def clip_features(self, clips_BTHWC: ArrayLike) -> Float[jax.Array, "B F"]:
        """I3D's features of uint8 clips `B T H W 3`; a JAX function."""
        return self._embed(self._params, clips_BTHWC)
