import pytest

from coco_jax.config import default
from coco_jax.evaluation import results


def run(ablation, seed, top1, **changes):
    general = {"seen": 0.5, "unseen": 0.25, "harmonic": 1 / 3, "auc": 0.2}
    return {
        "ablation": ablation, "split": "1", "seed": seed, "top1": top1, "top5": 1.0,
        "generalised": general, "unseen_classes": list("abcd"), "unseen_videos": 8, "chance": 0.25,
    } | changes  # fmt: skip


def test_summary_has_the_values_of_all_runs_and_their_mean_and_std():
    runs = [run("label", 0, 0.2), run("label", 1, 0.4), run("full", 0, 0.9)]
    summary = results.summarise(runs, default().to_dict())
    assert summary["chance"] == 0.25 and summary["seeds"] == [0, 1]
    assert summary["ablations"]["label"]["top1"] == {
        "mean": pytest.approx(0.3),
        "std": pytest.approx(0.02**0.5),
        "runs": [0.2, 0.4],
    }
    table = results.table(summary)
    assert "| label    | 30.0 ± 14.1 |" in table and "| full     | 90.0 " in table
    assert len({len(line) for line in table.splitlines()}) == 1


def test_generalised_metrics_are_none_without_seen_test_videos():
    summary = results.summarise([run("full", 0, 0.5, generalised=None)], default().to_dict())
    assert summary["ablations"]["full"]["generalised"]["auc"] is None
    assert "auc" not in results.table(summary)
    runs = [run("full", 0, 0.5, generalised=None), run("label", 0, 0.5)]
    mixed = results.table(results.summarise(runs, default().to_dict()))
    assert "auc" in mixed and " - " in mixed


def test_ridge_regressions_are_shown_with_paired_differences():
    def with_ridge(seed, top1, linear, kernel):
        both = {"linear": {"top1": linear, "top5": 1.0}, "kernel": {"top1": kernel, "top5": 1.0}}
        return run("full", seed, top1, generalised=None, ridge=both)

    runs = [with_ridge(0, 0.6, 0.5, 0.6), with_ridge(1, 0.8, 0.6, 0.84)]
    summary = results.summarise(runs, default().to_dict())
    linear, kernel = (summary["ablations"]["full"]["ridge"][kind] for kind in results.RIDGE)
    assert linear["difference"]["runs"] == pytest.approx([0.1, 0.2])
    assert kernel["difference"]["mean"] == pytest.approx(-0.02)
    row = results.table(summary).splitlines()[-1]
    # The standard deviation of (60, 80) is 14.1, so the standard error is 10; of (10, 20) it is 5.
    assert "70.0 ± 14.1 (10.0)" in row and "+15.0 ± 5.0" in row and "-2.0 ± 2.0" in row


def test_simpler_methods_have_rows_of_their_own_once_for_the_same_texts():
    def with_baselines(ablation, seed, label, conse):
        both = {"label": {"top1": label, "top5": 1.0}, "conse": {"top1": conse, "top5": None}}
        ridge = {kind: {"top1": 0.5, "top5": 1.0} for kind in results.RIDGE}
        return run(ablation, seed, 0.9, generalised=None, ridge=ridge, baselines=both)

    runs = [
        with_baselines(ablation, seed, label, conse)
        for ablation, conse in (("label", 0.4), ("label+desc", 0.5), ("full", 0.5))
        for seed, label in ((0, 0.2), (1, 0.4))
    ]
    table = results.table(results.summarise(runs, default().to_dict())).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "label",
        "label+desc",
        "full",
        "linear ridge, names",
        "ConSE, names",
        "ConSE, names and descriptions",
    ]
    assert "| 30.0 ± 14.1 (10.0) | 100.0 ± 0.0" in table[5]
    assert " 40.0 ± 0.0 (0.0) " in table[6] and " 50.0 ± 0.0 (0.0) " in table[7]
    assert table[6].count(" - ") == 5  # top-5 was not measured; ridge columns are those of the run
