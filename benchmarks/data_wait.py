"""How much longer a training step takes because of its data.

python -m benchmarks.data_wait --config=configs/demo.py --config.ablation=full

Steps of the training loop, with batches from the loader and new descriptions at each step, against the
same steps with one batch that stays on the device. Both take turns. As in the training loop, a step is
dispatched before the results of the last one are read, so the next batch is made while a step runs.
"""

import itertools
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from benchmarks import timing
from coco_jax import sharding, weights
from coco_jax.command import quiet
from coco_jax.data.loader import FeatureLoader, TrainLoader
from coco_jax.data.task import Task, make_task
from coco_jax.evaluation.experiment import run_configs
from coco_jax.training.seen import set_from_data
from coco_jax.training.step import Program, State, global_batch, make_program
from coco_jax.training.text_features import with_features

CONFIG = config_flags.DEFINE_config_file("config", None, "Config of a run.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of one measurement.", lower_bound=2)
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each.", lower_bound=1)


class Training:
    """A run's program, state and data."""

    def __init__(self, config: ConfigDict):
        """Opens the data and initialises the parameters."""
        task = make_task(config)
        self.program: Program = make_program(
            task.config, sharding.make_mesh(task.config, jax.devices())
        )
        state: State = self.program.init(jax.random.key(config.seed))
        state = state._replace(params=weights.load(task.config, state.params))
        self.task: Task = with_features(task, self.program, state.params)
        self.state = state._replace(params=set_from_data(self.task, state.params))
        has_features = task.config.video_tower.kind == "features"
        loader = FeatureLoader if has_features else TrainLoader
        self.loader = loader(task.dataset.records, task.plan.train, task.config)
        self.label = task.seen_label.astype(np.int32)
        self.key, self.counter = jax.random.key(0), itertools.count()
        self.kept = jax.device_put(self.batch())

    def batch(self) -> dict[str, jax.Array | np.ndarray]:
        """The next batch."""
        local, mesh = next(self.loader), self.program.mesh
        return {
            "video": global_batch(mesh, local["video"]),
            "label": global_batch(mesh, self.label[local["index"]]),
            **self.task.step_texts(next(self.counter)),
        }

    def steps(self, batch: Callable[[], dict[str, jax.Array | np.ndarray]]) -> None:
        """`STEPS` training steps."""
        before = None
        for _ in range(STEPS.value):
            self.state, terms = self.program.step(self.state, batch(), self.key)
            if before is not None:
                jax.device_get(before)
            before = terms
        jax.device_get(before)


def main(argv: list[str]) -> None:
    """Prints the times of a step."""
    del argv
    quiet()
    training = Training(next(run_configs(CONFIG.value)))
    calls = {
        "batches from the loader": lambda: training.steps(training.batch),
        "one batch again and again": lambda: training.steps(lambda: training.kept),
    }
    times = timing.measure(calls, REPEATS.value)
    timing.show(f"{STEPS.value} steps", times)
    with_data, without = times.values()
    print(
        f"waiting for data: {1 - without.best / with_data.best:.1%} of a step (best), "
        f"{1 - without.median / with_data.median:.1%} (median), "
        f"{1 - without.cpu / with_data.cpu:.1%} of its CPU time"
    )


if __name__ == "__main__":
    app.run(main)
