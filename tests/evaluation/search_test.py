"""The search of hyper-parameters: its space, kills, its best trial, and that it reads no test class."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from coco_jax.config import default, get
from coco_jax.data import dataset as datasets
from coco_jax.errors import DivergedError, UserError
from coco_jax.evaluation import search
from tests.training.seen_test import dataset, make

assert dataset and make  # fixtures

SPACE = [
    "ridge.strength=log:0.01:100",
    "ridge.hubness=uniform:0:2",
    "text.definitions=choice:never,always",
]
TRIALS, SPLITS = 14, ("3", "4")


class Guarded(list):
    """Rows of which only some may be read."""

    allowed: set[int]

    def __getitem__(self, index):
        assert index in self.allowed, f"record {index} is of a test class"
        return super().__getitem__(index)


@pytest.fixture
def config(make, dataset, monkeypatch):
    """A search's config: ridge regression, which is not trained; records of test classes raise."""
    plans = [dataset_split(dataset, split) for split in SPLITS]
    rows = Guarded(dataset.records.sources[0])
    tested = set.intersection(*(set(plan["unseen"]) for plan in plans))
    assert tested
    names = np.array(dataset.classes)[dataset.records.labels]
    rows.allowed = {n for n, name in enumerate(names) if name not in tested}
    records = dataclasses.replace(dataset.records, sources=(rows,), kept={})
    guarded = dataclasses.replace(dataset, records=records)
    monkeypatch.setattr(datasets, "load", lambda name, data_dir: guarded)
    changed = make(alignment="ridge", ablation="label+desc", data__cache=False)
    changed.sweep.split = SPLITS
    return changed


def dataset_split(dataset, number):
    return datasets.random_split(dataset.classes, int(number), **dataset.random_splits)


def values_of(trials):
    return [(trial.number, trial.values, trial.top1, trial.runs) for trial in trials]


def search_to(config, folder, trials, specs=SPACE, **options):
    folder.mkdir(exist_ok=True)
    with search.opened(config, search.parse_space(specs), folder, **options) as found:
        new = list(search.run_trials(found, trials))
        return found.trials, found.best, new


def journal(folder):
    return [json.loads(line) for line in (folder / search.JOURNAL).read_text().splitlines()]


def test_search_measures_validation_classes_only(config, dataset, tmp_path, one_device):
    """Real runs; a record of a test class raises when it is read."""
    trials, _, new = search_to(config, tmp_path / "a", 1)
    assert len(trials) == 1 and trials == new
    for trial in trials:
        assert 0.01 <= trial.values["ridge.strength"] <= 100
        assert 0 <= trial.values["ridge.hubness"] <= 2
        for split, top1 in zip(SPLITS, trial.runs, strict=True):
            run = tmp_path / f"a/trials/{trial.number:04d}/label+desc/split{split}/seed0"
            result = json.loads((run / "result.json").read_text())
            stored = json.loads((run / "config.json").read_text())
            plan = dataset_split(dataset, split)
            assert set(result["unseen_classes"]) == set(plan["validation"])
            assert not set(result["unseen_classes"]) & set(plan["unseen"])
            assert result["top1"] == top1 and stored["protocol"] == "validation"
            assert stored["ridge"]["strength"] == trial.values["ridge.strength"]
        assert trial.top1 == np.mean(trial.runs)


def recorded_run(config, folder, **_):
    """Stands in for `run`: as there, a folder with a run of other values is an error."""
    path = folder / f"split{config.split}.json"
    values = [config.ridge.strength, config.ridge.hubness, config.text.definitions]
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        assert json.loads(path.read_text()) == values
    path.write_text(json.dumps(values))
    error = math.log(values[0]) ** 2 + values[1] + int(config.split) / 10
    return {"top1": 1 / (1 + error + (values[2] == "always"))}


def test_search_killed_at_any_time_ends_with_the_same_trials_and_its_best_is_that_of_the_journal(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "run", recorded_run)
    trials, best, _ = search_to(config, tmp_path / "whole", TRIALS)
    # Read without Optuna: an entry with the operation 6 and the state 1 completes a trial.
    entries = journal(tmp_path / "whole")
    complete = [e["values"][0] for e in entries if (e["op_code"], e.get("state")) == (6, 1)]
    assert best.top1 == max(complete) and len(set(complete)) == len(complete) == TRIALS
    assert best.number == complete.index(max(complete))
    written = json.loads((tmp_path / "whole" / search.RESULTS).read_text())
    assert written["best"] == best.number
    assert written["trials"][best.number]["top1"] == best.top1
    assert values_of(search_to(config, tmp_path / "seed", 3, seed=1)[0]) != values_of(trials[:3])

    # A kill leaves some first bytes of the journal, and the folders of the trials until then.
    content = (tmp_path / "whole" / search.JOURNAL).read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(content), 8).tolist():
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / search.JOURNAL).write_bytes(content[:cut])
        (folder / f"{search.JOURNAL}.lock").symlink_to(search.JOURNAL)  # Optuna's, while it writes
        resumed, best_resumed, _ = search_to(config, folder, TRIALS)
        assert values_of(resumed) == values_of(trials) and best_resumed == best


def test_trial_that_is_interrupted_between_its_runs_is_run_again(config, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run", recorded_run)
    whole, _, _ = search_to(config, tmp_path / "whole", 3)
    calls = []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == 4:  # the second run of the second trial
            raise SystemExit(0)
        return recorded_run(*args, **options)

    monkeypatch.setattr(search, "run", stopped)
    with pytest.raises(SystemExit):
        search_to(config, tmp_path / "stopped", 3)
    trials, _, new = search_to(config, tmp_path / "stopped", 3)
    assert [trial.number for trial in new] == [1, 2] and values_of(trials) == values_of(whole)
    assert search_to(config, tmp_path / "stopped", 3)[2] == []  # there are enough trials


def fake_run(measure):
    return lambda config, folder, **_: {"top1": measure(config)}


def test_search_finds_the_known_best_value(config, tmp_path, monkeypatch):
    def measure(c):
        error = math.log(c.ridge.strength / 3) ** 2 + (c.cycle.tau_r - 0.2) ** 2
        return 1 / (1 + error + (c.ablation != "full"))

    monkeypatch.setattr(search, "run", fake_run(measure))
    specs = [
        "ridge.strength=log:0.001:1000",
        "ablation=choice:label,full",
        "cycle.tau_r=uniform:0.1:1",
    ]
    trials, best, _ = search_to(config, tmp_path / "a", 40, specs)
    assert best.values["ablation"] == "full" and 2 < best.values["ridge.strength"] < 4.5
    random = np.mean([trial.top1 for trial in trials[:10]])
    assert np.mean([trial.top1 for trial in trials[20:]]) > random + 0.1


def test_trials_without_a_result_have_a_reason_and_are_never_the_best(
    config, tmp_path, monkeypatch
):
    def measure(c):
        if c.ridge.hubness > 1:
            raise DivergedError("the loss is nan")
        return 0.5

    monkeypatch.setattr(search, "run", fake_run(measure))
    specs = ["ridge.hubness=uniform:0:2", "text_tower.heads=choice:2,3"]
    trials, best, _ = search_to(config, tmp_path / "a", 12, specs)
    for trial in trials:
        invalid, diverged = trial.values["text_tower.heads"] == 3, trial.values["ridge.hubness"] > 1
        assert (trial.top1 is None) == (invalid or diverged) == bool(trial.reason)
        assert ("not a multiple" in trial.reason) == invalid
    assert best.top1 == 0.5 and {trial.top1 for trial in trials} == {0.5, None}
    monkeypatch.setattr(search, "run", fake_run(lambda c: 1 / 0))
    with pytest.raises(ZeroDivisionError):  # a programming error is not a bad trial
        search_to(config, tmp_path / "b", 1, specs[:1])


def test_no_trial_begins_after_the_timeout(config, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run", fake_run(lambda c: 0.5))
    (tmp_path / "a").mkdir()
    with search.opened(config, search.parse_space(SPACE), tmp_path / "a") as found:
        assert list(search.run_trials(found, 5, timeout=0)) == []
        assert len(list(search.run_trials(found, 5, timeout=600))) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(protocol="test"),
            "'test' uses test classes; a search has 'validation'",
        ),
        (
            lambda c: c.sweep.update(ablation=("label", "full")),
            "label, full; search for one at a time",
        ),
        (lambda c: c.ridge.update(width=0.25), r"has another search \(ridge.width: 0.5 -> 0.25\)"),
        (lambda c: c.sweep.update(split=("5",)), r"has another search \(sweep.split"),
    ],
)
def test_search_refuses_other_protocols_and_configs(config, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(search, "run", fake_run(lambda c: 0.5))
    search_to(config, tmp_path / "a", 1)
    change(config)
    with pytest.raises(UserError, match=message):
        search_to(config, tmp_path / "a", 2)


def test_search_refuses_another_space_a_damaged_journal_and_a_second_command(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "run", fake_run(lambda c: 0.5))
    search_to(config, tmp_path / "a", 1)
    with pytest.raises(UserError, match="has another search"):
        search_to(config, tmp_path / "a", 2, SPACE[:1])
    with (
        search.opened(config, search.parse_space(SPACE), tmp_path / "a"),
        pytest.raises(UserError, match="another command is searching there"),
    ):
        search_to(config, tmp_path / "a", 2)
    journal_path = tmp_path / "a" / search.JOURNAL
    for damage in (
        b"[]\n",
        b'{"op_code": 77}\n',
        b"\xff\xfe\n",
        b'{"op_code": 4, "study_id": 9}\n',
    ):
        journal_path.write_bytes(damage)
        with pytest.raises(UserError, match=r"journal.log: damaged .*; remove it"):
            search_to(config, tmp_path / "a", 2)


@pytest.mark.parametrize(
    ("spec", "dimension"),
    [
        ("config.model.tau=log:0.01:1", search.Dimension("model.tau", 0.01, 1.0, True)),
        (" optimizer.steps = uniform:10:500", search.Dimension("optimizer.steps", 10, 500)),
        (
            "cycle.pool=choice:unseen, auxiliary",
            search.Dimension("cycle.pool", choices=("unseen", "auxiliary")),
        ),
        ("model.centre=choice:true,False", search.Dimension("model.centre", choices=(True, False))),
        ("data.batch=choice:8,16", search.Dimension("data.batch", choices=(8, 16))),
    ],
)
def test_a_field_and_its_values_are_parsed(spec, dimension):
    (found,) = search.parse_space([spec])
    assert found == dimension
    (again,) = search.parse_space([str(found)])
    assert again == found
    for value in dimension.choices or (dimension.low, dimension.high):
        assert get(search.with_values(default(), {found.field: value}), found.field) == value


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("model.tau", "write FIELD=log"),
        ("model.tau=__import__('os')", "write FIELD=log"),
        ("model.tau=log:0.1", "write FIELD=log"),
        ("model.tau=log:0:1", "0 is not from 1e-06"),
        ("model.alpha=log:0:1", "needs 0 < LOW < HIGH"),
        ("model.tau=uniform:1:0.5", "needs LOW < HIGH"),
        ("model.tau=uniform:nan:1", "nan is not from"),
        ("model.tau=uniform:0.1:inf", "inf is not from"),
        ("model.tow=log:0.1:1", "did you mean config.model.tau"),
        ("protocol=choice:test,validation", "protocol says what is measured"),
        ("data.name=choice:a,b", "data.name says what is measured"),
        ("sweep.seed=choice:1,2", "sweep.seed says what is measured"),
        ("text.templates=choice:a,b", "is a list or a name"),
        ("cycle.pool=uniform:0:1", "is not a number"),
        ("cycle.pool=choice:unseen,all", "'all' is not one of unseen"),
        ("optimizer.steps=uniform:1.5:3", "'1.5' is not a whole number"),
        ("model.centre=choice:1,0", "neither True nor False"),
        ("data.batch=choice:8", "two or more different"),
        ("data.batch=choice:8,8", "two or more different"),
    ],
)
def test_unusable_field_or_values_are_an_error_of_one_line(spec, message):
    with pytest.raises(UserError, match=message) as error:
        search.parse_space([spec])
    assert "\n" not in str(error.value)


def test_space_is_read_from_a_file(tmp_path):
    path = tmp_path / "space.txt"
    path.write_text(
        "# temperatures\nmodel.tau=log:0.01:1  # of the softmax\n\nmodel.alpha=uniform:0:1\n"
    )
    assert search.read_space(path) == ["model.tau=log:0.01:1", "model.alpha=uniform:0:1"]
    with pytest.raises(UserError, match="twice"):
        search.parse_space([*search.read_space(path), "model.tau=log:0.1:1"])
    with pytest.raises(UserError, match="nothing to search"):
        search.parse_space([])
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        search.read_space(path)
    with pytest.raises(UserError, match="No such file"):
        search.read_space(tmp_path / "missing")
