"""Checkpoints: damaged files, a full disk, restoring on other meshes."""

import json
import os
import pathlib
import random
import resource
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from coco_jax import sharding
from coco_jax.errors import UserError
from coco_jax.training import checkpoint
from coco_jax.training.checkpoint import Checkpoints, restore_params
from coco_jax.training.step import make_program
from tests.helpers.compilations import compilations
from tests.training.step_test import random_batch

# If orbax cannot read one file, it leaves other reads unfinished, and their warnings are ignored.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)


def program_of(config, devices=1):
    return make_program(config, sharding.make_mesh(config, jax.devices()[:devices]))


def numbers(state):
    """Copies of all arrays, because a step donates its input."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def two(data_dir, tmp_path_factory):
    """Checkpoints of steps 1 and 2 of a run, and what was saved in them."""
    from conftest import tiny_config

    config = tiny_config(
        data_dir, ablation="label", text_tower__depth=1, video_tower__temporal="mean", model__dim=8
    )
    program, key = program_of(config), jax.random.key(0)
    folder = tmp_path_factory.mktemp("two")
    checkpoints, state, saved = Checkpoints(folder, 5, program), program.init(key), {}
    for step in (1, 2):
        state, _ = program.step(state, random_batch(config, step), key)
        checkpoints.save(state, config, 10 * step)
        saved[step] = numbers(state)
    checkpoints.close()
    return config, program, folder, saved


def restored(program, folder):
    checkpoints = Checkpoints(folder, 5, program)
    try:
        return checkpoints.restore()
    finally:
        checkpoints.close()


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(step: pathlib.Path) -> None:
    file = largest(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncate_all(step: pathlib.Path) -> None:
    """Halves all files with values: which of them has the parameters differs between runs."""
    for file in step.glob("state/**/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_saving_on_several_devices_compiles_no_slices_and_logs_no_warning(tiny, tmp_path, caplog):
    """By default orbax compiles a slice for each shape; it warns if its handler is replaced."""
    checkpoint._write_small_arrays_whole.cache_clear()  # called once in a process
    config = tiny(ablation="label")
    program = program_of(config, devices=8)
    state = program.init(jax.random.key(0))
    program.fingerprint(state)
    checkpoints = Checkpoints(tmp_path, 5, program)
    with compilations() as compiled:
        checkpoints.save(state, config, 0)
        checkpoints.close()
    assert not compiled
    assert same(numbers(restored(program, tmp_path)[0]), numbers(state))
    assert not [record for record in caplog.records if "handler" in record.getMessage()]


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda step: largest(step).unlink(),
        lambda step: shutil.rmtree(step / "state"),
        lambda step: (step / "meta" / "metadata").write_text("{"),
        lambda step: largest(step).write_bytes(b""),
        lambda step: (step / "state" / "_METADATA").write_text("1"),
        lambda step: (step / "meta" / "metadata").write_text("[]"),
        lambda step: (step / "meta" / "metadata").write_text("{}"),
    ],
    ids=[
        "file truncated",
        "file removed",
        "state removed",
        "meta not JSON",
        "file empty",
        "state metadata not an object",
        "meta not an object",
        "meta without fields",
    ],
)
def test_damaged_checkpoint_is_reported_and_the_previous_one_restored(two, tmp_path, capfd, damage):
    config, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "2")
    state, next_batch = restored(program, tmp_path)
    assert next_batch == 10 and same(numbers(state), saved[1])
    lines = [line for line in capfd.readouterr().err.splitlines() if "DAMAGED" in line]
    assert len(lines) == 1 and f"{tmp_path}/2" in lines[0] and "resuming from step 1" in lines[0]
    assert (tmp_path / "damaged.2").is_dir() and not (tmp_path / "2").exists()
    # The run repeats step 2 and can save its checkpoint.
    state, _ = program.step(state, random_batch(config, 2), jax.random.key(0))
    checkpoints = Checkpoints(tmp_path, 5, program)
    checkpoints.save(state, config, 20)
    checkpoints.close()
    again, next_batch = restored(program, tmp_path)
    assert next_batch == 20 and same(numbers(again), saved[2])


# Files in JSON that orbax writes; most bits of a checkpoint are in others.
METADATA = ("_METADATA", "_sharding", "_CHECKPOINT_METADATA", "metadata", "process_0")


def flip_a_bit(folder: pathlib.Path, seed: int, names: tuple[str, ...] = ()) -> None:
    """Inverts one bit of one file, or of one file with these names; every bit is equally likely."""
    chance = random.Random(seed)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and (not names or p.name in names))
    file = chance.choices(files, [p.stat().st_size for p in files])[0]
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def params_of(program, numbers):
    """The parameters among the numbers of a state."""
    return numbers[1 : 1 + len(jax.tree.leaves(program.abstract.params))]


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(n, marks=pytest.mark.faults) for n in range(10, 210))]
)
def test_a_flipped_bit_never_gives_other_values(two, tmp_path, seed):
    """Training, evaluation and prediction read the saved values, or report a damaged checkpoint."""
    _, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    flip_a_bit(tmp_path / "2", seed)
    try:
        step, params = restore_params(tmp_path, program)
    except UserError as error:
        assert "damaged" in str(error) and "\n" not in str(error)
    else:
        assert step == 2 and same(numbers(params), params_of(program, saved[2]))
    try:
        state, next_batch = restored(program, tmp_path)
    except UserError as error:
        assert "_CHECKPOINT_METADATA there is damaged" in str(error)
    else:
        step = int(state.step)
        assert next_batch == 10 * step and same(numbers(state), saved[step])


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.faults) for n in range(2, 300))]
)
def test_a_flipped_bit_of_the_metadata_never_gives_other_values(two, tmp_path, seed):
    _, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    flip_a_bit(tmp_path / "2", seed, METADATA)
    try:
        step, params = restore_params(tmp_path, program)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert step == 2 and same(numbers(params), params_of(program, saved[2]))
    try:
        state, next_batch = restored(program, tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        step = int(state.step)
        assert next_batch == 10 * step and same(numbers(state), saved[step])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"key": "params"', '{"key": "qarams"'),
        (
            '{"key": "opt_state", "key_type": 2}, {"key": "1"',
            '{"key": "opt_stat", "key_type": 2}, {"key": "1"',
        ),
    ],
)
def test_damaged_path_of_an_array_is_a_damaged_checkpoint(two, tmp_path, before, after):
    """Orbax raises an AssertionError if a list of such paths has a gap."""
    _, program, folder, _ = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "2/state/_METADATA"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError, match=r"the checkpoint is damaged|of another model"):
        restore_params(tmp_path, program)


def test_unknown_kind_of_sharding_does_not_matter(two, tmp_path):
    """The arrays get the sharding of the program."""
    _, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "2/state/_sharding"
    path.write_text(path.read_text().replace("NamedSharding", "Namedsharding"))
    step, params = restore_params(tmp_path, program)
    assert step == 2 and same(numbers(params), params_of(program, saved[2]))


def test_array_that_orbax_does_not_restore_is_a_damaged_checkpoint(two, tmp_path):
    """If a letter of an array's name is damaged, orbax restores the others and reports nothing."""
    _, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "2/state/_METADATA"
    metadata = json.loads(path.read_text())
    names = [name for name in metadata["tree_metadata"] if "('params', 'video'" in name]
    metadata["tree_metadata"][names[-1]]["key_metadata"][-2]["key"] += "x"
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"the checkpoint is damaged .* is missing"):
        restore_params(tmp_path, program)
    state, _ = restored(program, tmp_path)
    step = int(state.step)
    assert same(numbers(state), saved[step])


def swap_state(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")


def edit_meta(change):
    def damage(folder: pathlib.Path) -> None:
        path = folder / "2" / "meta" / "metadata"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_state, "its values do not match the stored fingerprint"),
        (edit_meta(lambda meta: meta.update(next_batch=11)), "does not match the stored checksum"),
        (edit_meta(lambda meta: meta.pop("coco_jax")), "metadata is missing"),
        (
            edit_meta(lambda meta: (meta.pop("checksum"), meta.update(fingerprint={}))),
            "do not match the stored fingerprint",
        ),
        (lambda folder: (folder / "2").rename(folder / "3"), "its values are of step 2"),
        (lambda folder: truncate_all(folder / "2"), "Error"),
    ],
    ids=["other state", "next batch", "no version", "fingerprint", "other step", "truncated"],
)
def test_params_that_were_not_saved_so_are_an_error(two, tmp_path, damage, message):
    _, program, folder, _ = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(
        UserError, match=f"the checkpoint is damaged .*{message}.*remove this folder"
    ):
        restore_params(tmp_path, program)


def test_params_of_an_old_checkpoint_without_fingerprint_are_read_if_they_are_finite(two, tmp_path):
    config, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def make_old(meta):
        del meta["checksum"], meta["fingerprint"]

    edit_meta(make_old)(tmp_path)
    step, params = restore_params(tmp_path, program)
    assert step == 2 and same(numbers(params), params_of(program, saved[2]))
    state, _ = restored(program, tmp_path)
    bad = state.params["video_out"]["kernel"].at[0, 0].set(np.inf)
    params = state.params | {"video_out": {"kernel": bad}}
    checkpoints = Checkpoints(tmp_path, 5, program)
    checkpoints.save(state._replace(step=state.step + 1, params=params), config, 30)
    checkpoints.close()
    with pytest.raises(UserError, match="video_out/kernel has values that are not finite"):
        restore_params(tmp_path, program)


def test_params_of_another_model_are_an_error_before_any_is_read(two, data_dir, monkeypatch):
    from conftest import tiny_config

    _, program, folder, _ = two
    large = tiny_config(
        data_dir,
        ablation="label",
        text_tower__depth=1,
        video_tower__temporal="mean",
        model__dim=65_536,
    )
    monkeypatch.setattr(ocp.CheckpointManager, "restore", None)
    with pytest.raises(UserError, match=r"is of another model .*give the folder of another run"):
        restore_params(folder, program_of(large))
    # Shapes that need much more memory than the files have bytes.
    monkeypatch.setattr(checkpoint, "MAX_COMPRESSION", 0.001)
    with pytest.raises(UserError, match=r"its files are too small for [\d,]+ bytes of parameters"):
        restore_params(folder, program)


@pytest.mark.parametrize("name", ["1/_CHECKPOINT_METADATA", "2/state/_METADATA", "2/meta/metadata"])
def test_fifo_in_a_checkpoint_is_an_error_at_once(two, tmp_path, name):
    _, program, folder, _ = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    for read in (restored, lambda program, folder: restore_params(folder, program)):
        with pytest.raises(UserError, match=f"{name}: cannot be read .not a regular file"):
            read(program, tmp_path)


def test_readable_checkpoint_with_another_fingerprint_is_damaged(two, tmp_path, capfd):
    """orbax can read the files, but they are of another state."""
    _, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    state, _ = restored(program, tmp_path)
    assert same(numbers(state), saved[1])
    assert "its values do not match the stored fingerprint" in capfd.readouterr().err


@pytest.mark.parametrize("error", [TypeError, NameError, AssertionError, ZeroDivisionError])
def test_programming_error_is_raised_and_moves_no_checkpoint(two, tmp_path, monkeypatch, error):
    _, program, folder, _ = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def fail(*args, **kwargs):
        raise error("a bug")

    with pytest.raises(error, match="a bug"):
        restored(program._replace(fingerprint=fail), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(error, match="a bug"):
        patch.setattr(ocp.CheckpointManager, "restore", fail)
        restored(program, tmp_path)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"1", "2"}


@pytest.mark.parametrize("content", ['{"init_timestamp_nsecs": "x"}', "[]", "[" * 100_000])
def test_damaged_checkpoint_metadata_file_is_a_one_line_error(two, tmp_path, content):
    """orbax reads these files of all checkpoints when it opens a folder."""
    _, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1/_CHECKPOINT_METADATA").write_text(content)
    for read in (
        lambda: restored(program, tmp_path),
        lambda: restore_params(tmp_path, program),
    ):
        with pytest.raises(
            UserError, match="a file _CHECKPOINT_METADATA there is damaged"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
    (tmp_path / "1/_CHECKPOINT_METADATA").unlink()  # as the error says
    state, _ = restored(program, tmp_path)
    assert same(numbers(state), saved[2])


def test_if_all_checkpoints_are_damaged_none_is_moved(two, tmp_path):
    _, program, folder, _ = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for step in ("1", "2"):
        truncate(tmp_path / step)
    with pytest.raises(UserError, match="all checkpoints are damaged") as caught:
        restored(program, tmp_path)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"1", "2"}


def test_checkpoint_of_another_model_is_an_error_and_not_moved(two, tmp_path, data_dir):
    from conftest import tiny_config

    _, _, folder, _ = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = program_of(tiny_config(data_dir, ablation="label", model__dim=16))
    with pytest.raises(UserError, match=r"is of another model .*e.g. params/text_out/kernel: "):
        restored(other, tmp_path)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"1", "2"}


def test_full_disk_is_an_error_and_keeps_the_last_complete_checkpoint(two, tmp_path):
    """RLIMIT_FSIZE limits the size of files, with an error like that of a full disk."""
    config, program, folder, saved = two
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state, _ = restored(program, tmp_path)
    state, _ = program.step(state, random_batch(config, 3), jax.random.key(0))
    checkpoints = Checkpoints(tmp_path, 5, program)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            UserError, match=r"could not be written .*the last complete one is of step 2"
        ):
            checkpoints.save(state, config, 30)
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    got, next_batch = restored(program, tmp_path)
    assert next_batch == 20 and same(numbers(got), saved[2])
    # Without the limit the step is saved, and the incomplete checkpoint is removed.
    checkpoints = Checkpoints(tmp_path, 5, program)
    checkpoints.save(state, config, 30)
    checkpoints.close()
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"1", "2", "3"}


def test_run_resumed_with_fewer_devices_and_another_mesh_has_the_same_losses(two, tmp_path):
    """8 devices, then 2, with different meshes, against one device."""
    one, alone, *_ = two
    key = jax.random.key(0)
    batches = [random_batch(one, step) for step in range(4)]

    def losses(program, state, steps):
        found = []
        for step in steps:
            state, terms = program.step(state, batches[step], key)
            found.append(float(terms["loss"]))
        return state, found

    _, wanted = losses(alone, alone.init(key), range(4))
    found, state = [], None
    for devices, mesh, steps in (
        (8, {"data": 2, "fsdp": 2, "tensor": 2}, (0, 1)),
        (2, {"data": 1, "fsdp": 1, "tensor": 2}, (2, 3)),
    ):
        config = one.copy_and_resolve_references()
        config.mesh.update(mesh)
        program = program_of(config, devices)
        checkpoints = Checkpoints(tmp_path, 2, program)
        before, got = state, checkpoints.restore()
        state = program.init(key) if got is None else got[0]
        if got is not None:
            assert same(numbers(state), before)
            for leaf, where in zip(
                jax.tree.leaves(state), jax.tree.leaves(program.abstract), strict=True
            ):
                assert leaf.sharding == where.sharding
        assert any("tensor" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(state))
        state, some = losses(program, state, steps)
        found += some
        checkpoints.save(state, config, len(found))
        checkpoints.close()
        state = numbers(state)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
