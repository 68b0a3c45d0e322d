"""The order of training clips: complete, shared without overlap, and taken up anywhere."""

import numpy as np
import pytest
from absl import flags

from coco_jax.data import dataset as datasets
from coco_jax.data.loader import Clip, TrainLoader, evaluation_batches


@pytest.fixture
def records(data_dir):
    return datasets.load("motion_zsar", data_dir).records


def stream(records, indices, config, batches, **kwargs):
    loader = TrainLoader(records, indices, config, **kwargs)
    return [next(loader) for _ in range(batches)]


def test_an_epoch_shows_every_clip_once(records, tiny):
    indices = np.arange(40, 72)
    config = tiny(data__batch=8)
    seen = np.concatenate([b["index"] for b in stream(records, indices, config, 8)])
    assert sorted(seen[:32]) == sorted(seen[32:]) == indices.tolist()
    assert seen[:32].tolist() != seen[32:].tolist()  # each epoch in an order of its own


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_the_parts_of_the_batches_of_one(records, tiny, processes):
    config, indices = tiny(data__batch=8), np.arange(50)
    whole = stream(records, indices, config, 5)
    parts = [
        stream(records, indices, config, 5, process=p, processes=processes)
        for p in range(processes)
    ]
    for n, batch in enumerate(whole):
        for field in ("index", "video"):
            together = np.concatenate([part[n][field] for part in parts])
            np.testing.assert_array_equal(together, batch[field])


def test_taken_up_at_any_batch_it_goes_on_with_the_very_next(records, tiny):
    config, indices = tiny(data__batch=8), np.arange(20)
    whole = stream(records, indices, config, 6)
    for start in (1, 4):
        for batch, want in zip(
            stream(records, indices, config, 6 - start, start=start), whole[start:], strict=True
        ):
            np.testing.assert_array_equal(batch["video"], want["video"])


def test_worker_processes_change_nothing(records, tiny):
    flags.FLAGS.mark_as_parsed()  # Grain's workers are told the flags, which the command parses
    indices = np.arange(20)
    plain = stream(records, indices, tiny(data__batch=8), 3)
    worked = stream(records, indices, tiny(data__batch=8, data__workers=2), 3)
    for a, b in zip(plain, worked, strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])


def test_the_cache_changes_nothing(records, tiny):
    indices = np.arange(20)
    for sampling in ("random", "dense"):
        a, b = (
            stream(records, indices, tiny(data__cache=cache, data__sampling=sampling), 2)
            for cache in (True, False)
        )
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left["video"], right["video"])


def test_evaluation_covers_all_in_order_and_is_not_augmented(records, tiny):
    config, indices = tiny(data__batch=8), np.arange(100, 121)
    parts = [
        list(evaluation_batches(records, indices, config, 0, process=p, processes=2))
        for p in range(2)
    ]
    seen = np.concatenate([b["index"] for pair in zip(*parts, strict=True) for b in pair])
    assert seen[:21].tolist() == indices.tolist() and len(seen) == 24
    again = list(evaluation_batches(records, indices, config, 0))
    np.testing.assert_array_equal(
        again[0]["video"], np.concatenate([parts[0][0]["video"], parts[1][0]["video"]])
    )


def test_augmentation_keeps_a_clip_whole(records, tiny):
    """One window, one mirroring and one recolouring for all frames of a clip."""
    config = tiny(data__crop=0.5)
    clip = Clip(records, config, training=True)
    still = np.broadcast_to(
        np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), (4, 64, 64, 3)
    )
    for seed in range(5):
        out = clip._augment(still, np.random.default_rng(seed))
        assert out.shape == (4, 32, 32, 3) and (out == out[:1]).all()
