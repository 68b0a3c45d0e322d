"""Descriptions that other people published: made-up files in their layouts, and the real ones."""

import csv
import gzip
import hashlib
import json
import pathlib

import pytest
import tensorflow_datasets as tfds

from coco_jax.data import action_names
from coco_jax.data.corpus import load_corpus
from coco_jax.errors import UserError
from tfds_builders.actionhub import actionhub_dataset_builder as module
from tfds_builders.actionhub import published, readers
from tfds_builders.build import build

ANNOTATIONS = pathlib.Path(__file__).resolve().parents[4] / "shared" / "annotations"

ER = [
    {"word": "hop", "defn": "move by jumping on one foot.", "cleaned_defn": "move by jumping ."},
    {"word": "juggle", "defn": "keep several things in the air.", "cleaned_defn": "keep things"},
]
EZ_CLIP = (
    'SNo,Class Name,GPT3 discription\n1,hop,"\n\nHop is a jump on one foot. It is quick, and"\n'
    '2,juggle,"\n\nJuggling keeps several balls in the air"\n'
)
STDD = """
# This is an example of hop...
hop:
  label: hopping
  xprompt_oo:
    - where a foot leaves the ground
  xprompt_ao:
  - which needs a leg
  - 'which involves: a floor'
  xprompt_aa: []

juggle:
  label: juggle
  xprompt_aa:
    - starting with throwing a ball
  xprompt_oo:
"""
ASKG = """
juggle:
  label: juggle
  obj_en_li:
  - ball
  - hand
  obj_rel_triples:
  - <hand, throws, ball>
  sub_act_en_li:
  - throwing a ball
  - catching it
"""


def rows_of(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.action, row.description, row.kind) for row in readers.read_file(path)]


def test_layouts_of_published_files_are_read(tmp_path):
    assert rows_of(tmp_path, "er.json", json.dumps(ER)) == [
        ("hop", "move by jumping on one foot.", "definition"),
        ("juggle", "keep several things in the air.", "definition"),
    ]
    assert rows_of(tmp_path, "ez.csv", EZ_CLIP) == [
        (
            "hop",
            "Hop is a jump on one foot.",
            "caption",
        ),  # the answer was cut off in the second sentence
        ("juggle", "Juggling keeps several balls in the air", "caption"),
    ]
    assert rows_of(tmp_path, "stdd.yml", STDD) == [
        ("hop", "hopping where a foot leaves the ground", "caption"),
        ("hop", "hopping which needs a leg", "caption"),
        ("hop", "hopping which involves: a floor", "caption"),
        ("juggle", "juggle starting with throwing a ball", "caption"),
    ]
    assert rows_of(tmp_path, "askg.yaml.gz", gzip.compress(ASKG.encode())) == [
        ("juggle", "juggle: ball, hand", "caption"),
        ("juggle", "juggle: throwing a ball, catching it", "caption"),
    ]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two", "One."),
        ("One. Two.", "One. Two."),
        ("One two", "One two"),
        ('He said "go!" and', 'He said "go!"'),
        ("3.5 metres. Or", "3.5 metres."),
        ("", ""),
    ],
)
def test_an_unfinished_last_sentence_is_left_out(text, whole):
    assert readers.whole_sentences(text) == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &x [b]\nc: *x\n", r":2: aliases \(\*NAME\) are not read"),
        ("a: &x [b]\n" + "b: [" + "*x, " * 9 + "]", "aliases"),
        ("[" * 30 + "]" * 30, "nested more than 20 times"),
        ("[" * 100_000, "nest"),
        ("- hop\n", "not a mapping of actions"),
        (
            "hop: !!python/object/apply:os.system [touch x]\n",
            "'hop' has none of the lists xprompt_oo",
        ),
        ("hop:\n  xprompt_oo: text\n", "'hop' has a string instead of a list"),
        ("hop:\n  xprompt_oo: [[text]]\n", "'hop' has a list in a list of texts"),
        ("hop: {\n", r":\d: not YAML"),
        ("hop: \x07\n", "not YAML"),
        ("", "not a mapping"),
        (b"\xff\xfea", "not UTF-8"),
        (b"hop: " + b"x" * readers.MAX_YAML, "larger than 8 MiB"),
    ],
)
def test_hostile_yaml_is_an_error_of_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        rows_of(tmp_path, "x.yml", content)
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()


def place(folder, name, content):
    """Writes a file with the name in a recipe; returns what checksums.tsv would say of it."""
    url = published.RECIPES[name].url
    path = folder / url.rpartition("/")[2]
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    data = path.read_bytes()
    return {
        url: tfds.download.checksums.UrlInfo(len(data), hashlib.sha256(data).hexdigest(), path.name)
    }


@pytest.mark.parametrize(
    ("name", "content", "texts", "definitions"),
    [
        ("er_ucf101", json.dumps(ER), {}, {"hop": 1, "juggle": 1}),
        ("ez_clip_k400", EZ_CLIP, {"hop": 1, "juggle": 1}, {}),
        ("stdd_hmdb51", STDD, {"hop": 3, "juggle": 1}, {}),
    ],
)
def test_config_of_a_published_file_is_a_corpus(
    tmp_path, monkeypatch, name, content, texts, definitions
):
    infos = place(tmp_path / "placed", name, content)
    monkeypatch.setattr(module.Builder, "url_infos", infos)
    folder = build(f"actionhub/{name}", str(tmp_path / "data"), str(tmp_path / "placed"))
    corpus = load_corpus(f"actionhub/{name}", str(tmp_path / "data"))
    assert {action: len(found) for action, found in corpus.texts.items()} == texts
    assert {action: len(found) for action, found in corpus.definitions.items()} == definitions
    row = next(iter(tfds.builder_from_directory(folder).as_data_source("train")))
    assert row["source"].decode() == name and row["video_id"] == b""


def test_another_file_than_the_published_one_is_refused(tmp_path):
    place(tmp_path / "placed", "ez_clip_k400", EZ_CLIP)
    with pytest.raises(
        UserError, match=r"Kinetic_400_gpt_Class_discription_new\.csv: SHA-256 differs"
    ):
        build("actionhub/ez_clip_k400", str(tmp_path / "data"), str(tmp_path / "placed"))


REAL = {  # config: the file in shared/annotations, and the list of its classes
    "er_kinetics": ("kinetics/classes620_label_defn.json", None),
    "er_ucf101": ("ucf101/classes_label_defn.json", "ucf101/label_map.txt"),
    "er_hmdb51": ("hmdb51/classes_label_defn.json", "hmdb51/label_map.txt"),
    "ez_clip_k400": ("descriptions/kinetics400_generated.csv", "kinetics/label_map_k400.txt"),
    "ez_clip_k600": ("descriptions/kinetics600_generated.csv", "kinetics/label_map_k600.txt"),
    "ez_clip_ucf101": ("descriptions/ucf101_generated.csv", "ucf101/label_map.txt"),
    "ez_clip_hmdb51": ("descriptions/hmdb51_generated.csv", "hmdb51/label_map.txt"),
}


@pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason=f"no real files: {ANNOTATIONS} is absent")
@pytest.mark.parametrize("name", REAL)
def test_real_files_have_their_checksum_and_describe_every_class(name):
    file, classes = REAL[name]
    path = ANNOTATIONS / file
    info = module.Builder.url_infos[published.RECIPES[name].url]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == info.checksum
    rows = list(readers.read_file(path))
    if path.suffix == ".json":
        theirs = [(x["word"].strip(), x["defn"].strip()) for x in json.loads(path.read_text())]
        assert [(row.action, row.description) for row in rows] == theirs
        assert {row.kind for row in rows} == {"definition"}
    else:
        with path.open(newline="") as file:
            theirs = [(x["Class Name"], x["GPT3 discription"]) for x in csv.DictReader(file)]
        assert [row.action for row in rows] == [name.strip() for name, _ in theirs]
        for row, (_, text) in zip(rows, theirs, strict=True):
            assert row.description and text.strip().startswith(row.description)
    if classes:
        names = (ANNOTATIONS / classes).read_text().splitlines()
        found = action_names.match(
            [row.action for row in rows], filter(None, map(str.strip, names))
        )
        assert not found.unmatched_classes and not found.ambiguous
