"""The report: its numbers are those of results.json, its names are text, and it needs no network."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest

from coco_jax import report as command
from coco_jax.config import default
from coco_jax.errors import UserError
from coco_jax.evaluation import report, results
from tests.evaluation.html_test import HOSTILE
from tests.helpers.pages import Page
from tests.helpers.runs import ROOT

CONFIG = default().to_dict()
CONFIG["data"].update(name="motion_zsar", dir="/nowhere")
CONFIG["text"]["corpus"] = "actionhub/motion"
BINS = [
    {"low": 0.0, "high": 0.5, "videos": 0, "confidence": None, "accuracy": None},
    {"low": 0.5, "high": 1.0, "videos": 9, "confidence": 0.75, "accuracy": 2 / 3},
]


def result(rng, names, ablation, split, seed):
    """A run's result.json; the split chooses three of the classes."""
    unseen = list(np.roll(names, int(split))[:3])
    counts = rng.integers(0, 7, (3, 3)) + np.eye(3, dtype=int)
    general = dict(zip(results.GENERALISED, rng.random(4).tolist(), strict=True))
    shares = [
        {"action": name, "share": 0.5 / (k + 1), "score": 0.1} for k, name in enumerate(unseen)
    ]
    example = {"action": unseen[0], "record": 0, "video_id": f"id of {names[0]}", "top": shares}
    return {
        "ablation": ablation, "split": split, "seed": seed, "top1": float(rng.random()), "top5": None,
        "generalised": general, "unseen_classes": unseen, "unseen_videos": int(counts.sum()),
        "chance": 1 / 3, "per_class": dict(zip(unseen, rng.random(3).tolist(), strict=True)),
        "confusion": counts.tolist(), "examples": [example],
    }  # fmt: skip


def details(names, unseen):
    near = [{"action": names[-1], "cosine": 0.5}]
    rebuilt = [{"action": names[-1], "weight": 0.25}]
    return {
        "format": 1,
        "calibration": {"bins": BINS, "error": 1 / 12, "temperature": 0.05},
        "curve": {"seen": [1.0, 0.5, 0.0], "unseen": [0.0, 0.5, 1.0]},
        "nearest": dict.fromkeys(unseen, near),
        "rebuilt": dict.fromkeys(unseen, rebuilt),
        "captions": [
            {
                "video_id": names[0], "action": unseen[0], "predicted": unseen[1],
                "of": {name: [{"text": f"{name} in a park", "weight": 0.5}] for name in unseen[:2]},
            }
        ],
    }  # fmt: skip


def write_experiment(workdir, names, with_details=True):
    """Two ablations x two splits x two seeds; returns all results."""
    rng, runs = np.random.default_rng(0), []
    for ablation in ("label", "full"):
        for split in ("1", "2"):
            for seed in (0, 1):
                run = result(rng, names, ablation, split, seed)
                folder = workdir / ablation / f"split{split}" / f"seed{seed}"
                folder.mkdir(parents=True)
                (folder / "result.json").write_text(json.dumps(run))
                if with_details:
                    of_run = details(names, run["unseen_classes"])
                    (folder / "details.json").write_text(json.dumps(of_run))
                (folder / "config.json").write_text(json.dumps(CONFIG))
                runs.append(run)
    summary = results.summarise(runs, CONFIG)
    (workdir / "results.json").write_text(json.dumps(summary))
    return runs


NAMES = ["juggling", "rope skipping", "arm wrestling", "swimming", "crying"]


@pytest.fixture
def runs(tmp_path):
    return write_experiment(tmp_path, NAMES)


def test_table_of_ablations_has_the_numbers_of_results_json(runs, tmp_path):
    page = Page(report.draw([tmp_path]))
    summary = json.loads((tmp_path / "results.json").read_text())
    table = page.table("std")
    assert [row[0].text for row in table.rows] == ["label", "full"]
    for name, got in summary["ablations"].items():
        assert table.column("top-1")[name].value == got["top1"]["mean"]
        assert table.column("std")[name].value == got["top1"]["std"]
        assert table.column("runs")[name].value == 4
        assert table.column("top-5")[name].value is None
        for field in results.GENERALISED:
            assert table.column(field)[name].value == got["generalised"][field]
        assert table.column("top-1")[name].text == f"{100 * got['top1']['mean']:.1f}"
    assert results.heading(summary) in page.texts


def test_table_of_classes_has_the_means_over_the_runs_with_the_class_unseen(runs, tmp_path):
    (table,) = (
        t for t in Page(report.draw([tmp_path])).tables if t.head == ["action", "label", "full"]
    )
    for ablation in ("label", "full"):
        column = table.column(ablation)
        for name in NAMES:
            values = [r["per_class"][name] for r in runs
                      if r["ablation"] == ablation and name in r["per_class"]]  # fmt: skip
            if not values:
                assert column.get(name, (None, None))[1] is None
                continue
            assert column[name].value == pytest.approx(np.mean(values))
            assert column[name].text.startswith(f"{100 * np.mean(values):.1f} ± ")


def test_texts_curve_and_calibration_of_the_first_run_of_each_ablation_are_shown(runs, tmp_path):
    page = Page(report.draw([tmp_path]))
    neighbours = [t for t in page.tables if "rebuilt from (weight)" in t.head]
    assert len(neighbours) == 2
    cells = neighbours[0].column("nearest seen actions (cosine)")
    assert set(cells) == set(runs[0]["unseen_classes"])
    assert cells[runs[0]["unseen_classes"][0]].text == "crying 0.50"
    captions = [t for t in page.tables if "caption" in t.head]
    assert len(captions) == 2 and captions[0].rows[0][2].value == 0.5
    text = " ".join(page.texts)
    assert "Expected calibration error: 8.3" in text and "Missing" not in text
    bins = [t for t in page.tables if t.head[:1] == ["confidence"]]
    assert [cell.value for cell in bins[0].rows[0]] == [0.5, 9, 0.75, 2 / 3]
    area = f"the area is {100 * runs[0]['generalised']['auc']:.1f}"
    assert area in text
    # The dataset is not there, which is said, and the guesses are shown all the same.
    assert "No frames: dataset 'motion_zsar'" in text
    assert sum("shares of the softmax" in t.caption for t in page.tables) == 1


def test_runs_without_details_are_named_and_the_rest_is_shown(tmp_path):
    write_experiment(tmp_path, NAMES, with_details=False)
    page = Page(report.draw([tmp_path]))
    text = " ".join(page.texts)
    assert (
        "Missing for label, split 1, seed 0; full, split 1, seed 0: the folder has no details.json"
        in text
    )
    assert "coco-jax evaluate" in text and page.table("std").rows


def test_a_single_run_and_several_folders_are_reported(runs, tmp_path):
    folder = tmp_path / "full/split2/seed1"
    page = Page(report.draw([folder, tmp_path]))
    tables = [t for t in page.tables if "std" in t.head]
    assert [len(t.rows) for t in tables] == [1, 2]
    assert tables[0].rows[0][1].value == runs[-1]["top1"]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    links = [link.removeprefix("#") for link in page.references() if link.startswith("#")]
    assert len(set(ids)) == len(ids) and set(links) <= set(ids) and len(links) > 10


def test_runs_of_version_0_1_are_reported(tmp_path):
    """They have no shares of guesses, no chance level and no details."""
    with zipfile.ZipFile(ROOT / "tests/training/run_0_1.zip") as file:
        file.extractall(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    page = Page(report.draw([tmp_path], clips=False))
    assert page.table("std").rows[0][1].value == 0.125
    text = " ".join(page.texts)
    assert "video bodkin_015: quiddle hop, bodkin, corvet duet" in text and "Missing for" in text


def test_hostile_names_do_not_become_markup(tmp_path):
    """The page has the elements that it has with plain names, and no address."""
    plain, hostile = tmp_path / "plain", tmp_path / "hostile"
    write_experiment(plain, [f"action {i}" for i in range(len(HOSTILE))])
    write_experiment(hostile, HOSTILE)
    pages = [Page(report.draw([folder])) for folder in (plain, hostile)]
    # Classes are sorted by name, so only the numbers of elements are the same.
    tags = [sorted(tag for tag, _ in page.tags) for page in pages]
    assert tags[0] == tags[1]
    assert all(link.startswith("#") for link in pages[1].references())
    allowed = {name for _, attributes in pages[0].tags for name in attributes}
    assert {name for _, attributes in pages[1].tags for name in attributes} == allowed
    assert not [name for name in allowed if name.startswith("on")]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("results.json", {"format": 1, "ablations": 3, "splits": 3}, None),
        ("results.json", {"ablations": {"full": 3}}, "not as this version"),
        ("results.json", {"unseen_videos": []}, "not as this version"),
        ("full/split1/seed0/result.json", {"confusion": [[1]]}, "does not fit the classes"),
        ("full/split1/seed0/result.json", {"top1": "high"}, "not as this version"),
        ("full/split1/seed0/details.json", {"curve": {"seen": ["1"]}}, "not as this version"),
    ],
)
def test_damaged_files_are_an_error_that_names_them(runs, tmp_path, file, change, said):
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if said is None:  # of an older version: computed again from the runs
        assert len(Page(report.draw([tmp_path])).table("std").rows) == 2
        return
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{said}"):
        report.draw([tmp_path])


def test_command_writes_the_page(runs, tmp_path, parse, capsys):
    output = tmp_path / "new" / "r.html"
    parse(command, f"--output={output}")
    command.command(["report", str(tmp_path)])
    assert capsys.readouterr().out.startswith(f"{output} (0.")
    assert Page(output.read_text()).table("std")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no runs; name the folder"),
        (["{}/nothing"], "no results.json or result.json here"),
        (["{}", "--output=a.pdf"], "ends in .html"),
    ],
)
def test_command_says_what_is_missing(runs, tmp_path, parse, words, said):
    shutil.rmtree(tmp_path / "label")
    flags, folders = (
        [w.format(tmp_path) for w in words if w.startswith("-") == flag] for flag in (True, False)
    )
    parse(command, *flags)
    with pytest.raises(UserError, match=said):
        command.command(["report", *folders])
