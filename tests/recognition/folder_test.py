"""Saved models: what a folder has, that it gives the same scores, and what strangers' folders do."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy

import coco_jax
from coco_jax import config as configs
from coco_jax.errors import UserError
from coco_jax.recognition.recognizer import Recognizer

ACTIONS = ["juggling", "rope skipping"]
CAPTIONS = {"juggling": ["balls in the air", "a clown"], "rope skipping": ["a rope", "jumps"]}
FILES = {"config.json", "model.safetensors", "tokenizer.model", "texts.json", "README.md"}


@pytest.fixture(scope="module")
def saved(untrained, tmp_path_factory) -> pathlib.Path:
    """A saved model with captions."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    untrained.save(folder, CAPTIONS)
    return folder


def test_saved_model_gives_the_same_scores_and_uses_its_captions(saved, untrained, video_path):
    loaded = coco_jax.load(saved)
    assert isinstance(loaded, Recognizer)
    want = untrained.rank([video_path], ACTIONS, CAPTIONS)
    assert loaded.rank([video_path], ACTIONS) == want
    assert loaded.rank([video_path], ACTIONS, CAPTIONS) == want
    assert untrained.rank([video_path], ACTIONS) != want
    # One action without captions: only names are compared.
    others = ["juggling", "swimming"]
    assert loaded.rank([video_path], others) == untrained.rank([video_path], others)
    assert loaded.training_data == "motion_zsar"


def test_saved_folder_has_its_files_a_card_and_no_path_of_this_machine(saved, untrained):
    assert {file.name for file in saved.iterdir()} == FILES
    stored = (saved / "config.json").read_text()
    assert "/home/me" not in stored and json.loads(stored)["format_version"] == 1
    card = (saved / "README.md").read_text()
    assert "motion_zsar" in card and "captions of 2 actions" in card
    assert "Nothing was measured" in card  # the run was not evaluated


def test_card_has_the_numbers_of_the_evaluation(untrained, tmp_path):
    numbers = {"top1": 0.625, "top5": None, "unseen_videos": 240}
    dataclasses.replace(untrained, numbers=numbers).save(tmp_path / "saved")
    coco_jax.load(tmp_path / "saved").save(tmp_path / "again")
    for name in ("saved", "again"):
        card = (tmp_path / name / "README.md").read_text()
        assert "top1 62.5 %: on 240 videos of unseen actions of motion_zsar" in card


def test_model_is_not_saved_over_other_files(untrained, saved, tmp_path):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(UserError, match="not empty"):
        untrained.save(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        untrained.save(tmp_path / "file")


def test_interpolated_model_is_saved_as_it_is(saved, untrained, tmp_path):
    """`eval.interpolate` was applied when the run was loaded; it must not be applied again."""
    config = untrained.config.copy_and_resolve_references()
    config.eval.interpolate, config.video_tower.weights = 0.5, "/home/me/published.npz"
    dataclasses.replace(untrained, config=config).save(tmp_path / "m")
    stored = json.loads((tmp_path / "m/config.json").read_text())["config"]
    assert stored["eval"]["interpolate"] == 0 and stored["video_tower"]["weights"] == ""
    weights = [(folder / "model.safetensors").read_bytes() for folder in (saved, tmp_path / "m")]
    assert weights[0] == weights[1]


# ------------------------------------------------------------------------------- strangers' folders
NUMBERS = [
    field
    for field, value in configs.flatten(configs.default().to_dict()).items()
    if type(value) in (int, float)
]
WRONG = (-1, 0, 0.5, 2**31, 10**30, 1e300, "x", None, [], {}, True, [1] * 2000)
TEXTS = ("{0.__class__}", "{0!r:>999999999}", "{", "{0}{1}", "", "\x1b[31m", "x" * 9999)


def _config(change):
    """Changes config.json by a function of its object."""

    def mutate(folder):
        stored = json.loads((folder / "config.json").read_text())
        change(stored)
        (folder / "config.json").write_text(json.dumps(stored))

    return mutate


def _write(name, content):
    def mutate(folder):
        (folder / name).unlink()
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return mutate


def _set(field, value):
    def change(stored):
        *sections, name = field.split(".")
        where = stored
        for section in sections:
            where = where[section]
        where[name] = value

    return _config(change)


def _tensors(change):
    """Changes the tensors by a function of a dict."""

    def mutate(folder):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    return mutate


def _header(change):
    """Changes the header of the tensors; the values stay."""

    def mutate(folder):
        data = (folder / "model.safetensors").read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:end])
        change(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[end:])

    return mutate


def _special(name, make):
    def mutate(folder):
        (folder / name).unlink()
        make(folder / name)

    return mutate


BIG = "video/embed/kernel"


def _grow(header):
    header[BIG]["shape"] = [10**6, 10**6]
    header[BIG]["data_offsets"][1] += 4 * 10**12 - 4 * 32


FIXED = {
    "config: empty": _write("config.json", ""),
    "config: not UTF-8": _write("config.json", b"\xff\xfe{}"),
    "config: a list": _write("config.json", "[]"),
    "config: deep": _write("config.json", '{"format":' * 900 + "1" + "}" * 900),
    "config: very deep": _write("config.json", "[" * 100_000),
    "config: a deep field": _set(
        "config", {"data": {"a": [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]}}
    ),
    "config: large": _write("config.json", "{" + " " * (2 << 20) + "}"),
    "config: a FIFO": _special("config.json", os.mkfifo),
    "config: a device": _special("config.json", lambda path: path.symlink_to("/dev/zero")),
    "format: other": _set("format", "another program"),
    "format: number": _set("format", 5),
    "version: later": _set("format_version", 2),
    "version: fraction": _set("format_version", 1.5),
    "version: huge": _set("format_version", 10**300),
    "version: text": _set("format_version", "1"),
    "version: True": _set("format_version", True),
    "kind: unknown": _set("kind", "pickle"),
    "kind: a list": _set("kind", ["coco"]),
    "kind: of other files": _set("kind", "pretrained"),
    "training data: escape": _set("training_data", "\x1b[2Jx"),
    "training data: lines": _set("training_data", "x\ny"),
    "training data: missing": _config(lambda stored: stored.pop("training_data")),
    "numbers: wrong": _set("numbers", {"top1": [1], "split": "\x1b"}),
    "settings: missing": _config(lambda stored: stored.pop("config")),
    "settings: later": _set("config.version", 99),
    "settings: unknown field": _set("config.data.no_such_field", 1),
    "features": _set("config.video_tower.kind", "features"),
    "weights: missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights: empty": _write("model.safetensors", ""),
    "weights: a pickle": _write("model.safetensors", b"\x80\x04K\x01."),
    "weights: header size": _write("model.safetensors", struct.pack("<Q", 2**63 - 1) + b"{}"),
    "weights: header": _write("model.safetensors", struct.pack("<Q", 9) + b"{garbage}"),
    "weights: truncated": lambda folder: os.truncate(folder / "model.safetensors", 9_999),
    "weights: a folder": _special("model.safetensors", pathlib.Path.mkdir),
    "weights: a FIFO": _special("model.safetensors", os.mkfifo),
    "weights: one missing": _tensors(lambda tensors: tensors.pop(BIG)),
    "weights: one more": _tensors(lambda tensors: tensors.update(x=np.zeros(3))),
    "weights: transposed": _tensors(lambda t: t.update({BIG: np.ascontiguousarray(t[BIG].T)})),
    "weights: NaN": _tensors(lambda t: t.update({BIG: t[BIG] * np.nan})),
    "weights: huge values": _tensors(lambda t: t.update({BIG: t[BIG] * 0 + np.float32(3e38)})),
    "weights: float64": _tensors(lambda t: t.update({BIG: t[BIG].astype(np.float64)})),
    "weights: log_tau": _tensors(lambda t: t.update(log_tau=np.array(-1e30, np.float32))),
    "weights: declared huge": _header(_grow),
    "weights: dtype": _header(lambda header: header[BIG].update(dtype="F99")),
    "tokenizer: missing": lambda folder: (folder / "tokenizer.model").unlink(),
    "tokenizer: garbage": _write("tokenizer.model", os.urandom(99)),
    "tokenizer: JSON": _write("tokenizer.model", '{"model": {"type": "BPE"}}'),
    "texts: missing": lambda folder: (folder / "texts.json").unlink(),
    "texts: a list": _write("texts.json", "[1]"),
    "texts: numbers": _write("texts.json", '{"captions": {"juggling": [1]}}'),
    "texts: deep": _write("texts.json", '{"captions":' + "[" * 5000 + "]" * 5000 + "}"),
}


def _random_cases(count, seed=0):
    """Wrong values in the run's config."""
    draw = random.Random(seed)
    for _ in range(count):
        field, value = draw.choice(NUMBERS), draw.choice(WRONG)
        yield f"{field}={str(value)[:20]}", _set(f"config.{field}", value)
    for text in TEXTS:
        yield f"template {text[:20]!r}", _set("config.text.templates", [text])
    for field in (
        "text.tokenizer_style",
        "video_tower.pool",
        "model.dtype",
        "video_tower.temporal",
    ):
        yield f"{field}=own?", _set(f"config.{field}", draw.choice(["own", "map", "float64", [1]]))


def test_folder_of_a_stranger_is_a_user_error_or_a_working_recogniser(saved, tmp_path, video_path):
    """Errors are one line; nothing waits for ever; memory stays far below the declared sizes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worked = []
    for name, mutate in [*FIXED.items(), *_random_cases(40)]:
        folder = tmp_path / "model"
        shutil.copytree(saved, folder)
        mutate(folder)
        try:
            model = coco_jax.load(folder)
            (ranked,) = model.rank([video_path], ACTIONS)
            assert sum(row.score for row in ranked) == pytest.approx(1, abs=1e-4), name
            worked.append(name)
        except UserError as error:
            assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 999, (
                name
            )
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert "weights: float64" in worked and len(worked) < 30, worked
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, f"{grown} KiB"


def test_error_names_the_file_and_the_tensor(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    FIXED["weights: transposed"](tmp_path / "m")
    with pytest.raises(UserError, match=r"model\.safetensors: 'video/embed/kernel' has shape"):
        coco_jax.load(tmp_path / "m")
