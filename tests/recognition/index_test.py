"""The index of an archive: what it finds, what it stores, and how it is brought up to date."""

import json
import os
import pathlib
import shutil

import filelock
import numpy as np
import pytest

import coco_jax.index
from coco_jax.errors import UserError
from coco_jax.recognition import index, index_beam, index_faiss, index_store, model_flags
from coco_jax.recognition.index_store import SHARD_ROWS
from tests.helpers.indexes import Stopped, content, stop_at
from tests.helpers.rankers import ColourRanker, coloured

COLOURS = {
    "a/red, then green.mp4": (("red", 4.0), ("green", 3.0)),
    "a/short.mp4": (("blue", 1.0),),
    "b/green.mp4": (("green", 6.0),),
    "b/blue, then red.mp4": (("blue", 3.0), ("red", 2.6)),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, parts in COLOURS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(coloured(*parts))
    return folder


@pytest.fixture(scope="module")
def built(videos, tmp_path_factory) -> pathlib.Path:
    """An index of the videos; tests do not change it."""
    folder = tmp_path_factory.mktemp("built")
    assert build(videos, folder).embedded == 4
    return folder


@pytest.fixture
def archive(videos, tmp_path) -> pathlib.Path:
    """A copy of the videos that a test may change."""
    return shutil.copytree(videos, tmp_path / "archive")


def build(folder: pathlib.Path, output: pathlib.Path, **options) -> index.Summary:
    return index.build(index.find(str(folder)), output, ColourRanker(), **options)


def test_search_finds_the_windows_that_show_an_action(built):
    found = index.Index(built, ranker := ColourRanker())
    candidates = ranker.embed_actions(["green", "blue"])
    green, blue = found.search(candidates, top=4)
    assert sorted((hit.video, round(hit.start, 2)) for hit in green[:3]) == [
        ("a/red, then green.mp4", 4.44),
        ("b/green.mp4", 0.0),
        ("b/green.mp4", 2.56),
    ]
    assert [hit.video for hit in blue[:2]] == ["a/short.mp4", "b/blue, then red.mp4"]
    assert (blue[0].start, blue[0].end) == (0.0, pytest.approx(1.0))
    assert ranker.clips == 0  # no video was read
    assert len(found.search(candidates, top=1000)[0]) == len(found)


def test_scores_are_the_raw_scores_of_the_windows(videos, built):
    found = index.Index(built, ranker := ColourRanker())
    candidates = ranker.embed_actions(["red", "green", "swimming"])
    scored = {(h.video, h.start): h.score for h in found.search(candidates, 1000)[0]}
    for name in COLOURS:
        windows = ranker.embed_windows(videos / name, index.STRIDE)
        raw_TK = ranker.compare(windows.v_TD, candidates)
        for start, (red, _, _) in zip(windows.starts_T, raw_TK, strict=True):
            assert scored.pop((name, start)) == pytest.approx(red, abs=1e-6)
    assert not scored


def test_labels_are_the_timelines_of_the_videos(videos, built):
    found = index.Index(built, ranker := ColourRanker())
    actions = ["red", "green", "blue"]
    timelines = list(found.label(ranker.embed_actions(actions)))
    assert [timeline.video for timeline in timelines] == sorted(COLOURS)
    for timeline in timelines:
        path = videos / timeline.video
        (wanted,) = [ranker.timeline(path, actions, stride=index.STRIDE)]
        assert timeline.segments == wanted.segments and timeline.duration == wanted.duration


class WideRanker(ColourRanker):
    """A row has one more value than a vector, as with the pretrained recogniser."""

    row_width = 4

    def rows(self, v_XD):
        return np.pad(v_XD, ((0, 0), (0, 1)), constant_values=-0.5)

    def table(self, candidates):
        table = super().table(candidates)
        vectors_KW = np.pad(table.vectors_KW, ((0, 0), (0, 1)), constant_values=1)
        return table._replace(vectors_KW=vectors_KW)

    def compare(self, v_XD, candidates):
        return super().table(candidates).scores(v_XD) - 0.5


def test_rows_may_have_more_values_than_vectors(videos, built, tmp_path):
    index.build(index.find(str(videos)), tmp_path / "wide", WideRanker())
    wide, plain = index.Index(tmp_path / "wide", WideRanker()), index.Index(built, ColourRanker())
    candidates = plain.recognizer.embed_actions(["red", "green", "blue"])
    for a, b in zip(wide.search(candidates), plain.search(candidates), strict=True):
        scores = [hit.score for hit in a], [hit.score - 0.5 for hit in b]
        np.testing.assert_allclose(*scores, atol=1e-6)
    for a, b in zip(wide.label(candidates), plain.label(candidates), strict=True):
        assert [s.action for s in a.segments] == [s.action for s in b.segments]
        np.testing.assert_allclose(a.scores_TK, b.scores_TK, atol=1e-6)


def test_a_second_build_reads_no_video_and_changes_no_byte(videos, built, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    ranker = ColourRanker()
    done = index.build(index.find(str(videos)), copy, ranker)
    assert (done.videos, done.embedded, ranker.clips) == (4, 0, 0)
    assert content(copy) == content(built)


def test_an_update_embeds_only_what_is_new_and_equals_a_new_build(archive, tmp_path):
    build(archive, tmp_path / "updated")
    (archive / "b/green.mp4").unlink()
    (archive / "a/short.mp4").rename(archive / "b/renamed.mp4")
    (archive / "a/red, then green.mp4").write_bytes(coloured(("blue", 5.0)))
    (archive / "new.mp4").write_bytes(coloured(("red", 1.0)))
    assert build(archive, tmp_path / "updated").embedded == 2
    assert build(archive, tmp_path / "new").embedded == 4
    assert content(tmp_path / "updated") == content(tmp_path / "new")


def test_after_an_interruption_at_any_step_a_build_has_the_same_bytes(archive, tmp_path):
    """The process stops at the first operation on files, at the second, and so on."""
    build(archive, tmp_path / "old")
    (archive / "a/short.mp4").write_bytes(coloured(("green", 2.0), ("red", 2.0)))
    (archive / "b/green.mp4").unlink()
    old = shutil.copytree(tmp_path / "old", tmp_path / "whole")
    build(archive, old)
    wanted = content(old)
    for step in range(1000):
        again = shutil.copytree(tmp_path / "old", tmp_path / f"again{step}")
        before = content(again)
        try:
            with stop_at(step):
                build(archive, again)
        except Stopped:
            # A reader finds the old index or the new one.
            readable = index.Index(again, ColourRanker())
            assert len(list(readable.label(readable.recognizer.embed_actions(["red"])))) in (3, 4)
            assert build(archive, again).embedded <= 1
        else:
            break
        assert content(again) == wanted != before
        shutil.rmtree(again)
    assert step > 8


def test_videos_that_cannot_be_read_are_listed_and_tried_again(archive, tmp_path):
    (archive / "a/short.mp4").write_bytes(b"no video")
    os.mkfifo(archive / "pipe.mp4")
    done = build(archive, tmp_path / "index")
    assert [name for name, _ in done.unreadable] == ["a/short.mp4", "pipe.mp4"]
    assert "not a video" in done.unreadable[0][1] and "regular file" in done.unreadable[1][1]
    (archive / "pipe.mp4").unlink()
    (archive / "a/short.mp4").write_bytes(coloured(("blue", 1.0)))
    assert build(archive, tmp_path / "index").embedded == 1


def test_equal_files_and_small_shards_give_equal_answers(archive, built, tmp_path, monkeypatch):
    shutil.copy(archive / "b/green.mp4", archive / "b/twin.mp4")
    monkeypatch.setattr(index_store, "SHARD_ROWS", 2)
    assert build(archive, tmp_path / "small").embedded == 4
    assert len(list((tmp_path / "small").glob("vectors-*"))) > 3
    small, whole = (index.Index(f, ColourRanker()) for f in (tmp_path / "small", built))
    candidates = small.recognizer.embed_actions(["blue", "red"])
    pairs = zip(small.search(candidates, 3), whole.search(candidates, 3), strict=True)
    assert all(a == b for a, b in pairs)
    labels = {t.video: t.segments for t in small.label(candidates)}
    assert labels.pop("b/twin.mp4") == labels["b/green.mp4"]
    assert labels == {t.video: t.segments for t in whole.label(candidates)}


def test_another_model_or_stride_or_a_build_in_progress_is_one_line(videos, built, tmp_path):
    class Other(ColourRanker):
        fingerprint = "another"

    with pytest.raises(UserError, match="was built with another model"):
        index.Index(built, Other())
    copy = shutil.copytree(built, tmp_path / "copy")
    with pytest.raises(UserError, match="was built with another model"):
        index.build(index.find(str(videos)), copy, Other())
    with pytest.raises(UserError, match="--stride=2"):
        build(videos, copy, stride=1.0)
    with filelock.FileLock(copy / "lock"), pytest.raises(UserError, match="another process"):
        build(videos, copy)
    with pytest.raises(UserError, match="files that are not of an index"):
        build(videos, videos)
    assert content(copy) == content(built)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "path", "rows", "line", "json", "later"])
def test_a_damaged_or_hostile_index_is_one_line(built, tmp_path, damage):
    folder = shutil.copytree(built, tmp_path / "index")
    head = json.loads((folder / "index.json").read_text())
    vectors, table = folder / head["vectors"][0]["file"], folder / head["videos"]
    if damage == "truncated":
        vectors.write_bytes(vectors.read_bytes()[:-5])
    elif damage == "pickle":
        with vectors.open("wb") as file:
            np.save(file, np.array([{}], object), allow_pickle=True)
    elif damage == "path":
        shutil.copy(vectors, tmp_path / "secret.npy")
        head["vectors"][0]["file"] = "../secret.npy"
    elif damage == "rows":
        head["vectors"][0]["rows"] += 1
    elif damage == "line":
        table.write_text(table.read_text().replace('"first": 0', '"first": -3', 1))
    elif damage == "later":
        head["format_version"] = 99
    text = "[" * 100_000 if damage == "json" else json.dumps(head)
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match="damaged") as caught:
        opened = index.Index(folder, ColourRanker())
        opened.search(opened.recognizer.embed_actions(["red"]))
    assert len(str(caught.value).splitlines()) == 1


def test_faiss_finds_the_same_windows(videos, built, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path))
    found = index.Index(built, ColourRanker())
    candidates = found.recognizer.embed_actions(["green", "red"])
    wanted = found.search(candidates, 3)
    for _ in range(2):  # the second time from the cache
        assert index_faiss.search(found, candidates, 3) == wanted
    assert len(list((tmp_path / "faiss").iterdir())) == 1


@pytest.mark.parametrize("share", [1, 2])
def test_faiss_looks_into_a_share_of_the_lists(built, tmp_path, monkeypatch, share):
    pytest.importorskip("faiss")
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(index_faiss, "MIN_WINDOWS", 1)  # 8 windows in 2 lists
    monkeypatch.setattr(index_faiss, "LISTS_SHARE", share)
    found = index.Index(built, ColourRanker())
    candidates = found.recognizer.embed_actions(["green", "red"])
    for hits, whole in zip(
        index_faiss.search(found, candidates, 8), found.search(candidates, 8), strict=True
    ):
        assert hits == [hit for hit in whole if hit in hits]
        assert len(hits) == 8 if share == 1 else 0 < len(hits) < 8


def test_beam_builds_the_same_bytes(archive, tmp_path):
    pytest.importorskip("apache_beam")
    (archive / "broken.mp4").write_bytes(b"no video")
    build(archive, tmp_path / "local")
    runner = index_beam.BeamRunner("runner=DirectRunner", ColourRanker)
    done = build(archive, tmp_path / "beam", runner=runner)
    assert done.embedded == 4 and len(done.unreadable) == 1
    assert content(tmp_path / "beam") == content(tmp_path / "local")


@pytest.fixture
def run(parse, monkeypatch, capsys):
    """Runs the command with the colour ranker; returns what it prints."""
    monkeypatch.setattr(model_flags, "loader", lambda values: ColourRanker)

    def run_command(*arguments: str) -> str:
        parse(coco_jax.index, *(word for word in arguments if word.startswith("--")))
        words = [word for word in arguments if not word.startswith("--")]
        coco_jax.index.command(["index", *words])
        return capsys.readouterr().out

    return run_command


def test_the_command_builds_searches_and_labels(run, archive, tmp_path):
    (archive / "b/green.mp4").rename(archive / "=cmd().mp4")
    (archive / "b/blue, then red.mp4").rename(archive / "b/\x1b[31mred.mp4")
    output = str(tmp_path / "index")
    assert "8 windows of 4 videos, of which 4 were embedded now" in run(
        "build", str(archive), f"--output={output}"
    )
    text = run("search", output, "green", "--top=2")
    assert text.splitlines()[0] == "green" and "=cmd().mp4" in text and "0:00.0 -" in text
    (row, *_) = json.loads(run("search", output, "blue", "--json"))
    assert row["action"] == "blue" and row["score"] == pytest.approx(1.0, abs=0.05)
    assert '"\'=cmd().mp4"' in run("search", output, "green", "--csv")
    assert '"\'=cmd().mp4"' in run("label", output, "--actions=green,red", "--csv")
    labels = run("label", output, "--actions=green,red,blue")
    assert "\x1b" not in labels and "\\x1b[31mred.mp4" in labels
    (timeline, *_) = json.loads(run("label", output, "--actions=green,red", "--json"))
    assert timeline["segments"][0]["action"] == "green"
    shown = run("label", output, "--actions=swimming", "--threshold=0.5")
    assert "none of these" in shown and "swimming" not in shown


def test_the_command_exits_with_3_if_a_video_cannot_be_read(run, archive, tmp_path, capsys):
    (archive / "a/short.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit) as caught:
        run("build", str(archive), f"--output={tmp_path / 'index'}")
    assert caught.value.code == 3
    assert "1 of 4 videos could not be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("build", "nowhere", "--output=x"), "no such folder"),
        (("build", "nowhere"), "--output=INDEX"),
        (("search", "nowhere", "red"), "not an index"),
        (("search", "nowhere"), "give an index and actions"),
        (("find", "nowhere"), "say what to do"),
        (("label", "nowhere", "--actions=a,b", "--json", "--csv"), "exclude each other"),
    ],
)
def test_wrong_words_are_one_line(run, arguments, said):
    with pytest.raises(UserError, match=said):
        run(*arguments)


def test_top_scores_are_those_of_a_full_sort():
    rng = np.random.default_rng(0)
    score_N = rng.integers(0, 20, 500).astype(np.float32)  # many are equal
    kept, rows = index.keep_top(score_N, np.arange(500), 37)
    wanted = sorted(range(500), key=lambda row: (-score_N[row], row))[:37]
    assert rows.tolist() == wanted and kept.tolist() == score_N[wanted].tolist()
    assert SHARD_ROWS > 1000
