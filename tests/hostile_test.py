"""Hostile files: each gives a result or one line, in bounded time and memory, and opens no other."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from tests.helpers import hostile, hostile_runs, runs
from tests.helpers.rankers import ColourRanker

MEGABYTES, SECONDS = 2048, 20  # for each file: resident memory, CPU time
FULL = {
    "video": 100, "actions": 33, "descriptions": 48, "weights": 45, "features": 40, "folder": 30,
    "archive": 39, "model": 18,
}  # fmt: skip


def check(case: hostile.Case, outcome: hostile_runs.Outcome) -> None:
    """The exit code and the output of a command that was given the file."""
    text = f"{case}: {outcome}"
    errors = [line for line in outcome.err.splitlines() if line.startswith("command: ")]
    if outcome.code == 2:
        assert len(errors) == 1 and len(errors[0]) < 1500, text
        assert case.kind != "video", text
    elif outcome.code == 3:  # the video could not be read; its row has the reason
        assert case.kind == "video" and not errors, text
        assert (
            len([line for line in outcome.out.splitlines() if line.startswith("  error: ")]) == 1
        ), text
        assert len(outcome.out.splitlines()) == 2, text
    else:
        assert outcome.code == 0 and not case.refused, text
    shown = (outcome.out + outcome.err).replace("\n", "")
    assert shown.isprintable() or "\u3000" in shown, text  # no control characters
    assert "coco_jax.predict: done" not in (outcome.out + outcome.err).splitlines(), text
    assert outcome.megabytes < MEGABYTES and outcome.seconds < SECONDS, text


@pytest.fixture
def predict_flags():
    """The flags of the command, which other tests define too."""
    from absl import flags

    before = set(flags.FLAGS)
    hostile_runs.define_flags()
    yield
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_one_file_of_every_kind_gives_a_result_or_one_line(tmp_path, predict_flags):
    """In this process, without a model and without building datasets."""
    counts = {kind: len(recipes) for kind, recipes in hostile.RECIPES.items()}
    for case in hostile.make(tmp_path, counts):
        outcome = hostile_runs.run(case, ColourRanker(), build=None)
        check(case, outcome._replace(megabytes=0))  # the peak of all tests in this process
    assert not (tmp_path / "secret/executed").exists()


@pytest.mark.parametrize("timeline", [False, True])
def test_folder_of_hostile_videos_has_a_result_or_an_error_for_each(
    tmp_path, predict_flags, timeline
):
    """Found by a pattern; as JSON lines and as a table."""
    cases = hostile.make(tmp_path, {"video": len(hostile.RECIPES["video"])}, seed=3)
    words = [f"{tmp_path}/video*/*"]
    ranker = ColourRanker()
    outcome = hostile_runs.predict_words(ranker, words, jsonl=True, timeline=timeline)
    assert outcome.code == 3 and outcome.seconds < SECONDS, outcome
    rows = {row["video"]: row for row in map(json.loads, outcome.out.splitlines())}
    kind = "segments" if timeline else "actions"
    for case in cases:
        if case.what == "directory":  # an empty folder with the name of a video
            continue
        row = rows[case.path]
        assert ("error" in row) != (kind in row), case
        assert "error" in row or not case.refused, case
        assert len(row.get("error", "")) < 1500, case
    outcome = hostile_runs.predict_words(ranker, words, csv=True, timeline=timeline)
    assert outcome.out.replace("\n", "").isprintable(), outcome
    table = list(csv.DictReader(io.StringIO(outcome.out)))
    assert len({row["video"] for row in table}) == len(rows)
    assert not any(cell[:1] in ("=", "+", "@") for row in table for cell in row.values())


@pytest.mark.faults
def test_hostile_files_give_a_result_or_one_line_and_open_nothing_else(tmp_path, trained_run):
    """In one child process with a trained model, which also builds datasets, under strace."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: it shows which files are opened")
    cases = hostile.make(tmp_path / "files", FULL, seed=1)
    assert len(cases) > 300
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = (
        strace, "-f", "-qq", "--seccomp-bpf", "-e", "trace=open,openat,openat2,socket,connect",
        "-s", "4096", "-o", str(tmp_path / "trace"),
        sys.executable, "-m", "tests.helpers.hostile_runs", str(tmp_path / "cases.json"),
        str(trained_run), str(tmp_path / "results.jsonl"),
    )  # fmt: skip
    child = subprocess.run(
        command, env=runs.environment(), cwd=runs.ROOT, capture_output=True, text=True, timeout=3000
    )
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    outcomes = [hostile_runs.Outcome(*json.loads(line)) for line in lines]
    assert len(outcomes) == len(cases), f"ended at {cases[len(outcomes)]}: {child.stderr[-2000:]}"
    for case, outcome in zip(cases, outcomes, strict=True):
        check(case, outcome)
    assert not (tmp_path / "files/secret/executed").exists()
    trace = hostile_runs.opened(tmp_path / "trace")
    assert sorted(trace) == list(range(len(cases)))
    for case, (paths, sockets) in zip(cases, (trace[n] for n in sorted(trace)), strict=True):
        assert not sockets, f"{case}: {sockets}"
        assert not (others := {path for path in paths if is_other(path, case)}), f"{case}: {others}"


def is_other(path: str, case: hostile.Case) -> bool:
    """Whether a path is neither that of the case nor a file that programs open anyway."""
    if not path.startswith("/"):
        return False  # relative to a folder that is open, such as a temporary one that is removed
    whole = case.kind in ("video", "actions", "descriptions", "archive")
    folder = (
        case.path if case.kind in ("features", "folder", "model") else os.path.dirname(case.path)
    )
    known = (
        *filter(None, sys.path), sys.prefix, sys.base_prefix, str(runs.ROOT),
        f"{tempfile.gettempdir()}/tmp", os.environ["JAX_COMPILATION_CACHE_DIR"],
        "/proc/", "/sys/", "/dev/null", "/dev/urandom", "/dev/shm/sem.", "/usr/", "/lib", "/etc/ld.so",
        "/etc/localtime", hostile_runs.MARK, case.path if whole else folder,
    )  # fmt: skip
    # Python tries whether a folder for temporary files is writable, with a file of a random name.
    return not (path.startswith(known) or os.path.dirname(path) == tempfile.gettempdir())
