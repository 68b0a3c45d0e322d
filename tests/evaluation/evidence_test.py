"""Evidence of runs, comparisons that name what differs, and certification that finds planted errors."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

from coco_jax import certify as certify_command
from coco_jax import compare as compare_command
from coco_jax.config import load_stored
from coco_jax.data.corpus import DescriptionSampler
from coco_jax.data.task import label_ids, make_task
from coco_jax.errors import UserError
from coco_jax.evaluation import bootstrap, certification, compare, evidence, predictions
from coco_jax.evaluation.evaluate import list_predictions, measure, score
from coco_jax.evaluation.experiment import run
from coco_jax.evaluation.predictions import Prediction
from coco_jax.evaluation.results import write_json
from coco_jax.sharding import make_mesh
from coco_jax.training.checkpoint import read_json, restore_params
from coco_jax.training.step import make_program

RUN = "full/split1/seed0"


@pytest.fixture(scope="module")
def model(trained_run):
    """The task, program and parameters of the trained run."""
    config = load_stored(read_json(trained_run / "config.json"), "config.json")
    program = make_program(config, make_mesh(config))
    _, params = restore_params(trained_run / "checkpoints", program)
    return make_task(config), program, params


@pytest.fixture(scope="module")
def write(model, tmp_path_factory):
    """Evaluates the model on a task and writes evidence into a new folder."""
    _, program, params = model

    def evaluated(task, params=params) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("run")
        scored = score(program, params, task, task.config.optimizer.steps)
        metrics, rows = measure(scored), list_predictions(scored)
        evidence.write(folder, task, metrics, rows, evidence.parameters_sha256(program, params))
        write_json(folder / "result.json", metrics)
        return folder

    return evaluated


@pytest.fixture(scope="module")
def base(model, write) -> pathlib.Path:
    return write(model[0])


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory) -> pathlib.Path:
    """The trained run, evaluated as a user does."""
    workdir = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(trained_run, workdir / RUN)
    config = load_stored(read_json(trained_run / "config.json"), "config.json")
    run(config, workdir, "evaluate")
    return workdir / RUN


def with_config(task, **fields):
    config = task.config.copy_and_resolve_references()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return dataclasses.replace(task, config=config)


def other_prompts(task):
    task = with_config(task, text__templates=("{}", "a clip of someone doing {}"))
    ids = {
        group: label_ids(task.config, task.tokenizer, names, {})
        for group, names in task.classes.items()
    }
    return dataclasses.replace(task, label_ids=ids)


def missing_video(task):
    plan = dataclasses.replace(task.plan, test_unseen=task.plan.test_unseen[:-1])
    return dataclasses.replace(task, plan=plan)


def other_order(task):
    names = task.classes["unseen"][::-1]
    sampler = DescriptionSampler.of_tokens(task.corpus.texts, names, task.tokenizer)
    return dataclasses.replace(
        task,
        plan=dataclasses.replace(task.plan, unseen=task.plan.unseen[::-1]),
        classes=task.classes | {"unseen": names},
        label_ids=task.label_ids | {"unseen": task.label_ids["unseen"][::-1]},
        descriptions=task.descriptions | {"unseen": sampler},
    )


def other_frames(task):
    return with_config(task, data__crop=0.7)


def only_difference(a: pathlib.Path, b: pathlib.Path) -> tuple[str, list[str]]:
    """The single section that differs, and its sentences."""
    result = compare.compare(compare.open_runs(a), compare.open_runs(b))
    (differences,) = [pair["differences"] for pair in result["pairs"]]
    ((section, lines),) = differences.items()
    return section, lines


def test_a_run_equals_itself_and_its_paired_difference_is_0(base, write, model):
    again = write(model[0])
    result = compare.compare(compare.open_runs(base), compare.open_runs(again))
    assert result["pairs"][0]["differences"] == {}
    assert result["pairs"][0]["top1"]["difference_interval"] == [0, 0]
    text = compare.report(result, ("a", "b"))
    assert "Nothing differs that a result depends on: data, classes, prompts" in text
    assert "B - A +0.0 [+0.0, +0.0], paired by video" in text


def test_compare_names_other_prompts(base, write, model):
    section, lines = only_difference(base, write(other_prompts(model[0])))
    assert section == "prompts"
    assert lines == [
        "templates: 2 in A, 2 in B; only in A: a clip of {}; only in B: a clip of someone doing {}"
    ]


def test_compare_names_a_missing_video(base, write, model):
    task = model[0]
    other = write(missing_video(task))
    section, (line,) = only_difference(base, other)
    last = task.dataset.records.video_ids[task.plan.test_unseen[-1]]
    count = len(task.plan.test_unseen)
    assert section == "data"
    assert line == f"tested: {count} videos in A, {count - 1} in B; only in A: {last}"
    result = compare.compare(compare.open_runs(base), compare.open_runs(other))
    assert result["pairs"][0]["top1"]["difference_interval"] is None  # other videos: not paired


def test_compare_names_another_order_of_classes(base, write, model):
    section, lines = only_difference(base, write(other_order(model[0])))
    assert (section, lines) == ("classes", ["unseen: the same 8 classes in another order"])


def test_compare_names_other_frames(base, write, model):
    section, lines = only_difference(base, write(other_frames(model[0])))
    assert (section, lines) == ("frames", ["config.data.crop: 0.9 in A, 0.7 in B"])


def test_compare_names_other_weights(base, write, model):
    task, _, params = model
    section, lines = only_difference(base, write(task, jax.tree.map(lambda x: x * 1.001, params)))
    assert (section, lines) == ("weights", ["evaluated parameters: not the same"])


def test_runs_of_a_sweep_are_paired_by_ablation_split_and_seed(base, tmp_path):
    """B has one more run; in the shared run its prompts differ."""
    stored = json.loads((base / "evidence.json").read_text())
    other = json.loads((base / "evidence.json").read_text())
    other["prompts"]["config"]["text.templates"] = ["{}"]
    more = other | {"seed": 1}
    for name, runs in (("a", {RUN: stored}), ("b", {"x/y/z": more, RUN: other})):
        (tmp_path / name).mkdir()
        sweep = {"format": 1, "kind": "sweep", "top1": {}, "runs": runs}
        (tmp_path / name / "evidence.json").write_text(json.dumps(sweep))
    result = compare.compare(*(compare.open_runs(tmp_path / name) for name in "ab"))
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"], list(pair["differences"])) == (RUN, RUN, ["prompts"])
    assert result["only_in_b"] == ["x/y/z"] and result["only_in_a"] == []
    assert "only in B: x/y/z" in compare.report(result, ("a", "b"))


def test_accuracies_follow_from_the_predictions(base):
    result = json.loads((base / "result.json").read_text())
    rows = predictions.read(base / "predictions.csv")
    assert np.mean([row.own == row.predicted for row in rows]) == pytest.approx(result["top1"])
    assert np.mean([row.rank <= 5 for row in rows]) == pytest.approx(result["top5"])
    by_class = {name: [r.rank == 1 for r in rows if r.own == name] for name in result["per_class"]}
    assert {k: np.mean(v) for k, v in by_class.items()} == pytest.approx(result["per_class"])


def test_bootstrap_interval_of_an_accuracy_is_that_of_the_binomial_distribution():
    hits_NS = np.repeat([[1.0], [0.0]], [180, 120], axis=0)
    low, high = bootstrap.interval(bootstrap.resample(hits_NS)[:, 0])
    want = stats.binom.ppf([0.025, 0.975], 300, 0.6) / 300
    np.testing.assert_allclose([low, high], want, atol=1.5 / 300)


def test_videos_of_two_test_sets_are_drawn_together():
    """Of two equal test sets every resample has equal means; a set without a drawn video has none."""
    rng = np.random.default_rng(1)
    hits_N = rng.integers(2, size=40).astype(float)
    alone_N = np.where(np.arange(40) == 7, 1.0, np.nan)
    means_RS = bootstrap.resample(np.stack([hits_N, hits_N, alone_N], 1), 300)
    np.testing.assert_array_equal(means_RS[:, 0], means_RS[:, 1])
    # A video is not among 40 drawn ones with a probability of (1 - 1/40)^40 = 0.363.
    assert np.isnan(means_RS[:, 2]).mean() == pytest.approx(0.363, abs=0.1)
    assert set(means_RS[~np.isnan(means_RS[:, 2]), 2]) == {1.0}


def test_predictions_survive_names_with_commas_quotes_and_line_breaks(tmp_path):
    rows = [Prediction("", 'a,"b"\n.mp4', "x, y", "z", 2), Prediction("", "b", "z", "z", 1)]
    predictions.write(tmp_path / "predictions.csv", rows)
    assert predictions.read(tmp_path / "predictions.csv") == rows


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n", "test_set,video_id,class,predicted,rank\n,a,b,c,0\n", "\udcff",
     "test_set,video_id,class,predicted,rank\n,a,b,c\n",
     "test_set,video_id,class,predicted,rank\n,a,b,c," + "9" * 5000],
)  # fmt: skip
def test_damaged_predictions_are_an_error_of_one_line(tmp_path, text):
    path = tmp_path / "predictions.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"no predictions .*; evaluate the run again"):
        predictions.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: [], "not an evidence.json"),
        (lambda e: e | {"format": 2}, "has format 2, this coco_jax reads 1; update coco_jax"),
        (lambda e: e | {"data": 5}, "damaged; write it again"),
        (lambda e: {"format": 1, "kind": "sweep", "runs": {"../x": e}}, "damaged"),
        (lambda e: {"format": 1, "kind": "sweep", "runs": {}}, "has no runs"),
        (lambda e: e | {"numbers": {"top1": "high"}}, "has no top-1"),
    ],
)
def test_damaged_evidence_is_an_error_of_one_line(base, tmp_path, change, message):
    stored = json.loads((base / "evidence.json").read_text())
    (tmp_path / "evidence.json").write_text(json.dumps(change(stored)))
    with pytest.raises(UserError, match=message) as caught:
        compare.compare(compare.open_runs(tmp_path / "evidence.json"), compare.open_runs(base))
    assert "\n" not in str(caught.value)


def paths_of(tree: dict, depth: int = 4) -> list[tuple[str, ...]]:
    """The paths of all values in nested dicts, down to a depth."""
    below = [
        (key, *path)
        for key, value in tree.items()
        if isinstance(value, dict) and depth > 1
        for path in paths_of(value, depth - 1)
    ]
    return [(key,) for key in tree] + below


def test_any_value_of_a_wrong_type_gives_a_comparison_or_an_error_of_one_line(base, tmp_path):
    stored = json.loads((base / "evidence.json").read_text())
    whole = compare.Run("whole", stored, None)
    path = tmp_path / "evidence.json"
    accepted, refused = 0, 0
    for place in paths_of(stored):
        for value in (None, 10**400, float("nan"), "x\x1b[31m\n", [{}], {"a": []}):
            damaged = json.loads(json.dumps(stored))
            parent = damaged
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            path.write_text(json.dumps(damaged))
            try:
                result = compare.compare([whole], compare.open_runs(path))
            except UserError as error:
                refused += 1
                assert "\n" not in str(error)
            else:
                accepted += 1
                json.dumps(result, allow_nan=False)
                assert "\x1b" not in compare.report(result, ("a", "b"))
    assert accepted > 500 and refused > 50


def test_evidence_says_what_was_evaluated(evaluated, model):
    task = model[0]
    found = json.loads((evaluated / "evidence.json").read_text())
    assert found["data"]["sources"][0]["name"] == "motion_zsar"
    assert found["data"]["tested"]["videos"] == len(task.plan.test_unseen)
    assert found["classes"]["unseen"]["names"] == task.classes["unseen"]
    assert found["prompts"]["config"]["text.templates"] == ["{}", "a clip of {}"]
    assert found["descriptions"]["count"] == task.whole_corpus.count > 100
    assert found["frames"]["config"]["video_tower.frames"] == 4
    assert found["training"]["config"]["seed"] == 0
    assert len(found["data"]["content_sha256"]) == 64
    result = json.loads((evaluated / "result.json").read_text())
    assert found["numbers"]["top1"] == result["top1"]
    low, high = found["bootstrap"]["top1"]
    assert low <= result["top1"] <= high and found["bootstrap"]["resamples"] == 2_000


@pytest.fixture
def copy(evaluated, tmp_path) -> pathlib.Path:
    """A copy of the evaluated run, to damage."""
    shutil.copytree(evaluated, tmp_path / "run")
    return tmp_path / "run"


def states(folder, **arguments) -> dict[str, str]:
    return {check.part: check.state for check in certification.certify(folder, **arguments)}


PARTS = {
    "numbers", "predictions", "accuracies", "bootstrap", "config", "class lists", "data", "classes",
    "prompts", "descriptions", "weights", "parameters",
}  # fmt: skip


def test_certify_finds_an_evaluated_run_right(evaluated):
    assert states(evaluated) == dict.fromkeys(PARTS, "right")


def edit(path: pathlib.Path, **values) -> None:
    """Sets values of a JSON file; `a__b` is the value b of a."""
    stored = json.loads(path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        parent = stored
        for key in parents:
            parent = parent[key]
        parent[last] = value
    path.write_text(json.dumps(stored))


def wrong(folder) -> set[str]:
    return {part for part, state in states(folder).items() if state == "wrong"}


def test_certify_finds_an_invented_result(copy):
    edit(copy / "result.json", top1=0.99)
    assert wrong(copy) == {"numbers", "accuracies"}
    edit(copy / "evidence.json", numbers__top1=0.99)
    assert wrong(copy) == {"accuracies"}


def test_certify_finds_a_changed_prediction(copy):
    path = copy / "predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if line.endswith(",1\n"))
    lines[row] = lines[row][:-2] + "2\n"
    path.write_text("".join(lines))
    assert (
        {"predictions", "accuracies"} <= wrong(copy) <= {"predictions", "accuracies", "bootstrap"}
    )


def test_certify_finds_other_class_names_data_and_weights(copy):
    stored = json.loads((copy / "evidence.json").read_text())
    names = stored["classes"]["unseen"]["names"]
    edit(
        copy / "evidence.json",
        classes__unseen__names=["juggling", *names[1:]],
        data__tested__ids_sha256="0" * 64,
        weights__evaluated_parameters_sha256="0" * 64,
        descriptions__sha256="0" * 64,
    )
    assert wrong(copy) == {"class lists", "classes", "data", "parameters", "descriptions"}


def test_certify_without_data_checks_what_it_can(copy):
    found = states(copy, data_dir="/nowhere")
    unchecked = {part for part, state in found.items() if state == "not checked"}
    assert unchecked == {
        "data", "classes", "prompts", "descriptions", "weights", "parameters",
    }  # fmt: skip
    assert set(found.values()) == {"right", "not checked"}


def test_certify_writes_missing_evidence_again(copy):
    before = {name: (copy / name).read_bytes() for name in ("evidence.json", "predictions.csv")}
    for name in before:
        (copy / name).unlink()
    (check,) = certification.certify(copy)
    assert check.reason == "written: the run was evaluated again"
    assert {name: (copy / name).read_bytes() for name in before} == before
    (copy / "evidence.json").unlink()
    edit(copy / "result.json", top1=0.99)
    with pytest.raises(UserError, match=r"another top1 than result.json.*remove result.json"):
        certification.certify(copy)


def test_commands_print_text_and_json(parse, copy, base, capsys):
    parse(compare_command, "--json")
    compare_command.command(["compare", str(copy), str(base)])
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"pairs", "only_in_a", "only_in_b", "top1"}
    parse(compare_command)
    compare_command.command(["compare", str(copy), str(base)])
    assert capsys.readouterr().out.startswith(f"A: {copy}\nB: {base}\n")
    edit(copy / "result.json", top1=0.99)
    parse(certify_command, "--data_dir=/nowhere")
    with pytest.raises(SystemExit) as caught:
        certify_command.command(["certify", str(copy)])
    assert caught.value.code == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "numbers        wrong: result.json has others"
    with pytest.raises(UserError, match="give two runs"):
        compare_command.command(["compare", str(copy)])
