"""The command coco_jax.predict: its output, its picture and its exit codes."""

import csv
import io
import json
import sys

import pytest
from PIL import Image

from coco_jax import predict
from coco_jax.errors import UserError
from coco_jax.recognition import inputs, sources
from tests.helpers import runs
from tests.helpers.pages import Page
from tests.helpers.rankers import ColourRanker, coloured


def test_flag_json_prints_the_scores_as_json_and_flag_plot_draws_them(
    trained_run, video_path, tmp_path
):
    picture = tmp_path / "new" / "a.png"
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={trained_run}",
        f"--video={video_path}", "--actions=juggling, rope skipping", "--json",
        f"--plot={picture}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["video"] == str(video_path)
    assert {entry["action"] for entry in row["actions"]} == {"juggling", "rope skipping"}
    assert row["actions"][0]["score"] >= row["actions"][1]["score"]
    assert str(picture) in done.stderr
    assert Image.open(picture).size[0] > 1000


def test_invalid_video_has_an_error_in_its_row_and_the_others_are_ranked(
    trained_run, video_path, tmp_path, monkeypatch
):
    """The code that this command compiles is kept for the next one."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.mp4").write_bytes(b"not a video at all")
    done = runs.call(
        runs.sys.executable, "-m", "coco_jax.predict", f"--checkpoint={trained_run}",
        f"--video={tmp_path / 'x.mp4'}", f"--video={video_path}", "--actions=run,swim", "--json",
        "--top=1",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    bad, good = json.loads(done.stdout)
    assert "x.mp4: not a video" in bad["error"] and len(good["actions"]) == 1
    assert "1 of 2 videos could not be read" in done.stderr
    assert "its answers on real videos mean nothing" in done.stderr
    assert list((tmp_path / "cache/compiled").glob("jit_*-cache"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "no videos; name files, folders or patterns"),
        (("--video=a.mp4", "--plot=a.jpg"), "ends in .png"),
        (("--video=a.mp4", "--plot=/dev/null/a.png"), "choose another folder"),
        (("--video=a.mp4", "--html=a.png"), "ends in .html"),
    ],
    ids=["no video", "not a png", "no folder", "not html"],
)
def test_flags_that_cannot_work_are_an_error_before_any_video_is_read(parse, arguments, said):
    parse(predict, "--actions=run,swim", *arguments)
    with pytest.raises(UserError, match=said):
        predict.command([])


ACTIONS = "--actions=red, green, blue"


@pytest.fixture
def call(parse, monkeypatch, capsys):
    """Runs the command in this process with a recogniser of colours: `call(words, flags)`.

    Returns a function that gives the exit code and the lines of stdout and stderr.
    """
    monkeypatch.setattr(predict.coco_jax, "load", lambda *_: ColourRanker())

    def run(words, *arguments):
        parse(predict, "--model=COLOURS", ACTIONS, *arguments)
        code = 0
        try:
            predict.command(["predict", *map(str, words)])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder with videos, folders with videos, other files, and a link that leads in a circle."""
    tree = tmp_path_factory.mktemp("tree")
    (tree / "deep/er").mkdir(parents=True)
    for name, *parts in (
        ("b.mp4", ("red", 3)), ("deep/a.MKV", ("green", 3)), ("deep/er/c.mp4", ("blue", 3), ("red", 5)),
    ):  # fmt: skip
        (tree / name).write_bytes(coloured(*parts))
    (tree / "notes.txt").write_text("no video")
    (tree / ".hidden.mp4").write_text("no video")
    (tree / "deep/circle").symlink_to(tree)
    return tree


def test_folders_are_searched_and_patterns_are_matched(tree, call):
    code, out, _ = call([tree], "--jsonl", "--topk=1")
    rows = [json.loads(line) for line in out.splitlines()]
    want = ["b.mp4", "deep/a.MKV", "deep/er/c.mp4"]
    assert code == 0 and [row["video"] for row in rows] == [str(tree / name) for name in want]
    assert [row["actions"][0]["action"] for row in rows] == ["red", "green", "red"]
    assert all(len(row["actions"]) == 1 for row in rows)
    _, out, _ = call([f"{tree}/**/*.mp4", tree / "b.mp4"], "--jsonl")  # b.mp4 only once
    assert [json.loads(line)["video"] for line in out.splitlines()] == [
        str(tree / name) for name in ("b.mp4", "deep/er/c.mp4")
    ]


@pytest.mark.parametrize(
    "words, arguments, said",
    [
        (["{tree}/deep/*.avi"], (), "no file has a name like this"),
        (["{tree}/**.mp4"], (), r"Invalid pattern: .*; e\.g\. clips/\*\*/\*\.mp4"),
        (["{tree}/empty"], (), "no file in this folder has an extension of videos"),
        (["http://me:secret@localhost/a.mp4"], (), "opened only with --allow_url"),
        (["ftp://localhost/a.mp4"], ("--allow_url",), "'ftp' is not supported; use one of http, https"),
        (["file:///etc/passwd"], ("--allow_url",), "'file' is not supported"),
        ([], ("--webcam=77",), "--webcam=77: there is no /dev/video77; .*; give a video file instead"),
        (["a.mp4"], ("--json", "--csv"), "two formats"),
        (["a.mp4"], ("--resume",), "add --jsonl and --output=FILE"),
        (["a.mp4"], ("--timeline", "--plot=a.png"), "leave out --plot or --timeline"),
        (["a.mp4"], ("--timeline", "--top=2"), "a segment of --timeline has one action"),
        (["a.mp4"], ("--timeline", "--stride=0"), "--stride=0.0: give seconds above 0"),
        (["a.mp4"], ("--output=/dev/null/x",), "choose another"),
    ],
)  # fmt: skip
def test_words_and_flags_that_cannot_work_are_one_line(tree, call, words, arguments, said):
    (tree / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=said) as error:
        call([word.format(tree=tree) for word in words], *arguments)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_strict_stops_at_the_first_video_that_cannot_be_read(tree, call):
    with pytest.raises(UserError, match=r"gone\.mp4: No such file"):
        call([tree / "gone.mp4", tree / "b.mp4"], "--strict")
    code, out, err = call([tree / "gone.mp4", tree / "b.mp4"])
    assert code == 3 and "  error: " in out and "100.0%" not in out
    assert "1 of 2 videos could not be read" in err


def test_timeline_in_all_formats(tree, call):
    path = tree / "deep/er/c.mp4"
    _, out, _ = call([path], "--timeline", "--json")
    (row,) = json.loads(out)
    assert row["video"] == str(path) and row["duration"] == pytest.approx(8)
    first, second = row["segments"]
    assert (first["action"], second["action"]) == ("blue", "red") and first["start"] == 0
    assert first["end"] == second["start"] == pytest.approx(3, abs=0.7)
    _, lines, _ = call([path], "--timeline", "--jsonl")
    assert json.loads(lines) == row
    _, table, _ = call([path], "--timeline", "--csv")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [cells["action"] for cells in rows] == ["blue", "red"]
    for cells, segment in zip(rows, row["segments"], strict=True):
        for column in ("start", "end", "score"):
            assert float(cells[column]) == pytest.approx(segment[column], abs=1e-3)
    _, text, _ = call([path], "--timeline")
    name, one, two = text.splitlines()
    assert name == str(path) and one.startswith("     0:00.0 -    0:0")
    assert two.endswith("%  red") and "0:08.0" in two


def test_table_has_a_row_for_each_action_and_for_each_error(tree, call):
    code, out, _ = call([tree / "b.mp4", tree / "gone.mp4"], "--csv", "--threshold=0.9")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 3 and len(rows) == 5
    assert [(row["rank"], row["action"]) for row in rows[:2]] == [
        ("1", "red"),
        ("2", "none of these"),
    ]
    assert sum(float(row["score"]) for row in rows[:4]) == pytest.approx(1, abs=1e-5)
    assert rows[4]["action"] == "" and "No such file" in rows[4]["error"]


def test_names_cannot_be_formulas_or_control_the_terminal(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=cmd|' 'calc'!A0.mp4", "@SUM(1).mp4", "-2+3.mp4", "x\x1b[31m\ny.mp4", "a;=1+1.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(coloured(("red", 1)))
    _, out, _ = call(["*.mp4"], "--csv", "--top=1")
    assert out.replace("\n", "").isprintable()
    cells = [row["video"] for row in csv.DictReader(io.StringIO(out))]
    assert len(cells) == len(names) and not any(cell[0] in "=+-@" for cell in cells)
    assert all(line.startswith('"') for line in out.splitlines())  # so that ";" splits no cell
    for form in ("--json", "--jsonl", "--timeline"):
        _, out, _ = call(["*.mp4"], form)
        assert out.replace("\n", "").isprintable(), form
    assert sorted(
        json.loads(line)["video"] for line in call(["*.mp4"], "--jsonl")[1].splitlines()
    ) == (sorted(names))


def test_resume_skips_what_the_file_has_and_drops_an_incomplete_line(tree, call, tmp_path):
    file = tmp_path / "new/results.jsonl"
    words = [tree / "b.mp4", tree / "gone.mp4", tree / "deep"]
    flags = ("--jsonl", f"--output={file}")
    code, out, err = call(words, *flags)
    assert code == 3 and out == "" and "1 of 4 videos" in err
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    with pytest.raises(UserError, match=r"this file exists; .*--resume"):
        call(words, *flags)
    for kept in (0, len(lines[0]), len(lines[0]) + 7, len(whole) - 1, len(whole)):
        file.write_text(whole[:kept])
        code, *_ = call(words, *flags, "--resume")
        assert code == 3 and file.read_text() == whole  # the error that was written counts
    file.unlink()
    assert call([tree / "b.mp4"], *flags, "--resume")[0] == 0
    assert file.read_text() == lines[0]


@pytest.mark.parametrize(
    "content, said",
    [
        ("nothing\n", "line 1 is no result of this command"),
        ('{"video": 1}\n', "line 1 is no result"),
        ("[" * 100_000 + "\n", "line 1 is no result"),
        ('{"video": "a", "segments": []}\n', "has segments, not actions"),
        ('{"video": "a", "actions": 5}\n', "an action that is not among the candidates"),
        ('{"video": "a", "actions": [{"action": "hop"}]}\n', "not among the candidates"),
        ('{"video": "a", "actions": [{"action": "none of these"}]}\n', "--threshold as before"),
    ],
)
def test_file_of_other_results_is_not_continued(tree, call, tmp_path, content, said):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        call([tree / "b.mp4"], "--jsonl", f"--output={file}", "--resume")
    assert file.read_text() == content


def test_lines_are_written_as_soon_as_a_video_is_done(tree, call, tmp_path, monkeypatch):
    file, seen = tmp_path / "a.jsonl", []
    original = ColourRanker.embed_video

    def embed_video(self, path):
        seen.append(len(file.read_text().splitlines()))
        return original(self, path)

    monkeypatch.setattr(ColourRanker, "embed_video", embed_video)
    call([tree], "--jsonl", f"--output={file}")
    assert seen == [0, 1, 2]


def test_stream_is_recorded_and_named_by_its_address_without_the_password(call, monkeypatch):
    recorded = []

    def record(source, path, seconds):
        assert not list(path.parent.iterdir())  # the recording before has been removed
        recorded.append((source.address, path, seconds))
        path.write_bytes(coloured(("red", 2)) if "good" in source.address else b"no video")

    monkeypatch.setattr(sources, "record", record)
    words = ["rtsp://me:secret@host/good", "http://me:secret@host/bad"]
    code, out, err = call(words, "--allow_url", "--jsonl", "--seconds=7")
    good, bad = map(json.loads, out.splitlines())
    assert code == 3 and good["video"] == "rtsp://host/good" and "secret" not in out + err
    assert bad["error"].startswith("http://host/bad: not a video")
    assert [(address, seconds) for address, _, seconds in recorded] == [(word, 7) for word in words]
    assert not any(path.exists() for _, path, _ in recorded)


def test_progress_is_shown_on_terminals_only(tree, call, capsys, monkeypatch):
    _, out, err = call([tree])
    assert len(err.splitlines()) == 1  # what the model was trained on
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    _, same, err = call([tree])
    assert same == out and "3/3" in err and "video/s" in err  # with the time that is left: "<00:01"
    _, _, err = call([tree / "b.mp4"], "--timeline")
    assert "window" in err


def test_all_is_the_corpus_of_the_package():
    assert len(inputs.read_actions("all", None)) == 1211


def test_help_lists_exit_codes_and_flags():
    done = runs.call(runs.sys.executable, "-m", "coco_jax.cli", "predict", "--help")
    assert done.returncode == 0 and "Exit codes: 0: all videos were read" in done.stdout
    for flag in ("--video", "--webcam", "--jsonl", "--[no]timeline", "--resume"):
        assert flag.removeprefix("--") in done.stdout


def test_flag_html_writes_a_page_with_the_scores_and_the_reasons(tree, call, tmp_path):
    (tmp_path / "<b>x.mp4").write_bytes(b"no video")
    page_path = tmp_path / "new/a.html"
    code, out, err = call([tree / "b.mp4", tmp_path / "<b>x.mp4"], "--jsonl", f"--html={page_path}")
    (row,) = (json.loads(line) for line in out.splitlines() if "b.mp4" in line)
    assert code == 3 and str(page_path) in err
    page = Page(page_path.read_text())
    assert "b" not in {tag for tag, _ in page.tags} and "<b>x.mp4" in " ".join(page.texts)
    assert "Not read: " in " ".join(page.texts)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 6
    (bars,) = page.tables
    shown = {cells[0].text: cells[2].value for cells in bars.rows}
    assert shown == {entry["action"]: entry["score"] for entry in row["actions"]}


def test_flag_html_shows_timelines(tree, call, tmp_path):
    page_path = tmp_path / "a.html"
    code, out, _ = call([tree / "deep/er"], "--jsonl", "--timeline", f"--html={page_path}")
    (row,) = map(json.loads, out.splitlines())
    found = Page(page_path.read_text()).table("start")
    assert code == 0 and [cell[2].text for cell in found.rows] == ["blue", "red"]
    for cells, segment in zip(found.rows, row["segments"], strict=True):
        assert [cells[0].value, cells[1].value] == [segment["start"], segment["end"]]
