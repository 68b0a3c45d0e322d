"""Names the actions in your own videos.

python -m coco_jax.predict --checkpoint=runs/demo/full/split1/seed0 --video=a.mp4 --actions="x,y,z"
"""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from coco_jax import sharding
from coco_jax.config import default
from coco_jax.data import video as videos
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import label_ids
from coco_jax.data.tokenizers import Tokenizer, load_tokenizer
from coco_jax.errors import UserError, parser, quiet, reported
from coco_jax.training.checkpoint import read_json, restore_params
from coco_jax.training.step import Params, Program, make_program

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder (it holds config.json).")
_VIDEOS = flags.DEFINE_multi_string("video", [], "A video file; may be given several times.")
_ACTIONS = flags.DEFINE_string("actions", None, 'The candidates: "juggling, rope skipping".')
_ACTIONS_FILE = flags.DEFINE_string("actions_file", None, "The candidates, one a line.")
_DESCRIPTIONS = flags.DEFINE_string(
    "descriptions",
    None,
    "Captions of the actions: JSON {action: [caption, ...]}, or CSV action,description.",
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON for machines instead of a list for people.")


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A trained CoCo that names actions: `load`, then `rank`."""

    config: ConfigDict
    tokenizer: Tokenizer
    program: Program
    params: Params

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Recognizer":
        """Loads a run's folder, as `coco_jax.main` leaves it: `WORKDIR/full/split1/seed0`.

        Raises:
          UserError: the folder holds no run, or no finished checkpoint.
        """
        folder = pathlib.Path(folder)
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder}: no run there (it would hold config.json); train one, and name its folder, "
                "e.g. runs/demo/full/split1/seed0"
            )
        stored = read_json(folder / "config.json")
        if stored.keys() != default().to_dict().keys():
            raise UserError(f"{folder}/config.json: not a config of this version; train again")
        config = ConfigDict(_tuples(stored))
        if config.video_tower.kind == "features":
            raise UserError(f"{folder}: this model was trained on stored features, not on videos")
        config.mesh.update(data=1, fsdp=1, tensor=1)
        tokenizer = load_tokenizer(
            folder / "tokenizer.model", config.text.length, config.text.tokenizer_style
        )
        program = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
        _, params = restore_params(folder / "checkpoints", program.abstract)
        return cls(config, tokenizer, program, params)

    def rank(
        self,
        paths: Sequence[str | os.PathLike[str]],
        actions: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """For each video its actions, best first, with scores that sum to 1 over the actions.

        Args:
          paths: video files (mp4, mkv, webm, avi, mov, mpeg, flv, asf ...; any codec FFmpeg decodes).
          actions: candidate names, all different.
          descriptions: captions of every action; without them the names alone decide.

        Raises:
          UserError: an unreadable video; no, empty or repeated actions; an action without captions.
        """
        _check_actions(actions)
        l_KD = self.program.embed_labels(
            self.params, label_ids(self.tokenizer, actions, self.config.text.templates)
        )
        d_KMD = mask_KM = None
        if descriptions is not None:
            if self.config.ablation not in ("label+desc", "full"):
                raise UserError(
                    f"descriptions: a model trained as {self.config.ablation!r} does not use any; leave "
                    "them out, or load one trained as 'full' or 'label+desc'"
                )
            bank = DescriptionSampler.of_tokens(descriptions, actions, self.tokenizer)
            count = min(self.config.text.eval_descriptions, int(bank.counts_K.max()))
            ids_KML, mask_KM = bank.first(count)
            d_KMD = self.program.embed_texts(self.params, ids_KML)
        model = self.config.model
        tau = np.clip(np.exp(self.params["log_tau"]), model.tau_min, model.tau_max)
        ranked = []
        for path in paths:
            v_1D = self.program.embed_videos(self.params, self._clip(path)[None])
            scores_K = np.asarray(self.program.scores(self.params, v_1D, l_KD, d_KMD, mask_KM))[0]
            share_K = np.asarray(jax.nn.softmax(scores_K / tau))
            order = np.argsort(-share_K, kind="stable")
            ranked.append([(actions[i], float(share_K[i])) for i in order])
        return ranked

    def _clip(self, path: str | os.PathLike[str]) -> np.ndarray:
        video = self.config.video_tower
        frames_THWC = videos.decode(
            path,
            lambda info: videos.sample_times(video.frames, info.duration, "uniform"),
            short_side=round(video.size / self.config.data.crop),
        )
        top, left = (np.array(frames_THWC.shape[1:3]) - video.size) // 2
        return frames_THWC[:, top : top + video.size, left : left + video.size]


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs hold."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_actions(actions: Sequence[str]) -> None:
    if not actions:
        raise UserError(
            'no actions to choose from; give some, e.g. --actions="juggling, rope skipping"'
        )
    if any(not action.strip() for action in actions):
        raise UserError("an action's name is empty; look for a stray comma or empty line")
    repeated = sorted({action for action in actions if list(actions).count(action) > 1})
    if repeated:
        raise UserError(f"actions are listed twice: {', '.join(repeated)}; name each once")


def read_actions(listed: str | None, file: str | None) -> list[str]:
    """The candidates from a comma-separated list or from a file with one a line.

    Raises:
      UserError: both or neither are given, the file cannot be read, a name is empty or repeated.
    """
    if (listed is None) == (file is None):
        raise UserError('give the candidates with either --actions="x,y" or --actions_file=FILE')
    if file is not None:
        try:
            lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--actions_file={file}: {error}; give a UTF-8 text file") from error
        actions = [line.strip() for line in lines if line.strip()]
    else:
        actions = (
            [name.strip() for name in (listed or "").split(",")] if (listed or "").strip() else []
        )
    _check_actions(actions)
    return actions


def read_descriptions(file: str) -> dict[str, list[str]]:
    """Captions by action from JSON `{action: [caption, ...]}` or CSV with action,description.

    Raises:
      UserError: the file is missing or is neither of the two.
    """
    wanted = "JSON {action: [caption, ...]} or CSV with the columns action,description"
    captions: dict[str, list[str]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            if file.endswith(".csv"):
                for row in csv.DictReader(stream):
                    captions.setdefault(row["action"], []).append(row["description"])
            else:
                captions = json.load(stream)
    except KeyError as error:
        raise UserError(f"--descriptions={file}: no column {error}; give {wanted}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--descriptions={file}: {error}; give {wanted}") from error
    if not isinstance(captions, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in captions.values()
    ):
        raise UserError(
            f"--descriptions={file}: an action without a list of captions; give {wanted}"
        )
    return captions


def main(argv: list[str]) -> None:
    """The command."""
    del argv
    quiet()
    with reported("coco_jax.predict"):
        if not _CHECKPOINT.value:
            raise UserError("--checkpoint is missing; name a run's folder")
        if not _VIDEOS.value:
            raise UserError("--video is missing; name one or more video files")
        actions = read_actions(_ACTIONS.value, _ACTIONS_FILE.value)
        descriptions = read_descriptions(_DESCRIPTIONS.value) if _DESCRIPTIONS.value else None
        ranked = Recognizer.load(_CHECKPOINT.value).rank(_VIDEOS.value, actions, descriptions)
    if _JSON.value:
        rows = [
            {"video": video, "actions": [{"action": name, "score": score} for name, score in best]}
            for video, best in zip(_VIDEOS.value, ranked, strict=True)
        ]
        print(json.dumps(rows, indent=2))
        return
    for video, best in zip(_VIDEOS.value, ranked, strict=True):
        print(video)
        for name, score in best:
            print(f"  {score:6.1%}  {name}")


if __name__ == "__main__":
    app.run(main, flags_parser=parser("coco_jax.predict"))
