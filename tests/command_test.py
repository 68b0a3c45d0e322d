"""Code that all commands share: finding config files, one-line errors, output folders."""

import logging as std_logging
import os
import subprocess
import sys
import warnings

import jax
import pytest
from absl import flags

from coco_jax import command, main
from coco_jax.command import keep_compiled, packaged_configs, writable_folder
from coco_jax.errors import UserError
from tests.helpers import runs


@pytest.fixture
def refused(parse, capsys):
    """Returns a function that gives the one-line error of coco_jax.main for its arguments."""

    def line_of(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            parse(main, *arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("command: ")
        return line.removeprefix("command: ")

    return line_of


@pytest.mark.parametrize(
    "written", ["k400_zsar", "k400_zsar.py", "configs/k400_zsar.py", "configs/k400_zsar"]
)
def test_packaged_config_is_found_by_name_from_any_folder(parse, tmp_path, monkeypatch, written):
    from coco_jax.configs import k400_zsar

    monkeypatch.chdir(tmp_path)
    for arguments in ([f"--config={written}"], ["--config", written]):
        parse(main, *arguments, "--config.seed=7")
        want = k400_zsar.get_config()
        want.seed = 7
        assert flags.FLAGS.config.to_dict() == want.to_dict()


def test_file_of_the_user_has_priority_over_a_packaged_config(parse, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.py").write_text(
        "from coco_jax.config import default\n"
        "def get_config(seed='1'):\n    c = default()\n    c.seed = int(seed)\n    return c\n"
    )
    monkeypatch.chdir(tmp_path)
    parse(main, "--config=configs/demo.py:41")
    assert flags.FLAGS.config.seed == 41


@pytest.mark.parametrize("written", ["k400_zasr", "k400_zasr.py", "configs/k400_zasr.py"])
def test_error_for_an_unknown_config_suggests_the_nearest_name_and_lists_all(refused, written):
    line = refused(f"--config={written}")
    assert line.startswith(f"--config={written}: neither a file nor a config of the package; ")
    assert "did you mean k400_zsar?" in line
    assert all(name in line for name in packaged_configs()) and len(packaged_configs()) >= 10
    assert "did you mean" not in refused("--config=nothing_of_that_kind")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("import os\n\ndef get_config():\n    return 1 / 0\n", 4, "ZeroDivisionError: division by"),
        ("def get_config():\n    raise KeyError('x')\n", 2, "KeyError: 'x'"),
        ("import nowhere\n", 1, "ModuleNotFoundError: No module named 'nowhere'"),
        ("x = 1\nraise ValueError('one\\ntwo')\n", 2, "ValueError: one two"),
        ("def get_config():\n    c = = 1\n", 2, "SyntaxError: invalid syntax"),
        ("a = 1\ndef get_config():\n    return {'seed': 1}\n", 2, "get_config() returns a dict, not a "),
        ("x = 1\n", 1, "no function get_config"),
        (
            "from coco_jax.config import default\ndef get_config():\n    c = default()\n"
            "    c.sed = 1\n    return c\n", 4, "AttributeError: ",
        ),
    ],
    ids=["raises", "KeyError", "import", "two lines", "syntax", "dict", "no function", "field"],
)  # fmt: skip
def test_error_in_a_config_file_is_one_line_with_its_line_number(
    refused, tmp_path, text, line, message
):
    path = tmp_path / "mine.py"
    path.write_text(text)
    got = refused(f"--config={path}")
    assert got.startswith(f"--config: {path}:{line}: ") and message in got


def test_syntax_error_in_an_imported_file_has_the_line_of_the_import(
    refused, tmp_path, monkeypatch
):
    (tmp_path / "broken_helper.py").write_text("x = 1\n" * 8 + "def\n")
    (tmp_path / "mine.py").write_text("import os\nimport broken_helper\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = refused(f"--config={tmp_path}/mine.py")
    assert "mine.py:2: SyntaxError: " in line and "broken_helper.py, line 9" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is missing; try --config=demo"),
        (("--config=demo", "--config.optimzer.steps=3"), "did you mean config.optimizer.steps?"),
        (("--config=demo", "--config.optimizer.steps=many"), "steps"),
        (("--config=demo", "--mood=both"), "mood"),
        (("--config=demo", "extra"), "'extra' is not a flag"),
    ],
)
def test_wrong_flag_is_a_one_line_error(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_folder_that_cannot_be_created_is_a_one_line_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"^--workdir={tmp_path}/{name}: .*; choose another folder$"
    ):
        writable_folder(tmp_path / name, "--workdir")


def test_writable_folder_is_created_and_stays_empty(tmp_path):
    writable_folder(tmp_path / "a/b", "--workdir")
    assert list((tmp_path / "a/b").iterdir()) == []


@pytest.mark.parametrize("words", [["coco_jax.compile"], ["coco_jax.cli"]])
def test_closed_output_pipe_causes_no_traceback(words):
    """As in `coco_jax.compile --help | head -1`; here the pipe is closed from the start."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *words, "--help"],
            env=runs.environment(), stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.stderr == "" and done.returncode == 1


def test_unfinished_reads_of_a_damaged_checkpoint_print_no_traceback():
    """orbax closes the event loop while TensorStore still reads other arrays for it."""
    done = runs.call(
        sys.executable,
        "-c",
        "from absl import flags; from coco_jax import command; flags.FLAGS(['x']); command.quiet()\n"
        "class Fails:\n"
        "    def __init__(self, message): self.message = message\n"
        "    def __del__(self): raise RuntimeError(self.message)\n"
        "Fails('Event loop is closed')\n"
        "Fails('another error')",
    )
    assert done.stderr.count("Traceback") == 1 and "RuntimeError: another error" in done.stderr


def test_only_tracebacks_of_orbax_are_hidden():
    """Orbax logs errors of its threads, and raises them in the main thread too."""

    def hidden(path: str, message: str, error: BaseException | None = None) -> bool:
        exc_info = (type(error), error, None) if error else None
        record = std_logging.LogRecord("absl", std_logging.ERROR, path, 1, message, (), exc_info)
        return command._is_raised_too(record)

    error = ValueError("no space")
    assert hidden("/lib/orbax/checkpoint/a.py", "Failed to run 4 operations", error)
    assert hidden("/lib/orbax/futures.py", "_SignalingThread.run() raised an exception: ...")
    assert not hidden("/lib/orbax/checkpoint/a.py", "a warning")
    assert not hidden("/lib/jax/a.py", "Failed to run 4 operations", error)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder; afterwards the compilation cache of the tests is used again."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    with warnings.catch_warnings():
        yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_a_folder_that_only_the_user_can_write(cache):
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(cache / "compiled")
    assert (cache / "compiled").stat().st_mode & 0o777 == 0o700


def test_compiled_programs_for_several_cpu_devices_are_not_kept(cache, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize("problem", ["others can write", "no folder", "of another user"])
def test_compiled_programs_are_not_read_from_a_folder_of_others(cache, problem, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    cache.mkdir()
    if problem == "no folder":
        (cache / "compiled").touch()
    else:
        (cache / "compiled").mkdir()
        (cache / "compiled").chmod(0o777 if problem == "others can write" else 0o755)
    if problem == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: (cache / "compiled").stat().st_uid + 1)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before
