"""A trained model's figures under a protocol: zero-shot, and generalised zero-shot."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from coco_jax.data.loader import ClipReader, evaluation_batches
from coco_jax.data.splits import check_final
from coco_jax.data.task import Task
from coco_jax.errors import UserError
from coco_jax.evaluation import metrics
from coco_jax.training.step import Params, Program, global_batch
from coco_jax.training.text_features import with_features


def embed_videos(
    program: Program, params: Params, task: Task, indices_N: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N D"]:
    """Unit vectors of records, the mean over `config.data.views` clips of each."""
    clip = ClipReader(task.dataset.records, task.config, training=False)
    share = {"process": jax.process_index(), "processes": jax.process_count(), "clip": clip}
    place = {int(index): n for n, index in enumerate(indices_N)}
    total_ND = np.zeros((len(indices_N), task.config.model.dim), np.float32)
    for view in range(task.config.data.views):
        found_ND = np.full_like(total_ND, np.nan)
        for batch in evaluation_batches(
            task.dataset.records, indices_N, task.config, view, **share
        ):
            v_BD = program.embed_videos(params, global_batch(program.mesh, batch["video"]))
            # The mesh decides which process holds which rows: each row says whose it is.
            index_B = program.gather(global_batch(program.mesh, batch["index"].astype(np.int32)))
            found_ND[[place[i] for i in np.asarray(index_B).tolist()]] = np.asarray(v_BD)
        total_ND += found_ND
    return total_ND / np.linalg.norm(total_ND, axis=1, keepdims=True)


def embed_candidates(
    program: Program, params: Params, task: Task
) -> tuple[jax.Array, np.ndarray | None, np.ndarray | None]:
    """l_c and d_cm of the candidates, seen classes first, and which descriptions exist."""
    labels_KPL, ids_KML, mask_KM = task.candidate_texts()
    l_KD = program.embed_labels(params, labels_KPL)
    if ids_KML is None:
        return l_KD, None, None
    # A class at a time keeps a thousand classes' worth of activations out of memory.
    d_KMD = np.stack(
        [np.asarray(program.embed_texts(params, ids_ML[None])[0]) for ids_ML in ids_KML]
    )
    return l_KD, d_KMD, mask_KM


def score_records(
    program: Program, params: Params, task: Task, indices_N: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N K"]:
    """score(v, c) of records against all candidates, seen classes first."""
    features = embed_candidates(program, params, task)
    v_ND = embed_videos(program, params, task, indices_N)
    chunks = np.array_split(v_ND, max(len(v_ND) // 1024, 1))
    return np.concatenate([np.asarray(program.scores(params, v_BD, *features)) for v_BD in chunks])


def evaluate(program: Program, params: Params, task: Task, step: int) -> dict[str, Any]:
    """All figures of one run, ready for JSON; accuracies are fractions.

    Raises:
      LeakError: test classes are asked for before training has ended.
    """
    check_final(step, task.config)
    task = with_features(task, program, params)
    plan, seen = task.plan, len(task.plan.seen)
    indices_N = np.concatenate([plan.test_unseen, plan.test_seen])
    scores_NK = score_records(program, params, task, indices_N)
    if not np.isfinite(scores_NK).all():
        raise UserError(
            f"step {step}: {np.isnan(scores_NK).mean():.0%} of the scores are not numbers; train again "
            "with a lower config.optimizer.learning_rate or config.model.dtype='float32'"
        )
    label_N = task.candidate_label[indices_N]
    multihost_utils.sync_global_devices("evaluated")

    zero_shot_NU = scores_NK[: len(plan.test_unseen), seen:]
    label_U = label_N[: len(plan.test_unseen)] - seen
    predicted_U = zero_shot_NU.argmax(1)
    classes = len(plan.unseen)
    by_class = metrics.per_class(predicted_U, label_U, classes)
    return {
        **_accuracies(task, zero_shot_NU, label_U),
        "per_class": dict(zip(plan.unseen, by_class.tolist(), strict=True)),
        "confusion": metrics.confusion(predicted_U, label_U, classes).tolist(),
        "generalised": (
            metrics.generalised(scores_NK, label_N, seen) if len(plan.test_seen) else None
        ),
        "examples": _examples(task, plan.test_unseen, zero_shot_NU, label_U),
        "unseen_classes": list(plan.unseen),
        "unseen_videos": len(plan.test_unseen),
        "seen_videos": len(plan.test_seen),
        "step": step,
        "descriptions_left_out": task.left_out,
    }


def _accuracies(task: Task, scores_NU, label_N) -> dict[str, Any]:
    """Top-1 and top-5; of a cross-dataset run their means over its first group of test sets.

    Groups are `official`, the numbered splits, and those that share a name up to a number (`half`).
    """
    plan = task.plan
    if not plan.subsets:
        return {f"top{k}": metrics.top_k(scores_NU, label_N, k) for k in (1, 5)}
    column = {name: i for i, name in enumerate(plan.unseen)}
    found: dict[str, dict[str, list[float]]] = {}
    for name, subset in plan.subsets.items():
        rows = np.searchsorted(plan.test_unseen, subset.records)
        columns = np.array([column[c] for c in subset.classes])
        place = np.full(len(plan.unseen), -1)
        place[columns] = np.arange(len(columns))
        group = found.setdefault(name.rstrip("0123456789") or "official", {"top1": [], "top5": []})
        for k in (1, 5):
            scores_nk = scores_NU[rows][:, columns]
            group[f"top{k}"].append(metrics.top_k(scores_nk, place[label_N[rows]], k))
    first = next(iter(found.values()))
    return {
        **{figure: float(np.mean(values)) for figure, values in first.items()},
        "cross": {group: dict(values) for group, values in found.items()},
        "test_sets": list(plan.subsets),
    }


def _examples(task: Task, indices_N, scores_NU, label_N) -> list[dict[str, Any]]:
    """The first video of every unseen class with its three best-scored actions."""
    names, found = task.plan.unseen, []
    for label, name in enumerate(names):
        at = int(np.flatnonzero(label_N == label)[0])
        best = np.argsort(-scores_NU[at])[:3]
        found.append(
            {
                "action": name,
                "record": int(indices_N[at]),
                "video_id": task.dataset.records.video_ids[indices_N[at]],
                "top": [{"action": names[i], "score": float(scores_NU[at, i])} for i in best],
            }
        )
    return found
