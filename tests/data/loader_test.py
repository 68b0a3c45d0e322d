"""The loader: order of clips, several processes, resuming, augmentation, corrupt videos."""

import dataclasses

import numpy as np
import pytest
from absl import flags, logging

from coco_jax.data import dataset as datasets
from coco_jax.data import video as videos
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.dataset import Records
from coco_jax.data.loader import FeatureLoader, TrainLoader, evaluation_batches
from coco_jax.errors import UserError


@pytest.fixture
def records(data_dir):
    return datasets.load("motion_zsar", data_dir).records


def stream(records, indices, config, batches, **kwargs):
    loader = TrainLoader(records, indices, config, **kwargs)
    return [next(loader) for _ in range(batches)]


def test_an_epoch_has_every_clip_once(records, tiny):
    indices = np.arange(40, 72)
    config = tiny(data__batch=8)
    seen = np.concatenate([b["index"] for b in stream(records, indices, config, 8)])
    assert sorted(seen[:32]) == sorted(seen[32:]) == indices.tolist()
    assert seen[:32].tolist() != seen[32:].tolist()  # each epoch has another order


@pytest.mark.parametrize("processes", [2, 4])
def test_batches_of_several_processes_concatenate_to_those_of_one(records, tiny, processes):
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


def test_loader_started_at_a_batch_continues_with_the_same_clips(records, tiny):
    config, indices = tiny(data__batch=8), np.arange(20)
    whole = stream(records, indices, config, 6)
    for start in (1, 4):
        for batch, want in zip(
            stream(records, indices, config, 6 - start, start=start), whole[start:], strict=True
        ):
            np.testing.assert_array_equal(batch["video"], want["video"])


def test_worker_processes_with_caches_give_the_same_clips(records, tiny):
    """Tested for several epochs: from the second on, workers read from their caches."""
    flags.FLAGS.mark_as_parsed()  # Grain passes the flags to its workers; commands parse them
    indices = np.arange(20)
    plain = stream(records, indices, tiny(data__batch=8, data__cache=False), 5)
    worked = stream(records, indices, tiny(data__batch=8, data__cache=True, data__workers=2), 5)
    for a, b in zip(plain, worked, strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])


def test_cache_gives_the_same_clips(records, tiny):
    indices = np.arange(20)
    for sampling in ("random", "dense"):
        a, b = (
            stream(records, indices, tiny(data__cache=cache, data__sampling=sampling), 2)
            for cache in (True, False)
        )
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left["video"], right["video"])


def test_evaluation_has_every_record_once_in_order_without_augmentation(records, tiny):
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


def test_augmentation_is_the_same_for_all_frames_of_a_clip(records, tiny):
    """The same crop, flip and colours."""
    config = tiny(data__crop=0.5)
    clip = ClipReader(config, training=True, records=records)
    still = np.broadcast_to(
        np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), (4, 64, 64, 3)
    )
    for seed in range(5):
        out = clip._augment(still, np.random.default_rng(seed))
        assert out.shape == (4, 32, 32, 3) and (out == out[:1]).all()


def test_colours_change_by_the_formula(records, tiny):
    """A new channel is an old one: contrast x (value - 128) + 128 + brightness, cut to 0 to 255."""
    strength = 0.7
    config = tiny(data__crop=1.0, data__flip=False, data__color=strength)
    clip = ClipReader(config, training=True, records=records)
    old = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    orders = set()
    for seed in range(20):
        new = clip._augment(old, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.integers(np.array([1, 1]))  # the crop, which has one place
        order = rng.permutation(3) if rng.random() < strength else np.arange(3)
        contrast = 1 + strength * rng.uniform(-0.5, 0.5, 3)
        brightness = strength * rng.uniform(-40, 40, 3)
        want = np.clip((old[..., order] - 128.0) * contrast + 128 + brightness, 0, 255)
        np.testing.assert_array_equal(new, want.astype(np.uint8))
        orders.add(tuple(order.tolist()))
    assert (0, 1, 2) in orders and len(orders) > 3


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A TFDS data source in which some videos are truncated to a third."""

    source: object
    cut: frozenset[int]

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        if index in self.cut:
            video = record["video"]
            record = record | {"video": video[: len(video) // 3]}
        return record


def damaged(records, cut):
    """The same records; those with an index in `cut` are corrupt."""
    assert len(records.sources) == 1 or max(cut) < len(records.sources[0])
    first, *others = records.sources
    return dataclasses.replace(records, sources=(Damaged(first, frozenset(cut)), *others))


@pytest.fixture
def planted(records):
    """Forty training videos of five classes; three are corrupt, two of these in the same class."""
    classes = np.unique(records.labels[: len(records.sources[0])])[:5]
    indices = np.concatenate([np.flatnonzero(records.labels == c)[:8] for c in classes])
    return (
        damaged(records, indices[[1, 2, 20]].tolist()),
        indices,
        set(indices[[1, 2, 20]].tolist()),
    )


@pytest.mark.parametrize("cache", [True, False])
def test_a_corrupt_video_is_replaced_by_another_of_its_class(
    records, planted, tiny, cache, monkeypatch
):
    corrupt, indices, cut = planted
    logged = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: logged.append(text % values))
    config = tiny(data__batch=8, data__cache=cache)
    loader = TrainLoader(corrupt, indices, config)
    batches = [next(loader) for _ in range(15)]  # three epochs
    sound = stream(records, indices, config, 15)
    for got, want in zip(batches, sound, strict=True):
        assert (want["broken"] == -1).all()
        for n, index in enumerate(want["index"].tolist()):
            shown = int(got["index"][n])
            if index in cut:
                assert got["broken"][n] == index and shown not in cut and shown in indices
                assert records.labels[shown] == records.labels[index]
            else:  # the other clips do not change
                assert got["broken"][n] == -1 and shown == index
                np.testing.assert_array_equal(got["video"][n], want["video"][n])
    assert loader.broken == cut and len(logged) == len(cut)
    for index in cut:
        assert sum(records.video_ids[index] in line for line in logged) == 1


def test_replacements_do_not_depend_on_workers_processes_cache_or_resuming(planted, tiny):
    flags.FLAGS.mark_as_parsed()
    corrupt, indices, _ = planted
    config = tiny(data__batch=8, data__cache=False)
    whole = stream(corrupt, indices, config, 6)
    assert any((b["broken"] >= 0).any() for b in whole[3:])
    shares = [stream(corrupt, indices, config, 6, process=p, processes=2) for p in range(2)]
    ways = {
        "workers": stream(
            corrupt, indices, tiny(data__batch=8, data__cache=False, data__workers=1), 6
        ),
        "cache": stream(corrupt, indices, tiny(data__batch=8), 6),
        "later": whole[:3] + stream(corrupt, indices, config, 3, start=3),
        "shares": [
            {k: np.concatenate([share[n][k] for share in shares]) for k in whole[0]}
            for n in range(6)
        ],
    }
    for way, batches in ways.items():
        for got, want in zip(batches, whole, strict=True):
            for field in ("index", "broken", "video"):
                np.testing.assert_array_equal(got[field], want[field], err_msg=f"{way} {field}")


@pytest.mark.parametrize("workers", [0, 1])
def test_class_in_which_all_videos_are_corrupt_is_an_error(records, tiny, workers):
    flags.FLAGS.mark_as_parsed()
    label = records.labels[0]
    indices = np.flatnonzero(records.labels[: len(records.sources[0])] == label)[:3]
    corrupt = damaged(records, indices.tolist())
    with pytest.raises(
        UserError, match=r"no video of one class .*build the dataset again"
    ) as caught:
        stream(corrupt, indices, tiny(data__batch=2, data__workers=workers), 1)
    assert all(records.video_ids[i] in str(caught.value) for i in indices)


def test_corrupt_video_in_evaluation_is_an_error(planted, tiny):
    corrupt, indices, _ = planted
    with pytest.raises(videos.VideoError):
        list(evaluation_batches(corrupt, indices, tiny(data__batch=8), 0))


@pytest.fixture
def stored():
    """25 records of stored features; feature n is (n, 2 n)."""
    rows = [{"features": np.float32([n, 2 * n]), "video_id": b"v"} for n in range(25)]
    return Records((rows,), np.arange(25), ("v",) * 25, ("train",) * 25)


def feature_batches(stored, batches, indices=range(25), **kwargs):
    from coco_jax.config import default

    config = default()
    config.data.batch, config.video_tower.kind, config.video_tower.feature_dim = 8, "features", 2
    loader = FeatureLoader(stored, np.array(indices), config, **kwargs)
    return [next(loader) for _ in range(batches)]


def test_an_epoch_has_every_stored_feature_once(stored):
    batches = feature_batches(stored, 25, indices=range(5, 25))
    index = np.concatenate([batch["index"] for batch in batches]).reshape(10, 20)
    assert all(sorted(epoch) == list(range(5, 25)) for epoch in index.tolist())
    assert len({tuple(epoch) for epoch in index.tolist()}) == 10
    for batch in batches:
        np.testing.assert_array_equal(batch["video"][:, 1], 2 * batch["index"])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_feature_batches_do_not_depend_on_the_start_and_the_processes(stored, processes):
    whole = feature_batches(stored, 9)
    parts = [
        feature_batches(stored, 4, start=5, process=p, processes=processes)
        for p in range(processes)
    ]
    for n, want in enumerate(whole[5:]):
        for field in ("index", "video"):
            together = np.concatenate([part[n][field] for part in parts])
            np.testing.assert_array_equal(together, want[field])
