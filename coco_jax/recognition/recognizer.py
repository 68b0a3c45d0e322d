"""Names actions in videos with a trained model."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from coco_jax import sharding, weights
from coco_jax.config import load_stored, uses_descriptions
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import label_ids
from coco_jax.data.tokenizers import Tokenizer, load_tokenizer
from coco_jax.errors import UserError
from coco_jax.recognition.inputs import check_actions
from coco_jax.recognition.ranking import Path, Ranking, VideoRanker
from coco_jax.training.checkpoint import read_json, restore_params
from coco_jax.training.step import Params, Program, make_program


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Embedded actions."""

    names: tuple[str, ...]
    l_KD: jax.Array
    d_KMD: jax.Array | None
    mask_KM: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Recognizer(VideoRanker):
    """A trained CoCo that names actions: `load` it, then `rank` videos."""

    config: ConfigDict
    tokenizer: Tokenizer
    program: Program
    params: Params

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
        if config.video_tower.kind == "features":
            raise UserError(f"{folder}: this model was trained on stored features, not on videos")
        config.mesh.update(data=1, fsdp=1, tensor=1)
        config.data.batch, config.data.cache = config.optimizer.microbatches, False
        tokenizer = load_tokenizer(
            folder / "tokenizer.model", config.text.length, config.text.tokenizer_style
        )
        program = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
        _, params = restore_params(folder / "checkpoints", program.abstract)
        if config.eval.interpolate:  # the model that was evaluated
            initial = weights.load(config, program.init(jax.random.key(config.seed)).params)
            params = weights.interpolate(config, params, initial)
        return cls(config, tokenizer, program, params)

    @property
    def training_data(self) -> str:
        """The dataset that the model was trained on."""
        return self.config.data.name

    def embed_actions(
        self, actions: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> Candidates:
        """Embeds candidate actions.

        Args:
          actions: their names, all different.
          descriptions: captions of every action; without them only the names are used.

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
        l_KD = self.program.embed_labels(self.params, ids_KPL)
        if descriptions is None:
            return Candidates(tuple(actions), l_KD, None, None)
        if not uses_descriptions(self.config):
            raise UserError(
                f"descriptions: a model trained as {self.config.ablation!r} does not use them; leave "
                "them out, or load one trained as 'full' or 'label+desc'"
            )
        sampler = DescriptionSampler.of_tokens(descriptions, actions, self.tokenizer)
        count = min(self.config.text.eval_descriptions, int(sampler.counts_K.max()))
        ids_KML, mask_KM = sampler.first(count)
        d_KMD = self.program.embed_texts(self.params, ids_KML)
        return Candidates(tuple(actions), l_KD, d_KMD, mask_KM)

    def embed_video(self, path: Path) -> Float[np.ndarray, " D"]:
        """The unit vector of a video: the mean over `config.data.views` clips, as in evaluation.

        Raises:
          VideoError: the file cannot be decoded.
        """
        reader = ClipReader(self.config, training=False)
        clips = [reader.read(path, view) for view in range(self.config.data.views)]
        v_VD = [np.asarray(self.program.embed_videos(self.params, clip[None]))[0] for clip in clips]
        v_D = np.mean(v_VD, axis=0)
        return v_D / np.linalg.norm(v_D)

    def rank_one(self, path: Path, candidates: Candidates) -> Ranking:
        """The candidates for one video, best first, with scores that sum to 1.

        A score is the softmax over the candidates at the model's temperature.

        Raises:
          VideoError: the file cannot be decoded.
          UserError: the scores are not finite.
        """
        model = self.config.model
        v_1D = self.embed_video(path)[None]
        features = (candidates.l_KD, candidates.d_KMD, candidates.mask_KM)
        score_K = np.asarray(self.program.scores(self.params, v_1D, *features))[0]
        if not np.isfinite(score_K).all():
            raise UserError("the model gives scores that are not finite; train it again")
        tau = np.clip(np.exp(self.params["log_tau"]), model.tau_min, model.tau_max)
        share_K = np.asarray(jax.nn.softmax(score_K / tau))
        order = np.argsort(-share_K, kind="stable")
        return [(candidates.names[i], float(share_K[i])) for i in order]
