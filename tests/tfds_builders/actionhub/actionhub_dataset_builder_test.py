"""Tests of the actionhub builder and of its file readers."""

import csv
import gzip
import io
import itertools
import json
import pathlib
import sys
import tracemalloc
import types
from typing import Any

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import shuffle

from coco_jax.data import starter
from coco_jax.data.corpus import Corpus, load_corpus
from coco_jax.errors import UserError
from tfds_builders.actionhub import actionhub_dataset_builder as module
from tfds_builders.actionhub import readers, streaming
from tfds_builders.actionhub.readers import Row

ROWS_KEPT = 9


class ManualTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = module.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["manual"]  # noqa: RUF012
    EXAMPLE_DIR = str(pathlib.Path(__file__).parent / "dummy_data")
    SPLITS = {"train": ROWS_KEPT}  # noqa: RUF012


def build(tmp_path, config, manual_dir=None, cleaning="all", **options):
    builder = module.Builder(data_dir=tmp_path / "data", config=config, file_format="array_record")
    builder.cleaning = cleaning
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir, **options)
    )
    return builder


def stored(builder):
    rows = tfds.builder_from_directory(builder.data_path).as_data_source("train")
    return sorted(Row(**{k: v.decode() for k, v in row.items()}) for row in rows)


def rows_of(path):
    return list(readers.read_file(path))


def write(path, data):
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_built_dataset_has_the_rows_and_counts_of_its_files(tmp_path):
    builder = build(tmp_path, "manual", pathlib.Path(__file__).parent / "dummy_data")
    rows = stored(builder)
    assert len(rows) == ROWS_KEPT
    assert (
        Row("zumba", 'She says "one, two" and the room follows.', "table.csv", "fake_0005") in rows
    )
    assert (
        Row("push up", "Lowering and raising a stiff body with the arms.", "push_up.txt", "")
        in rows
    )
    metadata = tfds.builder_from_directory(builder.data_path).info.metadata
    assert metadata["report"] == {
        "read": 13,
        "kept": ROWS_KEPT,
        "skipped": {"no action": 1, "no description": 1, "language": 1, "duplicates": 1},
    }
    assert metadata["actions"] == {
        "archery": 1,
        "curling": 1,
        "juggling balls": 2,
        "krumping": 1,
        "luge": 1,
        "push up": 2,
        "zumba": 1,
    }


def test_without_cleaning_rows_are_stored_unchanged(tmp_path):
    dummy_data = pathlib.Path(__file__).parent / "dummy_data"
    rows = stored(build(tmp_path, "manual", dummy_data, cleaning="none"))
    assert len(rows) == ROWS_KEPT + 2
    assert (
        Row("archery", "Eine Schützin zielt auf die Scheibe.", "a_list.json", "fake_0002") in rows
    )
    assert rows[-1].description == 'She says "one, two" and\nthe room follows.'


def test_shuffle_on_disk_keeps_all_rows_and_restores_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHUFFLE_BYTES", 1000)
    before = shuffle.MAX_MEM_BUFFER_SIZE
    (tmp_path / "manual").mkdir()
    write(tmp_path / "manual" / "wave.txt", "".join(f"wave {i}\n" for i in range(300)))
    rows = stored(build(tmp_path, "manual", tmp_path / "manual", cleaning="none"))
    assert rows == sorted(Row("wave", f"wave {i}", "wave.txt", "") for i in range(300))
    assert before == shuffle.MAX_MEM_BUFFER_SIZE


def test_config_motion_stores_the_corpus_of_motion_zsar(tmp_path, monkeypatch):
    corpus = [Row("harl run", f"text {i}", "definition", "") for i in range(5)]
    language: Any = types.ModuleType("tfds_builders.motion_zsar.language")
    language.corpus = lambda: (row._asdict() for row in corpus)
    package: Any = types.ModuleType("tfds_builders.motion_zsar")
    package.language = language
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, language.__name__, language)
    builder = build(tmp_path, None)
    assert builder.builder_config.name == "motion"
    assert stored(builder) == corpus
    assert builder.info.metadata["actions"] == {"harl run": 5}


def test_config_starter_stores_the_corpus_of_the_package(tmp_path):
    builder = build(tmp_path, "starter")
    expected = [
        Row(action, text, "starter", "", kind)
        for action, texts in starter.load().items()
        for kind, text in (
            ("definition", texts.definition),
            *(("caption", c) for c in texts.captions),
        )
    ]
    assert stored(builder) == sorted(expected)
    corpus = load_corpus("actionhub/starter", str(tmp_path / "data"))
    assert {a: (t.definition,) for a, t in starter.load().items()} == corpus.definitions
    assert {a: sorted(t.captions) for a, t in starter.load().items()} == {
        action: sorted(texts) for action, texts in corpus.texts.items()
    }


def test_definitions_are_apart_from_captions_unless_they_belong_to_a_video(tmp_path):
    rows = [
        {"action": "luge", "text": "Down an ice track.", "kind": "Definition"},
        {"action": "luge", "text": "Feet first she goes.", "kind": ""},
        {"action": "luge", "text": "My run from this morning.", "kind": None},
        {"action": "luge", "text": "A sled on ice.", "kind": "definition", "id": "v1"},
    ]
    (tmp_path / "manual").mkdir()
    write(tmp_path / "manual" / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    build(tmp_path, "manual", tmp_path / "manual")
    corpus = load_corpus("actionhub/manual", str(tmp_path / "data"))
    assert corpus.definitions == {"luge": ("Down an ice track.",)}
    assert sorted(zip(corpus.texts["luge"], corpus.video_ids["luge"], strict=True)) == [
        ("A sled on ice.", "v1"),
        ("Feet first she goes.", ""),
        ("My run from this morning.", ""),
    ]


def test_corpus_of_version_1_0_0_has_only_captions(tmp_path):
    class Old(module.Builder, skip_registration=True):
        name = "actionhub"
        VERSION = tfds.core.Version("1.0.0")
        _lines: list[str] = []  # noqa: RUF012

        def _info(self):
            fields = readers.Row._fields[:-1]
            features = {name: tfds.features.Text() for name in fields}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            row = {"action": "luge", "description": "Ice.", "source": "a", "video_id": ""}
            yield 0, row

    Old(data_dir=tmp_path, config="manual", file_format="array_record").download_and_prepare()
    assert load_corpus("actionhub/manual", str(tmp_path)) == Corpus(
        {"luge": ("Ice.",)}, {"luge": ("",)}
    )


@pytest.mark.parametrize("exists", [False, True])
def test_missing_or_empty_folder_gives_a_one_line_error(tmp_path, exists):
    place = tmp_path / "nowhere"
    if exists:
        place.mkdir()
    with pytest.raises(UserError, match=r"nowhere.*\*\.jsonl") as caught:
        build(tmp_path, "manual", place)
    assert "\n" not in str(caught.value)


ROWS = [
    Row("jump rope", "Schnell, sehr “schnell” 🪢", "caption", "v1"),
    Row("jump rope", 'commas, "quotes"\nand lines', "web", "v2"),
    Row("rappel", "Going down on a rope.", "caption", "", "definition"),
]


def as_table(rows, dialect):
    out = io.StringIO(newline="")
    csv.writer(out, dialect=dialect).writerows([Row._fields, *rows])
    return out.getvalue()


def as_mapping(rows):
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row.action, []).append(
            {
                "caption": row.description,
                "source": row.source,
                "vid": row.video_id,
                "kind": row.kind,
            }
        )
    return json.dumps(groups, ensure_ascii=False)


WRITERS = {
    "rows.json": lambda rows: json.dumps([r._asdict() for r in rows], ensure_ascii=False),
    "groups.json": as_mapping,
    "rows.jsonl": lambda rows: "".join(json.dumps(r._asdict()) + "\n" for r in rows),
    "rows.csv": lambda rows: as_table(rows, "excel"),
    "rows.tsv": lambda rows: as_table(rows, "excel-tab"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_of_every_format_are_read_back(tmp_path, name, end, mark):
    assert rows_of(write(tmp_path / (name + end), mark + WRITERS[name](ROWS))) == ROWS


@pytest.mark.parametrize("name", ["push_up.txt", "push_up.TXT.gz"])
def test_lines_of_a_text_file_are_descriptions_of_the_action_in_its_name(tmp_path, name):
    rows = rows_of(write(tmp_path / name, "\ufeffone\r\n\n two \nthree"))
    assert rows == [Row("push up", text, name, "") for text in ("one", "two", "three")]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
# Readers strip all texts and replace an empty source by the file name, so neither is generated.
DRAWN = st.builds(
    Row,
    *[TEXT.map(str.strip)] * 2,
    st.just("drawn"),
    TEXT.map(str.strip),
    st.sampled_from(readers.KINDS),
)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(DRAWN, max_size=5))
def test_arbitrary_rows_of_every_format_are_read_back(tmp_path_factory, name, rows):
    path = write(tmp_path_factory.mktemp("drawn") / name, WRITERS[name](rows))
    assert sorted(rows_of(path)) == sorted(rows)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(DRAWN, min_size=1, max_size=5), chunk=st.integers(1, 40))
def test_json_rows_do_not_depend_on_the_chunk_size(tmp_path_factory, rows, chunk):
    path = write(tmp_path_factory.mktemp("chunks") / "rows.json", WRITERS["rows.json"](rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_CHUNK", chunk)
        assert rows_of(path) == rows


@pytest.mark.parametrize(
    ("name", "data", "line", "words"),
    [
        ("a.jsonl", '{"action":"a","text":"b"}\n{"action":\n', 2, "not JSON"),
        ("a.jsonl", "[1]\n", 1, "expected a row object, found a list"),
        ("a.jsonl", '\n\n{"activity":"a","text":"b"}', 3, "no column action .*'activity', 'text'"),
        ("a.jsonl", '{"action":"a","subtitle":"b"}', 1, "no column description .*'subtitle'"),
        ("a.jsonl", '{"action":7,"text":"b"}', 1, "action is a number"),
        (
            "a.jsonl",
            '{"action":"a","text":"b","kind":"gloss"}',
            1,
            "kind is 'gloss'; write caption",
        ),
        ("a.jsonl", '{"action":"a","text":["b"]}', 1, "description is a list"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "nested too deeply"),
        ("a.jsonl", '{"a":' + "1" * 5000 + "}", 1, "a number with too many digits"),
        ("a.jsonl", b'{"action":"a","text":"ok"}\n{"action":"\xff"}', 2, "not UTF-8"),
        ("a.jsonl", '{"action":"a","text":"' + "b" * (1 << 20) + '"}', 1, "line longer than 1 MiB"),
        ("a.csv", "action,text\na,b\n\na,b,c\n", 4, "3 fields, but the header has 2"),
        ("a.csv", 'action,text\na,"b\n\nb"\na,"b"c\n', 5, "not excel"),
        ("a.csv", 'action,text\na,b\na,"b\n', 3, "not excel .*unexpected end"),
        ("a.csv", "jump,He jumps.\n", 1, "no column action .*found 'jump', 'He jumps.'"),
        ("a.csv", "action,text\na,b\n".encode("utf-16"), 1, "not UTF-8"),
        ("a.tsv", 'action\ttext\na\t"b\n' + "c\n" * (1 << 20), 2, "field limit"),
        ("a.txt", b"fine\nfine\ncaf\xe9\n", 3, "not UTF-8"),
        ("a.json", "", 1, "not a JSON list or object"),
        ("a.json", '"text"', 1, "not a JSON list or object"),
        ("a.json", '[\n{"action":"a","text":"b"}\n{"action":"a"}]', 3, "expected , or \\]"),
        ("a.json", '[{"action":"a","text":"b"},\n{"action":\n oops}]', 3, "Expecting value"),
        ("a.json", '[{"action":"a","text":"b"}', 1, "found the end of the file"),
        ("a.json", '[{"action":"a","text":"b"}]\n[', 2, "text after the end"),
        ("a.json", '{"action":"a","text":"b"}\n{"action":"c"}', 1, r"'action' is not a list"),
        ("a.json", '{"data":[{"action":"a","text":"b"}]}', 1, "has its own action"),
        ("a.json", '{"a":["b",\n3]}', 2, "under an action, found a number"),
        ("a.json", '{"a":["b"],\nc:[]}', 2, "double quotes"),
        ("a.json", '["' + "b" * (1 << 21) + '"]', 1, "no complete element in 1 MiB"),
        ("a.json", '[{"a' + "b" * (1 << 20) + '":1}]', 1, "longer than 1 MiB"),
        ("a.json", "[" * 100_000, 1, "nested too deeply"),
        ("a.json", b'[{"action":"a",\n"text":"caf\xe9"}]', 2, "not UTF-8"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_error_on_invalid_input_names_the_file_and_line(tmp_path, name, data, line, words, end):
    path = write(tmp_path / (name + end), data)
    with pytest.raises(UserError, match=words) as caught:
        rows_of(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_damaged_gzip_raises(tmp_path, name):
    path = tmp_path / f"{name}.gz"
    for data in (b"plain text", gzip.compress(WRITERS[name](ROWS).encode())[:-12]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged or truncated gzip file"):
            rows_of(path)


@pytest.mark.parametrize(
    ("name", "row"),
    [("a.jsonl.gz", '{"action":"a","text":"b"}\n'), ("a.json.gz", '{"action":"a","text":"b"},\n')],
)
def test_gzip_bomb_raises(tmp_path, monkeypatch, name, row):
    data = row * 100_000
    path = write(tmp_path / name, f"[{data[:-2]}]" if "json." in name else data)
    assert len(data) / path.stat().st_size > streaming.MAX_RATIO
    assert len(rows_of(path)) == 100_000  # a high ratio alone is allowed: captions repeat
    monkeypatch.setattr(streaming, "MAX_BYTES", 1 << 20)
    with pytest.raises(UserError, match="decompresses to more than"):
        rows_of(path)


def test_corpus_without_usable_rows_raises(tmp_path):
    write(tmp_path / "a.csv", "action,text\n,b\na,  \n")
    with pytest.raises(UserError, match="no action 1, no description 1"):
        list(readers.read(tmp_path))


def test_row_with_a_lone_surrogate_is_skipped_and_counted(tmp_path):
    write(tmp_path / "a.jsonl", '{"action":"a","text":"\\ud83d"}\n{"action":"a","text":"b"}\n')
    tally = readers.Tally()
    assert [row.description for _, row in readers.read(tmp_path, tally)] == ["b"]
    assert tally.metadata["report"]["skipped"] == {"half a surrogate pair": 1}


def test_keys_are_unique_across_files_and_hidden_files_are_ignored(tmp_path):
    for name in ("b.txt", "a.jsonl", ".hidden.txt", "notes.md"):
        write(tmp_path / name, '{"action":"a","text":"b"}\n' * 3)
    keys = [key for key, _ in readers.read(tmp_path)]
    assert len(set(keys)) == len(keys) == 6
    assert keys == sorted(keys)


def many(kind, count):
    """Yields the content of a file with `count` rows in pieces."""
    row = '{"action": "action %d", "description": "%s %d", "video_id": "v%d"}'
    rows = (row % (i % 1211, "someone moves about " * 4, i, i) for i in range(count))
    if kind == "json":
        return itertools.chain("[", (f"{',' if i else ''}\n{r}" for i, r in enumerate(rows)), "]")
    if kind == "mapping":
        texts = (f'{"," if i else ""}"{"someone moves about " * 4} {i}"' for i in range(count))
        return itertools.chain(['{"jump":['], texts, ["]}"])
    if kind == "csv":
        return itertools.chain(
            ["action,text\n"], (f'a{i % 1211},"{"someone moves " * 6}{i}"\n' for i in range(count))
        )
    return (r + "\n" for r in rows)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("jsonl", "a.jsonl"),
        ("jsonl", "a.jsonl.gz"),
        ("json", "a.json"),
        ("mapping", "a.json"),
        ("csv", "a.csv"),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path, kind, name):
    # tracemalloc makes reading ten times slower, so only one format is tested with 200,000 rows.
    count = 200_000 if name == "a.jsonl" else 40_000
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.writelines(many(kind, count))
    tracemalloc.start()
    try:
        read = sum(1 for _ in readers.read(tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == count
    assert peak < 3 << 20, f"{peak / 2**20:.1f} MiB at the peak"
