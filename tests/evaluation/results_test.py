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
        "mean": pytest.approx(0.3), "std": pytest.approx(0.02**0.5), "runs": [0.2, 0.4],
    }  # fmt: skip
    table = results.table(summary)
    assert "| label    | 30.0 ± 14.1 |" in table and "| full     | 90.0 " in table
    assert len({len(line) for line in table.splitlines()}) == 1


def test_generalised_metrics_are_none_without_seen_test_videos():
    summary = results.summarise([run("full", 0, 0.5, generalised=None)], default().to_dict())
    assert summary["ablations"]["full"]["generalised"]["auc"] is None
    assert " - " in results.table(summary)
