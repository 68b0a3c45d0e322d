"""Does the cycle help on class prototypes? Runs of the training loop on validation classes.

    python -m tfds_builders.build kinetics_prototypes actionhub/starter --data_dir=data
    python -m benchmarks.cycle_study --data_dir=data

For each pool, form, attention and weight of the cycle: top-1 with the cycle minus top-1 without it, in
percent; mean over the splits and standard error of the paired differences. "label" compares the
ablation label+cycle with label, "full" compares full with label+desc. Test classes are not used.
"""

import itertools
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags
from coco_jax.configs import kinetics_prototypes, kinetics_prototypes_learned
from ml_collections import ConfigDict

from coco_jax.command import quiet
from coco_jax.evaluation.experiment import run

CONFIGS = {"episodic": kinetics_prototypes, "learned": kinetics_prototypes_learned}
ABLATIONS = {"label": ("label", "label+cycle"), "full": ("label+desc", "full")}
DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of built datasets.")
ALIGNMENT = flags.DEFINE_enum("alignment", "episodic", list(CONFIGS), "config.alignment.")
SPLITS = flags.DEFINE_list("splits", [str(s) for s in range(8)], "Class splits.")
TEXTS = flags.DEFINE_list("texts", list(ABLATIONS), "label, full.")
POOLS = flags.DEFINE_list("pools", ["unseen", "auxiliary", "episodic"], "config.cycle.pool.")
FORMS = flags.DEFINE_list("forms", ["squared", "contrastive"], "config.cycle.form.")
LEARNED = flags.DEFINE_list("learned", ["yes", "no"], "config.cycle.learned_attention.")
WEIGHTS = flags.DEFINE_list("weights", ["0.3", "1", "3", "10"], "config.model.lambda_cycle.")


def make_config(ablation: str) -> ConfigDict:
    """The config of the runs without a cycle; its split is set later."""
    config = CONFIGS[ALIGNMENT.value].get_config()
    config.sweep.ablation, config.sweep.split = (), ()
    config.data.dir, config.protocol, config.ablation = DATA_DIR.value, "validation", ablation
    return config


def top1(config: ConfigDict) -> np.ndarray:
    """Top-1 of each split, in percent."""
    found: list[dict[str, Any]] = []
    for split in SPLITS.value:
        config.split = split
        with tempfile.TemporaryDirectory() as folder:
            found.append(run(config, pathlib.Path(folder)))
    return 100 * np.array([one["top1"] for one in found])


def main(argv: list[str]) -> None:
    """Prints a table as the results arrive."""
    del argv
    quiet()
    texts = TEXTS.value
    plain = {name: top1(make_config(ABLATIONS[name][0])) for name in texts}
    print("| pool | form | attention | weight | " + " | ".join(texts) + " |")
    print("| --- | --- | --- | --- |" + " --- |" * len(texts))
    levels = " | ".join(f"{plain[name].mean():.1f}" for name in texts)
    print(f"| no cycle | | | | {levels} |", flush=True)
    grid = itertools.product(POOLS.value, FORMS.value, LEARNED.value, WEIGHTS.value)
    for pool, form, learned, weight in grid:
        cells = []
        for name in texts:
            config = make_config(ABLATIONS[name][1])
            config.cycle.update(pool=pool, form=form, learned_attention=learned == "yes")
            config.model.lambda_cycle = float(weight)
            gain = top1(config) - plain[name]
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
            cells.append(f"{gain.mean():+.1f} ± {error:.1f}")
        attention = "learned" if learned == "yes" else "fixed"
        print(f"| {pool} | {form} | {attention} | {weight} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    app.run(main)
