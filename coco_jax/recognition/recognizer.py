"""Names actions in videos with a model whose text and video towers were trained together."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from coco_jax import sharding, weights
from coco_jax.config import load_stored, uses_definitions, uses_descriptions
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import label_ids
from coco_jax.data.tokenizers import Tokenizer, load_tokenizer
from coco_jax.errors import UserError
from coco_jax.models.coco import CoCo
from coco_jax.models.initial import ParamKeys
from coco_jax.recognition import cards
from coco_jax.recognition import folder as folders
from coco_jax.recognition.inputs import are_captions, check_actions
from coco_jax.recognition.ranking import Path, VideoRanker, pad, padded_count
from coco_jax.recognition.tables import Table, fingerprint
from coco_jax.sharding import path_of
from coco_jax.training.checkpoint import read_json, restore_params
from coco_jax.training.step import Params, Program, make_program
from coco_jax.training.validation import evaluated_checkpoints

NUMBERS = (
    "top1",
    "top5",
    "chance",
    "unseen_videos",
    "split",
)  # of result.json, kept in a saved model


BATCH = 256  # texts that are embedded at once


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Embedded actions, padded with rows that `raw_scores` drops (`padded_count`)."""

    names: tuple[str, ...]
    l_KD: jax.Array
    d_KMD: jax.Array | None
    mask_KM: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Recognizer(VideoRanker):
    """Names actions with a trained CoCo or with published towers; `coco_jax.load` makes one."""

    config: ConfigDict
    tokenizer: Tokenizer
    program: Program
    params: Params
    training_data: str
    # Captions of some actions, which were saved with the model.
    captions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    # NUMBERS of the evaluation of its run.
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Recognizer":
        """Loads the folder of a run, as `coco_jax.main` writes it: `WORKDIR/full/split1/seed0`.

        Raises:
          UserError: the folder has no run, or no usable checkpoint.
        """
        folder = pathlib.Path(folder)
        stored = folder / "config.json"
        if not stored.is_file():
            runs = sorted(str(path.parent) for path in folder.glob("*/*/*/config.json"))
            hint = f"runs below it: {', '.join(runs[:6])}" if runs else "train one first"
            raise UserError(f"{folder}: not a run (it has no config.json); {hint}")
        config = load_stored(read_json(stored), str(stored))
        cls.check_kind(config, folder)
        program = make_predictor(config)
        tokenizer = _tokenizer(folder / "tokenizer.model", config)
        _, params = restore_params(evaluated_checkpoints(folder, config), program)
        if config.eval.interpolate:  # the model that was evaluated
            initial = weights.load(config, program.init(jax.random.key(config.seed)).params)
            params = weights.interpolate(config, params, initial)
        result = folder / "result.json"
        measured = read_json(result) if result.is_file() else {}
        return cls(config, tokenizer, program, params, config.data.name, numbers=_numbers(measured))

    @classmethod
    def of_saved(cls, folder: pathlib.Path, settings: Mapping[str, Any]) -> "Recognizer":
        """The recogniser of a folder that `save` wrote; `settings` are those of its config.json.

        Raises:
          UserError: a file is missing, damaged, or does not fit the others.
        """
        where = folder / folders.CONFIG
        stored = folders.checked(
            settings, "config", lambda x: isinstance(x, dict), "a run's config", where
        )
        trained_on = folders.checked(settings, "training_data", folders.is_line, "a line", where)
        texts = folders.read_json(folder / folders.TEXTS, folders.TEXT_LIMIT)
        captions = folders.checked(
            texts, "captions", are_captions, "lists of texts by action", folder / folders.TEXTS
        )
        config = load_stored(stored, str(where))
        tokenizer = _tokenizer(folders.tokenizer_path(folder), config)
        cls.check_kind(config, folder)
        program = make_predictor(config)
        params = params_of(folders.read_arrays(folder, shapes_of(program)), program)
        numbers = _numbers(settings.get("numbers"))
        return cls(config, tokenizer, program, params, trained_on, captions, numbers)

    @classmethod
    def check_kind(cls, config: ConfigDict, folder: Path) -> None:
        """Checks that this class can run a model.

        Raises:
          UserError: the model does not read videos.
        """
        if config.video_tower.kind == "features":
            raise UserError(f"{folder}: this model was trained on stored features, not on videos")

    def save(self, folder: Path, descriptions: Mapping[str, Sequence[str]] | None = None) -> None:
        """Writes a folder that `coco_jax.load` reads, to pass on; docs/predict.md lists its files.

        Args:
          folder: a new or an empty folder.
          descriptions: captions by action, to be kept with the model. `embed_actions` uses them if all
            candidates have captions here and none are given there.

        Raises:
          UserError: the folder is not empty or cannot be written.
        """
        captions = {name: list(texts) for name, texts in (descriptions or self.captions).items()}
        config = _portable(self.config)
        settings = {
            "training_data": self.training_data,
            "numbers": dict(self.numbers),
            "config": config.to_dict(),
        }
        arrays = {
            path_of(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(self.params)
        }
        card = cards.of_coco(config, self.training_data, self.numbers, captions)
        folders.write(
            pathlib.Path(folder),
            folders.Content(
                "coco", settings, arrays, self.tokenizer.model, {"captions": captions}, card
            ),
        )

    def embed_actions(
        self, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Candidates:
        """Embeds candidate actions.

        Args:
          actions: their names, all different.
          descriptions: captions of every action. Without them the captions that were saved with the
            model are used if there are some for every action, and only the names otherwise.

        Raises:
          UserError: no actions, an empty or repeated name, one without captions, or one of which
            the tokenizer knows nothing.
        """
        check_actions(actions)
        if unknown := self.tokenizer.unknown_texts(actions):
            raise UserError(
                f"actions that the model's tokenizer cannot read: {', '.join(map(repr, unknown[:5]))}; "
                "write them in the language and script of the training texts"
            )
        ids_KPL = label_ids(self.config, self.tokenizer, actions, {})
        l_KD = self._embed(self.program.embed_labels, ids_KPL)
        uses_texts = uses_descriptions(self.config)
        if descriptions is None and uses_texts and all(map(self.captions.get, actions)):
            descriptions = self.captions
        if descriptions is None:
            return Candidates(tuple(actions), l_KD, None, None)
        if not uses_texts:
            raise UserError(
                f"descriptions: a model trained as {self.config.ablation!r} does not use them; leave "
                "them out, or load one trained as 'full' or 'label+desc'"
            )
        sampler = DescriptionSampler.of_tokens(descriptions, actions, self.tokenizer)
        count = min(self.config.text.eval_descriptions, padded_count(int(sampler.counts_K.max())))
        ids_KML, mask_KM = sampler.first(count)
        d_KMD = self._embed(self.program.embed_texts, ids_KML)
        return Candidates(tuple(actions), l_KD, d_KMD, pad(mask_KM, len(d_KMD)))

    def _embed(self, embed: Callable, ids_KXL: np.ndarray) -> jax.Array:
        """Embeds texts in batches, with few different shapes; returns `padded_count` rows."""
        count = padded_count(len(ids_KXL))
        size = min(count, max(BATCH // ids_KXL.shape[1], 1))
        size = 1 << (size.bit_length() - 1)  # a power of two divides `count`
        padded_KXL = pad(ids_KXL, -(-len(ids_KXL) // size) * size)
        parts = [
            np.asarray(embed(self.params, padded_KXL[start : start + size]))
            for start in range(0, len(padded_KXL), size)
        ]
        return jax.numpy.asarray(pad(np.concatenate(parts), count))

    def embed_prompts(self, prompts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts, each embedded as the only prompt of a label.

        Args:
          prompts: texts such as "a video of juggling"; `config.text.templates` are not used.
        """
        # A model that uses definitions takes the prompt instead of one, as for a class without one.
        repeated_NPL = np.repeat(
            self.tokenizer(prompts)[:, None], 1 + uses_definitions(self.config), axis=1
        )
        return np.asarray(self._embed(self.program.embed_labels, repeated_NPL))[: len(prompts)]

    def embed_clips(self, clips_BTHWC: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B D"]:
        """The unit vectors of clips."""
        return np.asarray(self.program.embed_videos(self.params, clips_BTHWC), np.float32)

    def clip_reader(self, clips: int | None = None) -> ClipReader:
        """Reads clips as evaluation does; by default `config.data.views` of each video."""
        if clips in (None, self.config.data.views):
            return ClipReader(self.config, training=False)
        config = self.config.copy_and_resolve_references()
        config.data.views = clips
        return ClipReader(config, training=False)

    def clips_of(self, path: Path | bytes) -> int:
        """`config.data.views`, as in evaluation; the file is not opened."""
        return self.config.data.views

    def pool(self, v_XD: Float[np.ndarray, "X D"]) -> Float[np.ndarray, " D"]:
        """The vector of a video: the mean over its clips, of unit length."""
        v_D = v_XD.mean(0)
        return v_D / np.linalg.norm(v_D)

    def compare(
        self, v_XD: Float[np.ndarray, "*X D"], candidates: Candidates
    ) -> Float[np.ndarray, "*X K"]:
        """The model's scores, in [-1, 1] (docs/method.md).

        Args:
          v_XD: unit vectors of videos or clips.
          candidates: the result of `embed_actions`.
        """
        v_BD = v_XD.reshape(-1, v_XD.shape[-1])
        filled_BD = pad(v_BD, 1 << (len(v_BD) - 1).bit_length())  # few different shapes
        features = (candidates.l_KD, candidates.d_KMD, candidates.mask_KM)
        score_BK = np.asarray(self.program.scores(self.params, filled_BD, *features))
        score_BK = score_BK[: len(v_BD), : len(candidates.names)]
        return score_BK.reshape(*v_XD.shape[:-1], -1)

    unit_length = True

    @property
    def vector_width(self) -> int:
        """The number of values of a vector."""
        return self.config.model.dim

    def table(self, candidates: Candidates) -> Table | None:
        """The labels; None if there are descriptions, over which each video attends."""
        if candidates.d_KMD is not None:
            return None
        l_KD = np.asarray(candidates.l_KD)[: len(candidates.names)]
        return Table(candidates.names, l_KD, np.zeros(len(l_KD), np.float32))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the parameters, the config and the tokenizer."""
        arrays = {path_of(path): x for path, x in jax.tree.leaves_with_path(self.params)}
        return fingerprint(arrays, [_portable(self.config).to_dict(), self.tokenizer.model.hex()])

    def clip_function(self) -> Callable[[ArrayLike], jax.Array]:
        """As `embed_clips`, without a mesh."""
        model = nnx.eval_shape(lambda: CoCo(self.config, rngs=ParamKeys(jax.random.key(0))))
        graph = nnx.graphdef(model)

        def rows(clips: ArrayLike) -> jax.Array:
            return nnx.merge(graph, nnx.State(self.params)).embed_videos(clips)

        return rows

    @property
    def temperature(self) -> float:
        """The model's trained temperature."""
        model = self.config.model
        return float(np.clip(np.exp(self.params["log_tau"]), model.tau_min, model.tau_max))


def make_predictor(config: ConfigDict) -> Program:
    """The functions of a model on one device; changes `config` to what prediction needs."""
    # A stranger's regular expressions are not needed: there is one device and no training.
    config.mesh.update(data=1, fsdp=1, tensor=1, rules=())
    config.data.batch, config.data.cache = config.optimizer.microbatches, False
    if config.model.dtype == "float16" and jax.default_backend() == "cpu":
        config.model.dtype = "float32"  # XLA has no attention in float16 for CPUs
    return make_program(config, sharding.make_mesh(config, jax.devices()[:1]))


def _tokenizer(path: pathlib.Path, config: ConfigDict) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
      UserError: it is missing or damaged, or has other ids than the model was trained with.
    """
    text = config.text
    tokenizer = load_tokenizer(path, text.length, text.tokenizer_style)
    if tokenizer.size > text.vocabulary or text.trained_vocabulary not in (0, tokenizer.size):
        raise UserError(
            f"{path}: it has {tokenizer.size} ids, and the model was trained with "
            f"{text.trained_vocabulary or f'at most {text.vocabulary}'}; put back the file of this model"
        )
    return tokenizer


def shapes_of(program: Program) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path ("video/embed/kernel")."""
    leaves = jax.tree.leaves_with_path(program.abstract.params)
    return {path_of(path): leaf.shape for path, leaf in leaves}


def params_of(arrays: Mapping[str, np.ndarray], program: Program) -> Params:
    """The parameters of a program from arrays by path."""
    return jax.tree.map_with_path(
        lambda path, leaf: jax.device_put(arrays[path_of(path)], leaf.sharding),
        program.abstract.params,
    )


def _numbers(stored: Any) -> dict[str, Any]:
    """Those of NUMBERS that are in `stored`, as numbers or short texts."""
    found = stored if isinstance(stored, dict) else {}
    return {
        name: found[name]
        for name in NUMBERS
        if type(found.get(name)) in (int, float) or folders.is_line(found.get(name))
    }


def _portable(config: ConfigDict) -> ConfigDict:
    """A copy without the paths of this machine, and without weights that are still to be mixed in."""
    config = config.copy_and_resolve_references()
    config.eval.interpolate = 0.0  # the saved parameters are the interpolated ones
    config.data.dir = "data"
    for section, field in (("video_tower", "weights"), ("text_tower", "weights")):
        if not config[section][field].startswith(("hf:", "package:")):
            config[section][field] = ""
    if config.text.tokenizer:
        config.text.tokenizer = "in this folder"
    return config
