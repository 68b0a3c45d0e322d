"""The benchmarks' configs: their real shapes, and two steps of each on generated data, evaluated."""

import importlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from coco_jax.config import default, validate
from coco_jax.evaluation.experiment import run
from coco_jax.sharding import make_mesh, path_of
from coco_jax.training.step import make_program
from tests.tfds_builders.hmdb51_zsar import hmdb51_zsar_dataset_builder_test as hmdb51_test
from tests.tfds_builders.kinetics_zsar import kinetics_zsar_dataset_builder_test as kinetics_test
from tests.tfds_builders.ucf101_zsar import ucf101_zsar_dataset_builder_test as ucf101_test
from tfds_builders.build import build
from tfds_builders.common import testing
from tfds_builders.kinetics_zsar import kinetics_zsar_dataset_builder as kinetics

NAMES = (
    "k400_zsar", "k400_zsar_siglip2", "k400_zsar_videoprism", "k400_zsar_i3d", "k400_zsar_pe",
    "ucf101_zsar", "hmdb51_zsar", "ucf101_cross", "hmdb51_cross",
)  # fmt: skip


def load(name: str) -> ConfigDict:
    return importlib.import_module(f"coco_jax.configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_has_a_corpus_and_a_frozen_text_tower(name):
    config = load(name)
    validate(config)
    assert config.text.corpus.startswith("actionhub/") and config.text_tower.trainable == "none"


@pytest.mark.parametrize(("text_tower", "width"), [("minilm_package", 384), ("mpnet_package", 768)])
def test_text_tower_of_the_prototypes_is_the_argument_of_their_config(text_tower, width):
    module = importlib.import_module("coco_jax.configs.kinetics_prototypes")
    config = module.get_config(text_tower)
    validate(config)
    assert config.text_tower.width == width and config.text_tower.trainable == "none"
    assert module.get_config().text_tower.width == 384


# The others have the first one's towers, or PE-Core's, of which tests/weights/pe_test.py has the shapes.
@pytest.mark.parametrize("name", NAMES[:4])
def test_towers_have_the_published_size_and_a_step_keeps_all_shapes(name):
    """Only shapes are computed."""
    config = load(name)
    config.mesh.update(data=-1, fsdp=2)
    program = make_program(config, make_mesh(config))
    sizes = {path_of(p): x.size for p, x in jax.tree.leaves_with_path(program.abstract.params)}
    towers = {
        which: sum(n for path, n in sizes.items() if path.split("/")[0] == which)
        for which in ("video", "text")
    }
    # CLIP B/16 has 86.2 + 63.2 million without projections (openai/CLIP's model card: 150 together),
    # SigLIP 2 B/16 92.9 + 282 (a vocabulary of 256,000).
    if "i3d" in name:  # arXiv 1705.07750, table 1: 12 million parameters; MiniLM's 22.7
        assert 11e6 < towers["video"] < 13e6 and 22e6 < towers["text"] < 23e6
    elif "videoprism" in name:
        assert 100e6 < towers["video"] < 160e6 and 100e6 < towers["text"] < 130e6
    elif "siglip2" in name:
        assert 92e6 < towers["video"] < 110e6 and 280e6 < towers["text"] < 285e6
    else:
        assert 85.5e6 < towers["video"] < 102e6 and 62.5e6 < towers["text"] < 63.5e6
    # A frozen text tower has no moments.
    moments = {path_of(p) for p, _ in jax.tree.leaves_with_path(program.abstract.opt_state)}
    assert config.text_tower.trainable == "none"
    assert not [path for path in moments if "/text/" in path]
    # The shapes of a step of one layer, with the videos and text features of the real benchmark.
    config.video_tower.depth = 1
    program = make_program(config, make_mesh(config))
    seen, m, width = 400, config.text.descriptions, config.text_tower.width
    video = config.video_tower
    struct = jax.ShapeDtypeStruct
    batch = {
        "video": struct((config.data.batch, video.frames, video.size, video.size, 3), np.uint8),
        "label": struct((config.data.batch,), np.int32),
        "label_ids": struct((seen, len(config.text.templates), width), "bfloat16"),
        "pool_label_ids": struct((160, len(config.text.templates), width), "bfloat16"),
        "description_ids": struct((seen, m, width), "bfloat16"),
        "pool_description_ids": struct((160, m, width), "bfloat16"),
        "episode": struct((seen,), np.int32),
    }
    state, terms = jax.eval_shape(program.step, program.abstract, batch, jax.random.key(0))
    assert {"label", "description", "cycle", "loss"} <= set(terms)
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, program.abstract)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> pathlib.Path:
    """All three benchmarks on generated videos, and descriptions of all their classes."""
    place = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinetics, "SEEN", len(kinetics_test.SEEN))
        kinetics_test.fake_videos(place / "kinetics")
        kinetics_test.fake_annotations(place / "kinetics" / "annotations")
        infos = kinetics_test.checksums(place / "kinetics" / "annotations")
        patch.setattr(kinetics.Builder, "url_infos", infos)
        build("kinetics_zsar/video", str(place / "data"), str(place / "kinetics"))
    for name, test in (("ucf101", ucf101_test), ("hmdb51", hmdb51_test)):
        testing.write(place / name / "videos", test.fake_lists(place / name / "lists"))
        for config in ("intra", "cross"):
            build(f"{name}_zsar/{config}", str(place / "data"), str(place / name))
    corpus = place / "corpus"
    corpus.mkdir()
    classes = [*kinetics_test.SEEN, *kinetics_test.NEW, *hmdb51_test.CLASSES]
    classes += ["apply eye makeup", "hammering", "hammer throw", "handstand pushups"]
    rows = [
        {"action": name.replace("_", " "), "description": f"{who} shows how {name} is done {how}"}
        for name in classes
        for who, how in (("A man", "slowly in a park"), ("A girl", "at home with her two friends"))
    ]
    (corpus / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for config in ("kinetics_zsar", "ucf101_zsar", "hmdb51_zsar", "manual"):
        build(f"actionhub/{config}", str(place / "data"), str(corpus))
    shutil.rmtree(corpus)
    return place / "data"


def shrunk(config: ConfigDict, data: pathlib.Path) -> ConfigDict:
    """The same config, towers of the same kind, small, without weights; two steps."""
    config.sweep.split = ()
    config.sweep.ablation = ()
    config.data.update(dir=str(data), batch=8, workers=0, threads=2)
    config.text.update(
        tokenizer="", tokenizer_style="own", vocabulary=120, length=16, descriptions=2,
        eval_descriptions=2,
    )  # fmt: skip
    video = config.video_tower
    video.update(weights="", width=32, heads=2, depth=1, size=2 * video.patch, frames=2)
    video.temporal_depth = min(video.temporal_depth, 1)
    config.text_tower.update(weights="", width=32, heads=2, depth=1)
    if config.text_tower.pool == "eos":  # needs CLIP's tokenizer
        config.text_tower.pool = "mean"
    config.model.update(dim=32, dtype="float32")
    config.optimizer.update(steps=2, warmup=1)
    config.update(checkpoint_every=2, log_every=1)
    if config.protocol == "cross":
        config.data.test_splits = ("1", "2", "half1")
    return config


# I3D has one shape only, whose two compilations take minutes; PE-Core's config differs from the first
# one's only in its towers. tests/weights has the rest.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(("i3d", "pe"))])
@pytest.mark.usefixtures("one_device")
def test_two_steps_and_an_evaluation_on_generated_videos(benchmarks, tmp_path, name):
    config = shrunk(load(name), benchmarks)
    metrics = run(config, tmp_path, "both", False)
    assert 0 <= metrics["top1"] <= 1
    assert metrics["step"] == 2 and metrics["unseen_videos"] > 0
    assert ("cross" in metrics) == name.endswith("cross")
    assert list((benchmarks / "text_features").iterdir())  # the frozen tower's texts


def test_every_field_of_a_config_is_a_field_of_the_defaults():
    fields = default().to_dict()
    for name in NAMES:
        assert load(name).to_dict().keys() == fields.keys()
