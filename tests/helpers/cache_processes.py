"""One of two processes that fill text feature caches, for tests/training/text_features_test.py.

    python -m tests.helpers.cache_processes ADDRESS INDEX WORK_DIR

For each case it prints a JSON line: the case, the number of texts that were encoded, and a hash of the
features. In the last case, process 1 cannot write its folder.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys
import time

import jax
from jax.experimental import multihost_utils

from coco_jax import sharding
from coco_jax.data import feature_shards, text_feature_cache
from coco_jax.data.task import make_task
from coco_jax.errors import UserError, reported
from coco_jax.training import multihost
from coco_jax.training.step import make_program
from coco_jax.training.text_features import cache_key, with_features
from conftest import tiny_config

ROWS = 100  # texts in a shard
# The data.dir of processes 0 and 1, relative to WORK_DIR.
CASES = {
    "empty": ("data", "data"),
    "complete": ("data", "data"),
    "half filled": ("half", "half"),
    "damaged": ("damaged", "damaged"),
    "complete for process 0": ("data", "empty1"),
    "complete for process 1": ("empty0", "data"),
    "not writable for process 1": ("empty2", "unwritable"),
}


def prepare(work_dir: pathlib.Path, key: str) -> None:
    """Makes a half filled cache, a damaged one, and one that cannot be written."""
    for name in ("half", "damaged"):
        shutil.copytree(work_dir / "data" / "text_features", work_dir / name / "text_features")
    half, damaged = (work_dir / name / "text_features" / key for name in ("half", "damaged"))
    for name in feature_shards.names(half)[1::2]:
        (half / name).unlink()
    path = damaged / feature_shards.names(damaged)[1]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    (work_dir / "unwritable").mkdir()
    (work_dir / "unwritable" / "text_features").touch()


def main() -> None:
    """Runs all cases."""
    address, index, work_dir = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
    multihost.join(address, 2, index)
    config = tiny_config(str(work_dir / "data"), text_tower__trainable="none")
    row = feature_shards.row_type(config.text_tower.width)
    text_feature_cache.SHARD_BYTES = ROWS * row.itemsize
    task = make_task(config)
    config = task.config
    program = make_program(config, sharding.make_mesh(config))
    params = program.init(jax.random.key(0)).params
    encoded = 0

    def tokenizer(texts):
        nonlocal encoded
        encoded += len(texts)
        return task.tokenizer(texts)

    tokenizer.length, tokenizer.model = task.tokenizer.length, task.tokenizer.model
    for case, folders in CASES.items():
        if case == "half filled" and index == 0:
            prepare(work_dir, cache_key(task, params))
        multihost_utils.sync_global_devices(case)
        encoded, own = 0, config.copy_and_resolve_references()
        own.data.dir = str(work_dir / folders[index])
        with multihost.stop_all_on_failure("test"), reported("test"):
            try:
                changed = dataclasses.replace(task, config=own, tokenizer=tokenizer)
                made = with_features(changed, program, params)
            except UserError:
                time.sleep(
                    index
                )  # process 0 must not end the other one before it has printed its error
                raise
        digest = hashlib.sha256(made.label_ids["seen"].tobytes())
        digest.update(made.step_texts(0)["description_ids"].tobytes())
        print(json.dumps([case, encoded, digest.hexdigest()]), flush=True)


if __name__ == "__main__":
    main()
