"""Published towers without training: one command, all official splits, compared with transformers."""

import csv
import json
import string

import numpy as np
import pytest
from coco_jax.configs import zero_shot

from coco_jax import config as configs
from coco_jax import presets
from coco_jax.command import packaged_configs
from coco_jax.config import flatten, load_stored, validate
from coco_jax.data import dataset as datasets
from coco_jax.data.clip_reader import ClipReader
from coco_jax.errors import UserError
from coco_jax.evaluation import certification
from tests.helpers import references, runs
from tests.tfds_builders.ucf101_zsar import ucf101_zsar_dataset_builder_test as ucf101_test
from tests.weights import clip_test
from tfds_builders.build import build
from tfds_builders.common import testing

torch = pytest.importorskip("torch")
assert references  # importing it makes torchvision importable

CLASSES = ("apply eye makeup", "hammering", "hammer throw", "handstand pushups")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small random CLIP that transformers wrote, with a tokenizer of single letters."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [*string.ascii_lowercase, "."]
    pieces = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.save_pretrained(folder)
    config = configs.default()
    clip_test.small(config)
    config.text.update(length=77, vocabulary=len(pieces))
    model = clip_test.hugging_face(config, folder, noise=0.1)
    return folder, config, model, tokenizer


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """UCF101 with generated videos: four classes, a test video of each."""
    place = tmp_path_factory.mktemp("ucf101")
    testing.write(place / "given/videos", ucf101_test.fake_lists(place / "given/lists"))
    build("ucf101_zsar/cross", str(place / "data"), str(place / "given"))
    return str(place / "data")


@pytest.fixture(scope="module")
def evaluated(clip, data_dir, tmp_path_factory):
    """The command with the packaged config; the sizes are those of the small CLIP."""
    folder, small, _, _ = clip
    workdir = tmp_path_factory.mktemp("run")
    sizes = {
        field: value
        for field, value in flatten(small.to_dict()).items()
        if field.split(".")[-1] in ("size", "patch", "width", "heads", "depth", "dim")
        or field in ("text.length", "text.vocabulary")
    }
    changed = sizes | {
        "data.dir": data_dir,
        "data.batch": 8,
        "video_tower.weights": folder,
        "text_tower.weights": folder,
        "text.tokenizer": folder,
        "video_tower.frames": 3,
    }
    overrides = [f"--config.{field}={value}" for field, value in changed.items()]
    command = runs.command("zero_shot_clip_b16:ucf101", workdir, *overrides)
    done = runs.call(*command, optimize=True)
    assert done.returncode == 0, done.stderr
    return workdir / "label/split1/seed0", done


def cosines(clip, config, records, indices) -> np.ndarray:
    """The reference: cosines of videos and classes, with the mean over frames and over 28 prompts."""
    _, _, model, tokenizer = clip
    reader = ClipReader(config, training=False, records=records)

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    video_ND, text_KD = [], []
    mean, std = (torch.tensor(x) for x in (config.video_tower.mean, config.video_tower.std))
    with torch.no_grad():
        for index in indices:
            clip_THWC = reader(index, np.random.default_rng(0))["video"]
            frames = (torch.from_numpy(clip_THWC.copy()) / 255 - mean) / std
            images = model.get_image_features(frames.permute(0, 3, 1, 2).float())
            video_ND.append(unit(images.pooler_output.mean(0)))
        for name in CLASSES:
            prompts = [template.format(name) for template in zero_shot.TEMPLATES]
            ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
            texts = model.get_text_features(ids.input_ids).pooler_output
            text_KD.append(unit(unit(texts).mean(0)))
        return (torch.stack(video_ND) @ torch.stack(text_KD).T).numpy()


def test_one_command_evaluates_all_official_splits_as_transformers_does(clip, data_dir, evaluated):
    folder, done = evaluated
    result = json.loads((folder / "result.json").read_text())
    assert result["step"] == 0 and result["groups"] == {"official": ["1", "2", "3"]}
    assert not (folder / "checkpoints").exists()
    assert "0 videos of 0 seen classes" in done.stderr
    config = load_stored(json.loads((folder / "config.json").read_text()), "config.json")
    records = datasets.load("ucf101_zsar/cross", data_dir).records
    tested = np.flatnonzero(records.official[:, 0])
    assert [records.labels[i] for i in tested] and len(tested) == 4
    cosine_NK = cosines(clip, config, records, tested)
    with (folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number in ("1", "2", "3"):
        chosen = [n for n, i in enumerate(tested) if records.official[i, int(number) - 1]]
        mine = [row for row in rows if row["test_set"] == number]
        assert [row["video_id"] for row in mine] == [records.video_ids[tested[n]] for n in chosen]
        best = [CLASSES[k] for k in cosine_NK[chosen].argmax(1)]
        assert [row["predicted"] for row in mine] == best
        top1 = np.mean([row["class"] == name for row, name in zip(mine, best, strict=True)])
        assert result["cross"]["official"]["top1"][int(number) - 1] == pytest.approx(top1)
    # The scores themselves: features of texts are cached in bfloat16.
    scores = {
        row["action"]: (example["video_id"], row["score"])
        for example in result["examples"]
        for row in example["top"]
    }
    for name, (video_id, score) in scores.items():
        n = [records.video_ids[i] for i in tested].index(video_id)
        assert score == pytest.approx(cosine_NK[n, CLASSES.index(name)], abs=4e-3)


def test_evidence_of_frozen_towers_has_their_checksum_and_is_certified(evaluated):
    folder, _ = evaluated
    found = json.loads((folder / "evidence.json").read_text())
    assert len(found["weights"]["video"]["sha256"]) == 64
    assert found["training"]["steps"] == 0 and found["data"]["trained"]["videos"] == 0
    assert found["data"]["sources"][0]["videos"]["test"] == {
        "expected": 4, "stored": 4, "missing": 0, "broken": 0,
    }  # fmt: skip
    assert set(found["bootstrap"]["test_sets"]) == {"1", "2", "3"}
    assert {check.state for check in certification.certify(folder)} == {"right"}


@pytest.mark.parametrize("name", [name for name in packaged_configs() if "zero_shot" in name])
@pytest.mark.parametrize("dataset", ["k400_zsar", "ucf101", "hmdb51"])
def test_zero_shot_configs_are_valid_and_have_the_28_templates(name, dataset):
    module = __import__(f"coco_jax.configs.{name}", fromlist=["get_config"])
    config = module.get_config(f"clip_b32,{dataset}" if name == "zero_shot" else dataset)
    validate(config)
    assert config.protocol == "frozen" and config.optimizer.steps == 0
    assert config.video_tower.frames == 8 and config.data.test_splits == ("1", "2", "3")
    templates = config.text.templates
    assert len(set(templates)) == 28 and "a video of a person practicing {}." in templates


def test_zero_shot_of_an_unknown_dataset_is_an_error(parse):
    from coco_jax import main

    with pytest.raises(SystemExit) as caught:
        parse(main, "--config=zero_shot_clip_b16:ucf11")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.optimizer.update(steps=1), "'frozen' tests published towers"),
        (lambda c: c.video_tower.update(weights=""), "'frozen' tests published towers"),
        (lambda c: c.video_tower.update(temporal="blocks"), "'frozen' tests published towers"),
        (lambda c: c.update(protocol="test"), "optimizer.steps: 0 steps are for"),
    ],
)
def test_a_config_that_would_train_or_has_no_weights_is_an_error(change, message):
    config = zero_shot.get_config("clip_b16,ucf101")
    change(config)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_every_preset_with_two_towers_has_a_zero_shot_config():
    from coco_jax.recognition import towers

    assert set(towers.names()) <= set(presets.PRESETS)
    for name in towers.names():
        validate(zero_shot.get_config(f"{name},hmdb51"))
