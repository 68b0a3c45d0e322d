"""Runs of an experiment: a finished run does not open its data."""

import json
import shutil

import pytest

from coco_jax.config import load_stored
from coco_jax.errors import UserError
from coco_jax.evaluation.experiment import run


def test_finished_run_returns_its_result_without_opening_its_data(trained_run, tmp_path):
    """A sweep can be continued if only the data of its last run is still available."""
    folder = tmp_path / trained_run.relative_to(trained_run.parents[2])
    shutil.copytree(trained_run, folder)
    config = load_stored(json.loads((folder / "config.json").read_text()), "config.json")
    config.data.dir = "/nowhere"
    for mode in ("both", "evaluate"):
        with pytest.raises(UserError, match="is not in /nowhere"):
            run(config, tmp_path, mode)
    (folder / "result.json").write_text('{"top1": 0.25}')
    for mode in ("both", "evaluate", "train"):
        assert run(config, tmp_path, mode) == {"top1": 0.25}
