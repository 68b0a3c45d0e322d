"""Tests of reading checkpoint files, and of the error messages for files that cannot be used."""

import contextlib
import json
import os
import pathlib
import shlex
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from coco_jax import arrays, weights
from coco_jax.errors import UserError
from coco_jax.weights import files
from coco_jax.weights.bert import HUGGING_FACE
from coco_jax.weights.table import fill
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
def test_pickle_error_gives_a_working_conversion_command(tmp_path, name, monkeypatch):
    """A pickle is recognised by its name, and by its content if it is called .safetensors."""
    torch = pytest.importorskip("torch")
    tensors = {"embeddings.word_embeddings.weight": torch.ones(2, 3)}
    torch.save(tensors, tmp_path / name)
    message = error_of(tmp_path)
    assert "a pickle" in message and "save_file" in message
    if name == "model.safetensors":
        return  # torch itself does not read a pickle of that name
    # Run the command of the message.
    code, arguments = message.split('python -c "')[1].split('" ')
    monkeypatch.setattr("sys.argv", ["-c", *shlex.split(arguments)])
    exec(code)
    target = tmp_path / ("pytorch_model" if "py" in name else "model")
    converted = files.read(target.with_suffix(".safetensors"))
    assert converted.keys() == tensors.keys()


def test_npz_with_pickled_objects_raises_user_error(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"any": "code"}], dtype=object))
    assert "pickle" in error_of(tmp_path / "x.npz")


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


@pytest.mark.parametrize(
    "name",
    [
        "../part.safetensors", "/etc/passwd", "/tmp/x.safetensors", "a/b.safetensors", ".", "..",
        "model.safetensors.index.json", "x.bin", "", "a\\b.safetensors", "a\0.safetensors", 7, ["x"],
        None, "a" * 5000 + ".safetensors",
    ],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_index_may_name_only_safetensors_files_of_its_folder(tmp_path, name):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "part.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="not an index of safetensors files") as error:
        files.read(index)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": "\\ud800"}}', "\xff"],
)
def test_damaged_index_is_an_error(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not an index of safetensors files"):
        files.read(index)
    with index.open("wb") as stream:  # a terabyte without blocks on the disk
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than 33,554,432 bytes"):
        files.read(index)


def test_fifo_and_device_are_an_error(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", pathlib.Path("/dev/zero")):
        with pytest.raises(UserError, match="not a regular file"):
            files.read(path)
        with pytest.raises(UserError, match="not a regular file"):
            files.locate(str(path), "text_tower.weights", files.NAMES)


@pytest.mark.parametrize("value", [np.ones(3, np.complex64), np.array(["1.5"]), np.array([1e300])])
def test_npz_with_anything_but_finite_real_numbers_is_an_error(tmp_path, value):
    np.savez(tmp_path / "x.npz", a=value)
    with pytest.raises(UserError, match=r"only real numbers|NaN or infinity"):
        files.read(tmp_path / "x.npz")


def test_npz_that_expands_beyond_the_limits_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20, np.float32))
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 1,048,576 and more than 20 times the size"):
        files.read(tmp_path / "x.npz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_large_or_overlapping_header_of_safetensors_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"

    def write(header: dict, size: int) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))

    def tensor(start, end, shape=(2,)):
        return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}

    for header in (
        {"a": tensor(0, 8), "b": tensor(0, 8)},
        {"a": tensor(0, 8), "b": tensor(4, 12)},
        {"a": tensor(8, 0)},
        {"a": tensor(0, 2**63, [2**61])},
        {"a": tensor(0, 8, [2**32, 2**32])},
        {"a": tensor(0, 16)},
        {"a": 1},
    ):
        write(header, 12)
        with pytest.raises(UserError, match="damaged or truncated"):
            files.read(path)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", files.MAX_HEADER + 1) + b"{")
        stream.truncate(1 << 30)  # without blocks on the disk
    with pytest.raises(UserError, match="a header of 8,388,609 bytes"):
        files.read(path)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (1, 1, 1, 1, 1)])
def test_tensor_of_any_shape_is_a_user_error(path, shape):
    """Transforms of tensors raised an IndexError or TypeError for axes that are missing."""
    config = towers.make_config(small, path)
    shapes = towers.shapes_of(config)[-1]
    tensors = bert()
    for name in tensors:
        changed = tensors | {name: np.zeros(shape, np.float32)}
        if name.startswith("pooler"):
            continue  # is not used
        with pytest.raises(UserError, match="does not fit the text tower"):
            fill(HUGGING_FACE, "text", changed, shapes, "x", False)


@pytest.mark.parametrize("family", weights.FAMILIES, ids=lambda family: family.name)
def test_transforms_of_all_families_survive_tensors_of_any_shape(family):
    """The errors are those that `fill` reports; whatever they return, it compares the shape."""
    target = {"scale": (6,), "kernel": (4, 2, 3), "position": (9, 6), "log_tau": ()}
    for row in (*family.video, *family.text, *family.both):
        if not row.sources:
            continue
        wanted = target.get(row.path.rpartition("/")[2], (6,))
        for shape in [(), (0,), (1,), (5,), (3, 0), (0, 3), (2, 7), (1, 1, 1, 1, 1, 1)]:
            tensors = [np.zeros(shape, np.float32)] * len(row.sources)
            with contextlib.suppress(ValueError, IndexError, TypeError, ZeroDivisionError):
                row.transform(*tensors, wanted)


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
