"""Runs our recognisers in MTEB's evaluations: `mteb.evaluate(Encoder(recognizer), tasks)`.

    import coco_jax, mteb
    from coco_jax.recognition.mteb import Encoder

    model = Encoder(coco_jax.load("hf:openai/clip-vit-base-patch16"))
    mteb.evaluate(model, mteb.get_tasks(["HMDB51ZeroShot"]))

MTEB gives an encoder texts, or videos, and compares its vectors. A video is decoded from its stored
bytes by our clip reader, as in our own evaluation: MTEB's decoder (torchcodec) is not used.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from coco_jax.data import video as videos
from coco_jax.errors import UserError
from coco_jax.recognition.pretrained import PretrainedRecognizer
from coco_jax.recognition.recognizer import Recognizer
from coco_jax.recognition.tables import fingerprint
from coco_jax.sharding import path_of

PROMPT = re.compile(r"an? (?:video|photo|clip) of (?P<action>.+)")  # of MTEB's zero-shot tasks


class Encoder:
    """A recogniser as an encoder of MTEB (`mteb.models.EncoderProtocol`), for videos and texts.

    For a `Recognizer`, the vector of a text is that of a label in one prompt, so a score is the cosine
    of MTEB's prompt and the video. Descriptions, which MTEB does not have, are not used. For a
    `PretrainedRecognizer`, the vector of a text is the predicted prototype of the action that MTEB's
    prompt names, and a score is as in `raw_scores`, up to a constant of each video.
    """

    def __init__(self, recognizer: Recognizer | PretrainedRecognizer, name: str = ""):
        """Wraps a recogniser.

        Args:
          recognizer: what `coco_jax.load` returns.
          name: of the model in MTEB's results, `organisation/model`; by default from its weights.
        """
        self.recognizer = recognizer
        self.mteb_model_meta = _meta(recognizer, name)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **options: Any,
    ) -> Float[np.ndarray, "N D"]:
        """Vectors of the texts or videos of a data loader.

        Args:
          inputs: MTEB's data loader over a data set with the column `text` or `video`. A video is a
            struct of `bytes` and `path`, Hugging Face's `datasets.Video`.
          task_metadata: not used, and neither are the other arguments.
          hf_split: not used.
          hf_subset: not used.
          prompt_type: not used.
          **options: not used.

        Raises:
          UserError: the data set has neither texts nor videos, or a video cannot be decoded.
        """
        dataset = inputs.dataset
        if "video" in dataset.features:
            return np.stack([self._embed_video(*video) for video in _videos(dataset)])
        if "text" in dataset.features:
            texts = [text for batch in inputs for text in batch["text"]]
            return self._embed_texts(texts)
        raise UserError(
            f"the task has the columns {', '.join(dataset.features)}; choose one with texts or videos"
        )

    def _embed_video(self, data: bytes, name: str) -> Float[np.ndarray, " D"]:
        try:
            v_D = self.recognizer.embed_video(data)
        except videos.VideoError as error:
            raise videos.VideoError(str(error).replace("<bytes>", name, 1)) from error
        if isinstance(self.recognizer, PretrainedRecognizer):
            return np.append(v_D, np.float32(1))  # times the penalty of a prototype
        return v_D

    def _embed_texts(self, texts: list[str]) -> Float[np.ndarray, "N D"]:
        if isinstance(self.recognizer, PretrainedRecognizer):
            actions = [match["action"] if (match := PROMPT.fullmatch(t)) else t for t in texts]
            found = self.recognizer.embed_actions(actions)
            return np.concatenate([found.v_KF, -found.penalty_K[:, None]], axis=1)
        return self.recognizer.embed_prompts(texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Inner products `N M` of the vectors `N D` and `M D`, as a torch tensor."""
        from mteb.similarity_functions import dot_score

        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Inner products `N` of the pairs of vectors `N D` and `N D`, as a torch tensor."""
        from mteb.similarity_functions import pairwise_dot_score

        return pairwise_dot_score(embeddings1, embeddings2)


def _videos(dataset: Any) -> Iterator[tuple[bytes, str]]:
    """The bytes and the name of every video of a data set.

    Raises:
      UserError: a row has no bytes.
    """
    from datasets import Video

    try:
        stored = dataset.cast_column("video", Video(decode=False))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"column video: {dataset.features['video']}; it must have the bytes of video files (Video)"
        ) from error
    for number, row in enumerate(stored):
        video = row["video"] or {}
        name = f"video {number}" + f" ({video['path']})" * bool(video.get("path"))
        if video.get("bytes") is None:
            raise videos.VideoError(f"{name}: has no bytes; download the data set again")
        yield video["bytes"], name


def _meta(recognizer: Recognizer | PretrainedRecognizer, name: str) -> Any:
    """The description of a model that MTEB stores with its results.

    The revision is a hash of the weights and settings, so that MTEB does not take the results of another
    model from its cache.
    """
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    arrays, settings, default = _contents(recognizer)
    return ModelMeta(
        loader=None,
        name=name or f"coco_jax/{default}",
        revision=fingerprint(arrays, settings)[:16],
        release_date=None,
        languages=["eng-Latn"],
        n_parameters=sum(x.size for x in arrays.values()),
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["JAX"],
        similarity_fn_name=ScoringFunction.DOT_PRODUCT,
        use_instructions=False,
        training_datasets=None,
        modalities=["video", "text"],
    )


def _contents(
    recognizer: Recognizer | PretrainedRecognizer,
) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """The arrays of a model by path, its settings, and a short name."""
    if isinstance(recognizer, PretrainedRecognizer):
        settings = {"windows": recognizer.windows, **dataclasses.asdict(recognizer.settings)}
        return recognizer.arrays, settings, "pretrained"
    leaves = jax.tree.leaves_with_path(recognizer.params)
    arrays = {path_of(path): np.asarray(x) for path, x in leaves}
    weights = (
        recognizer.config.video_tower.weights.removeprefix("hf:") or recognizer.config.data.name
    )
    fields = recognizer.config.to_dict()
    fields["data"]["dir"] = ""  # of this machine
    return arrays, fields, re.sub(r"[^A-Za-z0-9_.-]+", "-", weights).strip("-")
