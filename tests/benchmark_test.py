"""The claim of `make motion`, made small: descriptions of an unseen action let a model name it."""

import dataclasses

import jax
import numpy as np

from coco_jax import sharding
from coco_jax.config import load_stored
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import make_task
from coco_jax.evaluation import metrics
from coco_jax.evaluation.evaluate import embed_candidates, measure, score
from coco_jax.training.checkpoint import read_json, restore_params
from coco_jax.training.step import make_program
from tests.helpers import runs

CHANCE = 1 / 6  # six validation classes


def test_descriptions_transfer_to_unseen_classes_unless_they_are_swapped(full_data_dir, tmp_path):
    """configs/demo.py with half of the frames, for 200 steps; then the same with the wrong texts."""
    done = runs.call(
        *runs.command(
            runs.ROOT / "configs/demo.py", tmp_path, f"--config.data.dir={full_data_dir}",
            "--config.protocol=validation", "--config.sweep.ablation=('label+desc',)",
            "--config.video_tower.frames=8", "--config.optimizer.steps=200",
            "--config.text.eval_descriptions=16",
            "--config.checkpoint_every=200",
        ),
        optimize=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "label+desc/split1/seed0"
    result = runs.result(folder)
    assert result["top1"] > 2 * CHANCE and result["generalised"]["seen"] > 0.3
    assert sum(map(sum, result["confusion"])) == result["unseen_videos"] == 240

    config = load_stored(read_json(folder / "config.json"), str(folder))
    program = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
    step, params = restore_params(folder / "checkpoints", program)
    task = make_task(config)
    scored = score(program, params, task, step)
    assert abs(measure(scored)["top1"] - result["top1"]) < 0.01
    names = task.classes["unseen"]
    swapped = DescriptionSampler.of_tokens(
        task.corpus.texts, [*names[1:], names[0]], task.tokenizer
    )
    task = dataclasses.replace(task, descriptions=task.descriptions | {"unseen": swapped})
    features = embed_candidates(program, params, task)
    seen, tested = len(task.plan.seen), len(task.plan.test_unseen)
    scores_NU = np.asarray(program.scores(params, scored.v_ND[:tested], *features))[:, seen:]
    top1 = metrics.top_k(scores_NU, scored.label_N[:tested] - seen, 1)
    assert top1 < result["top1"] / 2
