"""What can be wrong with a checkpoint, each in one line that says what to do."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from coco_jax import weights
from coco_jax.errors import UserError
from coco_jax.weights import files
from coco_jax.weights.transforms import cubic_weights, linear_weights
from tests.helpers import towers
from tests.weights.bert_test import small


def bert(vocabulary=99, width=32, depth=2):
    """All tensors of a small BERT, zero."""
    found = {
        "embeddings.word_embeddings.weight": (vocabulary, width),
        "embeddings.position_embeddings.weight": (20, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for i in range(depth):
        for name, rows, columns in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 4 * width, width),
            ("output.dense", width, 4 * width),
        ):
            found[f"encoder.layer.{i}.{name}.weight"] = (rows, columns)
            found[f"encoder.layer.{i}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"encoder.layer.{i}.{name}.weight"] = (width,)
            found[f"encoder.layer.{i}.{name}.bias"] = (width,)
    return {name: np.zeros(shape, np.float32) for name, shape in found.items()}


@pytest.fixture
def path(tmp_path):
    """A good checkpoint."""
    save_file(bert(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def refusal(path, preset=small, **changes) -> str:
    """The one line that loading a checkpoint ends with."""
    config = towers.make_config(preset, path, **changes)
    with pytest.raises(UserError) as caught:
        weights.published(config, towers.shapes_of(config)[-1])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_one_is_taken_from_a_file_or_its_folder(path):
    for where in (path, path.parent):
        config = towers.make_config(small, where)
        assert len(weights.published(config, towers.shapes_of(config)[-1])) == 38


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_refused_with_what_converts_it(tmp_path, name):
    """By its name, and by its bytes where the name lies; a folder's is found."""
    torch = pytest.importorskip("torch")
    tensors = {"embeddings.word_embeddings.weight": torch.ones(2, 3)}
    torch.save(tensors, tmp_path / name)
    message = refusal(tmp_path)
    assert "a pickle" in message and "save_file" in message
    if name == "model.safetensors":
        return  # torch itself does not read a pickle of that name
    # The command does what it says.
    code = message.split('python -c "')[1].rstrip('"')
    exec(code)
    target = tmp_path / ("pytorch_model" if "py" in name else "model")
    converted = files.read(target.with_suffix(".safetensors"))
    assert converted.keys() == tensors.keys()


def test_an_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"any": "code"}], dtype=object))
    assert "pickled objects" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_one_cut_short_is_damaged(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep >= 1 else int(keep * len(whole))])
    assert "damaged or cut short" in refusal(path)


def test_one_tampered_with_is_damaged(path):
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    name = "embeddings.LayerNorm.bias"
    for change in (
        {"shape": [31]},  # not what the bytes hold
        {"data_offsets": [128, 256]},  # another tensor's bytes
        {"data_offsets": [len(whole), len(whole) + 128]},  # none at all
        {"dtype": "X32"},
    ):
        changed = json.dumps(header | {name: header[name] | change}).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + whole[8 + length :])
        assert "damaged or cut short" in refusal(path), change
    path.write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    assert "damaged or cut short" in refusal(path)
    path.write_bytes(whole[:-4] + struct.pack("<f", np.nan))
    assert "not finite" in refusal(path)


def test_a_wrong_family_a_wrong_size_and_strangers_are_named(path):
    assert "which has no video tower; name it as config.text_tower.weights" in refusal(
        path, "clip_b16"
    )
    message = refusal(path, text_tower__width=48)
    assert (
        "of another size: embeddings.LayerNorm.bias (text/norm/bias) is 32 here, 48 ours" in message
    )
    message = refusal(path, text_tower__depth=3)
    assert "ours without a tensor: text/blocks/layers/2/attention/key/bias" in message
    message = refusal(path, text_tower__depth=1)
    assert "tensors without a place in ours: encoder.layer.1." in message
    assert "and 8 more" in message and "coco_jax/presets.py" in message
    message = refusal(path, text__length=21)
    assert "20 positions; config.text.length of 21 is too long" in message
    save_file(bert() | {"adapter.weight": np.zeros(3, np.float32)}, path)
    assert "tensors without a place in ours: adapter.weight" in refusal(path)
    save_file({"layer.weight": np.zeros(3, np.float32)}, path)
    assert "no tower of a known family (it holds layer.weight)" in refusal(path)
    clip = "a CLIP (Hugging Face) checkpoint"
    save_file({"vision_model.embeddings.class_embedding": np.zeros(3, np.float32)}, path)
    assert clip.removeprefix("a ") in refusal(path)


def test_files_that_are_not_there_say_what_to_do(tmp_path, monkeypatch):
    assert "does not exist; name a file" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds none of model.safetensors" in refusal(tmp_path / "empty")
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF")
    assert "neither .safetensors nor .npz" in refusal(tmp_path / "weights.h5")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("hf:org/name")
    assert "https://huggingface.co/org/name/resolve/main/model.safetensors" in message
    assert "set config.text_tower.weights to its path" in message
    assert "not of the form hf:org/name" in refusal("hf:name")


def test_parts_of_one_checkpoint_are_read_together(path):
    tensors = bert()
    names = sorted(tensors)
    for k, part in enumerate((names[:10], names[10:])):
        save_file({n: tensors[n] for n in part}, path.parent / f"part{k}.safetensors")
    index = path.parent / "model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {"weight_map": {n: f"part{int(k >= 10)}.safetensors" for k, n in enumerate(names)}}
        )
    )
    assert files.read(index).keys() == tensors.keys()
    (path.parent / "part1.safetensors").unlink()
    assert "part1.safetensors is missing beside it" in refusal(index)


def test_halves_become_float32(tmp_path):
    import ml_dtypes

    value = np.array([1.5, -0.25])
    save_file({"a": value.astype(np.float16)}, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(files.read(tmp_path / "half.safetensors")["a"], value)
    np.savez(tmp_path / "half.npz", a=value.astype(ml_dtypes.bfloat16))
    got = files.read(tmp_path / "half.npz")["a"]
    np.testing.assert_array_equal(got, value)
    assert got.dtype == np.float32


@pytest.mark.parametrize("weights_of", [cubic_weights, linear_weights])
def test_resizing_keeps_what_is_even_and_what_has_its_size(weights_of):
    for before, after in ((14, 7), (7, 14), (5, 9)):
        np.testing.assert_allclose(weights_of(before, after).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights_of(6, 6), np.eye(6), atol=1e-6)
