"""Tests of reading checkpoint files, and of the error messages for files that cannot be used."""

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
from tests.weights.load_test import tiny as small_clip


def bert(vocabulary=99, width=32, depth=2):
    """All tensors of a small BERT, filled with zeros."""
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
    """A valid checkpoint."""
    save_file(bert(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def error_of(path, preset=small, **changes) -> str:
    """The message of the UserError that loading raises; checks that it is one short line."""
    config = towers.make_config(preset, path, **changes)
    with pytest.raises(UserError) as caught:
        weights.published(config, towers.shapes_of(config)[-1])
    message = str(caught.value)
    assert "\n" not in message and ("a pickle" in message or len(message) < 500)
    return message


def test_valid_checkpoint_loads_from_its_path_or_folder(path):
    for where in (path, path.parent):
        config = towers.make_config(small, where)
        assert len(weights.published(config, towers.shapes_of(config)[-1])) == 38


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_pickle_error_gives_a_working_conversion_command(tmp_path, name):
    """A pickle is recognised by its name, and by its content if it is called .safetensors."""
    torch = pytest.importorskip("torch")
    tensors = {"embeddings.word_embeddings.weight": torch.ones(2, 3)}
    torch.save(tensors, tmp_path / name)
    message = error_of(tmp_path)
    assert "a pickle" in message and "save_file" in message
    if name == "model.safetensors":
        return  # torch itself does not read a pickle of that name
    # Run the command of the message.
    code = message.split('python -c "')[1].rstrip('"')
    exec(code)
    target = tmp_path / ("pytorch_model" if "py" in name else "model")
    converted = files.read(target.with_suffix(".safetensors"))
    assert converted.keys() == tensors.keys()


def test_npz_with_pickled_objects_raises_user_error(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"any": "code"}], dtype=object))
    assert "pickled objects" in error_of(tmp_path / "x.npz")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_file_raises_user_error(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep >= 1 else int(keep * len(whole))])
    assert "damaged or truncated" in error_of(path)


def test_corrupted_header_or_values_raise_user_error(path):
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    name = "embeddings.LayerNorm.bias"
    for change in (
        {"shape": [31]},  # not the number of bytes
        {"data_offsets": [128, 256]},  # another tensor's bytes
        {"data_offsets": [len(whole), len(whole) + 128]},  # beyond the end of the file
        {"dtype": "X32"},
    ):
        changed = json.dumps(header | {name: header[name] | change}).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + whole[8 + length :])
        assert "damaged or truncated" in error_of(path), change
    path.write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    assert "damaged or truncated" in error_of(path)
    path.write_bytes(whole[:-4] + struct.pack("<f", np.nan))
    assert "NaN or infinity" in error_of(path)


def test_checkpoint_that_does_not_fit_raises_user_error_naming_the_first_difference(path):
    message = error_of(path, small_clip)
    assert "has no video tower; set config.text_tower.weights instead" in message
    message = error_of(path, text_tower__width=48)
    assert (
        "embeddings.word_embeddings.weight has shape (99, 32), but the config needs (99, 48) "
        "(set config.text_tower.width)" in message
    )
    assert "more differences" in message and "coco_jax/presets.py" in message
    message = error_of(path, text__vocabulary=98)
    assert "set config.text.vocabulary=99" in message
    message = error_of(path, text_tower__mlp_ratio=2.0)
    assert "set config.text_tower.mlp_ratio" in message
    message = error_of(path, text_tower__depth=3)
    assert (
        "there is no tensor for the parameter text/blocks/layers/2/attention/key/bias "
        "(set config.text_tower.depth), and 15 more differences" in message
    )
    message = error_of(path, text_tower__depth=1)
    assert (
        "encoder.layer.1.attention.output.LayerNorm.bias is not used by the config's tower "
        "(set config.text_tower.depth), and 15 more differences" in message
    )
    message = error_of(path, text__length=21)
    assert "has 20 positions; set config.text.length to at most 20" in message
    save_file(bert() | {"adapter.weight": np.zeros(3, np.float32)}, path)
    assert "adapter.weight is not used by the config's tower" in error_of(path)
    save_file({"layer.weight": np.zeros(3, np.float32)}, path)
    assert "unknown kind of checkpoint (its tensors: layer.weight)" in error_of(path)
    save_file({"vision_model.embeddings.class_embedding": np.zeros(3, np.float32)}, path)
    assert "CLIP (Hugging Face) checkpoint" in error_of(path)


def test_missing_file_or_failed_download_raises_user_error_with_remedy(tmp_path, monkeypatch):
    assert "does not exist; give a file" in error_of(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has none of the files model.safetensors" in error_of(tmp_path / "empty")
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF")
    assert "neither .safetensors nor .npz" in error_of(tmp_path / "weights.h5")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = error_of("hf:org/name")
    assert "https://huggingface.co/org/name/resolve/main/model.safetensors" in message
    assert "set config.text_tower.weights to its path" in message
    assert "not of the form hf:org/name" in error_of("hf:name")


def test_sharded_checkpoint_is_read_through_its_index(path):
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
    assert "part1.safetensors is missing in the same folder" in error_of(index)


def test_float16_and_bfloat16_are_read_as_float32(tmp_path):
    import ml_dtypes

    value = np.array([1.5, -0.25])
    save_file({"a": value.astype(np.float16)}, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(files.read(tmp_path / "half.safetensors")["a"], value)
    np.savez(tmp_path / "half.npz", a=value.astype(ml_dtypes.bfloat16))
    got = files.read(tmp_path / "half.npz")["a"]
    np.testing.assert_array_equal(got, value)
    assert got.dtype == np.float32


@pytest.mark.parametrize("weights_of", [cubic_weights, linear_weights])
def test_resizing_preserves_constants_and_equal_sizes(weights_of):
    for before, after in ((14, 7), (7, 14), (5, 9)):
        np.testing.assert_allclose(weights_of(before, after).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights_of(6, 6), np.eye(6), atol=1e-6)
