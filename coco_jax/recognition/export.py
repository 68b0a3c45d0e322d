"""Exports a recogniser for programs without coco_jax: a function of clips, and a table of actions.

A folder has

- video.stablehlo (`jax.export`) or video.onnx: uint8 clips `B T S S 3` to float32 rows `B W`, B free;
- actions.safetensors: a table of actions, which can be replaced without the video side;
- export.json: how the clips are read, and what scores become;
- README.md: how to run it.

Rows times table, plus bias, are the raw scores. examples/run_exported.py is a program that does this.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from coco_jax.errors import UserError
from coco_jax.recognition.onnx_model import to_onnx
from coco_jax.recognition.ranking import VideoRanker
from coco_jax.recognition.tables import Table
from coco_jax.version import __version__

FORMATS = {"stablehlo": "video.stablehlo", "onnx": "video.onnx"}
TABLE, HEAD, CARD = "actions.safetensors", "export.json", "README.md"
PLATFORMS = ("cpu", "cuda", "tpu")  # that the StableHLO can run on
README = """# A zero-shot action recogniser, exported by coco_jax {version}

The model was trained on {trained_on}. `{file}` maps uint8 RGB clips of shape
[B, {frames}, {size}, {size}, 3] to rows of shape [B, {width}]. The raw scores of a row are
`row @ vectors.T + bias`, with `vectors` and `bias` of `actions.safetensors`, whose metadata has the
names. A softmax of the raw scores, divided by the temperature in `export.json`, gives scores that sum
to 1. The row of a video is the mean over its clips{unit}.

A table of other actions is written by

    coco-jax export MODEL --only_actions --actions="juggling, rope skipping" --output=FOLDER

examples/run_exported.py of coco_jax is a short program that runs this folder.
"""


def export(recognizer: VideoRanker, candidates: Any, format: str, folder: pathlib.Path) -> None:
    """Writes the video side and a table of actions to a new folder.

    Args:
      recognizer: any.
      candidates: from its `embed_actions`.
      format: one of FORMATS.
      folder: a new or an empty folder.

    Raises:
      UserError: the folder is not empty or cannot be written, the scores are not linear, or the packages
        for ONNX are missing or cannot convert the model.
    """
    table = table_of(recognizer, candidates)
    config = recognizer.clip_reader().config
    video, data = config.video_tower, config.data
    shape = (video.frames, video.size, video.size, 3)
    function = recognizer.clip_function()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: the folder is not empty; choose a new one")
        content = stablehlo(function, shape) if format == "stablehlo" else to_onnx(function, shape)
        (folder / FORMATS[format]).write_bytes(content)
        write_table(folder, table)
        head = {
            "format": "coco_jax export",
            "format_version": 1,
            "coco_jax": __version__,
            "file": FORMATS[format],
            "frames": video.frames,
            "size": video.size,
            "short_side": round(video.size / data.crop),
            "stride": data.stride if data.sampling == "dense" else None,
            "clips": data.views if data.sampling == "dense" else 1,
            "width": int(table.vectors_KW.shape[1]),
            "unit_length": recognizer.unit_length,
            "temperature": recognizer.temperature,
            "trained_on": recognizer.training_data,
        }
        (folder / HEAD).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
        card = README.format(
            version=__version__,
            unit=", scaled to unit length" if recognizer.unit_length else "",
            **head,
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another"
        ) from error


def replace_table(recognizer: VideoRanker, candidates: Any, folder: pathlib.Path) -> None:
    """Writes a table of other actions into the folder of an export.

    Raises:
      UserError: the folder is no export or cannot be written, or the scores are not linear.
    """
    table = table_of(recognizer, candidates)
    if not (folder / HEAD).is_file():
        raise UserError(f"{folder}: no export (no {HEAD}); write one first, without --only_actions")
    try:
        write_table(folder, table)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another"
        ) from error


def table_of(recognizer: VideoRanker, candidates: Any) -> Table:
    """The table of actions.

    Raises:
      UserError: the scores of these actions are not linear in the rows.
    """
    table = recognizer.table(candidates)
    if table is None:
        raise UserError(
            "the scores of actions with descriptions are not a matrix product in this model (each video "
            "attends over them); export a model that uses names only"
        )
    return table


def write_table(folder: pathlib.Path, table: Table) -> None:
    """Writes a table of actions.

    Raises:
      OSError: it cannot be written.
    """
    from safetensors.numpy import save_file

    tensors = {"vectors": table.vectors_KW, "bias": table.bias_K}
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    names = json.dumps(table.names, ensure_ascii=False)
    save_file(arrays, folder / TABLE, metadata={"names": names})


def stablehlo(function: Any, shape: Sequence[int]) -> bytes:
    """Serialises a function of clips, with any number of clips, for CPU, GPU and TPU."""
    batch = jax_export.symbolic_shape("batch")
    clips = jax.ShapeDtypeStruct((*batch, *shape), jnp.uint8)
    exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(clips)
    return bytes(exported.serialize())
