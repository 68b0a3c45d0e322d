"""Evaluates a trained model under a protocol: zero-shot, and generalised zero-shot."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from coco_jax.config import text_blocks
from coco_jax.data.clip_reader import ClipReader
from coco_jax.data.loader import evaluation_batches, stored_features
from coco_jax.data.splits import Plan, Subset, check_final
from coco_jax.data.task import Task
from coco_jax.errors import DivergedError
from coco_jax.evaluation import metrics, predictions
from coco_jax.evaluation.predictions import Prediction
from coco_jax.models import alignment, conse, ridge
from coco_jax.training.seen import class_means
from coco_jax.training.step import Params, Program, global_batch
from coco_jax.training.text_features import class_features, with_features


def embed_videos(
    program: Program, params: Params, task: Task, indices_N: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N D"]:
    """Unit vectors of records; each is the normalised mean over `config.data.views` clips."""
    clip = ClipReader(task.config, training=False, records=task.dataset.records)
    share = {"process": jax.process_index(), "processes": jax.process_count(), "clip": clip}
    row = {int(index): n for n, index in enumerate(indices_N)}
    is_learned = task.config.alignment == "learned"
    dim = task.config.model.dim if is_learned else task.config.video_tower.feature_dim
    total_ND = np.zeros((len(indices_N), dim), np.float32)
    for view in range(task.config.data.views):
        found_ND = np.full_like(total_ND, np.nan)
        for batch in evaluation_batches(
            task.dataset.records, indices_N, task.config, view, **share
        ):
            v_BD = program.embed_videos(params, global_batch(program.mesh, batch["video"]))
            # Which rows a process gets depends on the mesh, so gather the record of each row as well.
            index_B = program.gather(global_batch(program.mesh, batch["index"].astype(np.int32)))
            found_ND[[row[i] for i in np.asarray(index_B).tolist()]] = np.asarray(v_BD)
        total_ND += found_ND
    return total_ND / np.linalg.norm(total_ND, axis=1, keepdims=True)


def embed_candidates(program: Program, params: Params, task: Task) -> tuple[Any, ...]:
    """What `Program.scores` needs of the candidates, seen classes first.

    Embeddings l_c and d_cm and a mask of the descriptions; for a closed form, text features.
    """
    if task.config.alignment != "learned":
        return (np.concatenate([class_features(task, group) for group in ("seen", "unseen")]),)
    labels_KPL, ids_KML, mask_KM = task.candidate_texts()
    l_KD = program.embed_labels(params, labels_KPL)
    if ids_KML is None:
        return l_KD, None, None
    # One class at a time: the activations of a thousand classes do not fit in memory.
    d_KMD = np.stack(
        [np.asarray(program.embed_texts(params, ids_ML[None])[0]) for ids_ML in ids_KML]
    )
    return l_KD, d_KMD, mask_KM


def score_records(
    program: Program, params: Params, task: Task, indices_N: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N K"]:
    """Scores of records for all candidates, seen classes first."""
    features = embed_candidates(program, params, task)
    v_ND = embed_videos(program, params, task, indices_N)
    return _scores(program, params, v_ND, features)


def _scores(
    program: Program, params: Params, v_ND: np.ndarray, features: tuple[Any, ...]
) -> Float[np.ndarray, "N K"]:
    chunks = np.array_split(v_ND, max(len(v_ND) // 1024, 1))
    return np.concatenate([np.asarray(program.scores(params, v_BD, *features)) for v_BD in chunks])


class Scored(NamedTuple):
    """The scores of a run's tested videos, those of unseen classes first, and where they come from."""

    program: Program
    params: Params
    step: int
    task: Task  # a result of `with_features`
    features: tuple[Any, ...]  # of the candidates, a result of `embed_candidates`
    v_ND: Float[np.ndarray, "N D"]  # a result of `embed_videos`
    scores_NK: Float[np.ndarray, "N K"]  # seen classes first
    label_N: Int[np.ndarray, " N"]  # of the candidates
    tau: float  # temperature of the model

    def zero_shot(self) -> tuple[Float[np.ndarray, "N U"], Int[np.ndarray, " N"]]:
        """The scores of the videos of unseen classes for these classes, and their labels among them."""
        seen, tested = len(self.task.plan.seen), len(self.task.plan.test_unseen)
        return self.scores_NK[:tested, seen:], self.label_N[:tested] - seen


def score(program: Program, params: Params, task: Task, step: int) -> Scored:
    """Scores all videos that a run is tested on.

    Raises:
      LeakError: training is not finished.
      DivergedError: scores are not finite.
    """
    check_final(step, task.config)
    task = with_features(task, program, params)
    indices_N = np.concatenate([task.plan.test_unseen, task.plan.test_seen])
    features = embed_candidates(program, params, task)
    v_ND = embed_videos(program, params, task, indices_N)
    scores_NK = _scores(program, params, v_ND, features)
    if not np.isfinite(scores_NK).all():
        raise DivergedError(
            f"step {step}: {np.isnan(scores_NK).mean():.0%} of the scores are not numbers; train again "
            "with a lower config.optimizer.learning_rate or config.model.dtype='float32'"
        )
    multihost_utils.sync_global_devices("evaluated")
    model = task.config.model
    tau = float(np.clip(np.exp(params["log_tau"]), model.tau_min, model.tau_max))
    label_N = task.candidate_label[indices_N]
    return Scored(program, params, step, task, features, v_ND, scores_NK, label_N, tau)


def measure(scored: Scored) -> dict[str, Any]:
    """All metrics of one run, ready for JSON; accuracies are fractions."""
    task, scores_NK, label_N = scored.task, scored.scores_NK, scored.label_N
    plan, seen = task.plan, len(task.plan.seen)
    zero_shot_NU, label_U = scored.zero_shot()
    predicted_U = metrics.predict(zero_shot_NU, label_U)
    classes = len(plan.unseen)
    by_class = metrics.per_class(predicted_U, label_U, classes)
    return {
        **_accuracies(task, zero_shot_NU, label_U),
        "per_class": {
            name: None if np.isnan(share) else share  # a class may have no videos
            for name, share in zip(plan.unseen, by_class.tolist(), strict=True)
        },
        "confusion": metrics.confusion(predicted_U, label_U, classes).tolist(),
        "generalised": (
            metrics.generalised(scores_NK, label_N, seen) if len(plan.test_seen) else None
        ),
        "examples": _examples(task, plan.test_unseen, zero_shot_NU, label_U, scored.tau),
        "unseen_classes": list(plan.unseen),
        "unseen_videos": len(plan.test_unseen),
        "seen_videos": len(plan.test_seen),
        "chance": _chance(plan),
        "step": scored.step,
        "descriptions_left_out": task.removed_descriptions,
        **_closed_forms(task, label_U),
        "temperature": scored.tau,
    }


def list_predictions(scored: Scored) -> list[Prediction]:
    """The predictions for the videos of unseen classes, in each test set of the run."""
    task, plan = scored.task, scored.task.plan
    found = []
    for name, subset, rows, scores_nk, label_n in _test_sets(plan, *scored.zero_shot()):
        video_ids = [task.dataset.records.video_ids[i] for i in plan.test_unseen[rows]]
        classes = task.dataset.display_names(subset.classes)
        found += predictions.of_scores(name, video_ids, classes, scores_nk, label_n)
    return found


def evaluate_validation(program: Program, params: Params, task: Task) -> dict[str, float]:
    """Top-1, and top-5 if there are more than five classes, of the tested classes of a task.

    Args:
      program: of the run.
      params: at any step.
      task: of `validation_task`, with features if the text tower is frozen.
    """
    indices_N = task.plan.test_unseen
    scores_NK = score_records(program, params, task, indices_N)
    label_N = task.candidate_label[indices_N]
    found = {f"top{k}": _top_k(scores_NK, label_N, k) for k in (1, 5)}
    return {name: value for name, value in found.items() if value is not None}


def _closed_forms(task: Task, label_U: Int[np.ndarray, " N"]) -> dict[str, Any]:
    """Accuracies of methods without training, on the run's texts and features.

    "ridge" is ridge regression: "linear" regresses from the concatenated texts; "kernel" has the
    constants of `config.ridge`. "baselines" are simpler: "label" is linear ridge regression from the
    labels alone. "conse" is ConSE on the mean text of each class; its classifier has the cosines with
    the mean features of the seen classes as logits, at the temperature `config.model.tau`. Both are None
    without `config.eval.ridge`.
    """
    config, constants = task.config, task.config.ridge
    if not config.eval.ridge:
        return {"ridge": None, "baselines": None}
    weight_of = dict(zip(ridge.BLOCKS, constants.weights, strict=True))
    weight_N = np.array([weight_of[block] for block in text_blocks(config)], np.float32)
    scores = _closed_form_scores(
        class_features(task, "unseen"),
        class_features(task, "seen"),
        class_means(task),
        stored_features(task.dataset.records, task.plan.test_unseen, config),
        weight_N / weight_N.sum(),
        constants.width,
        constants.strength,
        constants.hubness,
        constants.neighbours,
        config.model.tau,
    )
    return {
        kind: {name: _accuracies(task, np.asarray(s_NU), label_U) for name, s_NU in by_name.items()}
        for kind, by_name in scores.items()
    }


@functools.partial(jax.jit, static_argnums=8)
def _closed_form_scores(
    texts_KNW: jax.Array,
    seen_SNW: jax.Array,
    videos_SF: jax.Array,
    tested_UF: jax.Array,
    weight_N: jax.Array,
    width: float,
    strength: float,
    hubness: float,
    neighbours: int,
    tau: float,
) -> dict[str, dict[str, jax.Array]]:
    with jax.default_matmul_precision("float32"):
        mean_F = videos_SF.mean(0)
        seen_SF, v_UF = ridge.centre(videos_SF, mean_F), ridge.centre(tested_UF, mean_F)
        linear_KF = ridge.predict_linear(texts_KNW, seen_SNW, seen_SF)
        kernel_KF = ridge.predict(texts_KNW, seen_SNW, seen_SF, weight_N, width, strength)
        penalty_K = hubness * ridge.hubness(kernel_KF, seen_SF, neighbours)
        label_KF = ridge.predict_linear(texts_KNW[:, :1], seen_SNW[:, :1], seen_SF)
        texts_KW, seen_SW = (alignment.normalise(x.mean(1)) for x in (texts_KNW, seen_SNW))
        return {
            "ridge": {"linear": v_UF @ linear_KF.T, "kernel": v_UF @ kernel_KF.T - penalty_K},
            "baselines": {
                "label": v_UF @ label_KF.T,
                "conse": conse.scores(texts_KW, seen_SW, v_UF @ seen_SF.T / tau),
            },
        }


def _accuracies(
    task: Task, scores_NU: Float[np.ndarray, "N U"], label_N: Int[np.ndarray, " N"]
) -> dict[str, Any]:
    """Top-1 and top-5; for several test sets, the means over the first group of them.

    Top-5 is None with at most five candidates.
    """
    plan = task.plan
    if not plan.subsets:
        return {f"top{k}": _top_k(scores_NU, label_N, k) for k in (1, 5)}
    found: dict[str, dict[str, list[float | None]]] = {}
    groups: dict[str, list[str]] = {}
    for name, subset, _, scores_nk, label_n in _test_sets(plan, scores_NU, label_N):
        group = _group(name, subset)
        groups.setdefault(group, []).append(name)
        values = found.setdefault(group, {"top1": [], "top5": []})
        for k in (1, 5):
            values[f"top{k}"].append(_top_k(scores_nk, label_n, k))
    first = next(iter(found.values()))
    return {
        **{name: metrics.mean(values) for name, values in first.items()},
        "cross": {group: dict(values) for group, values in found.items()},
        "test_sets": list(plan.subsets),
        "groups": groups,
    }


def _test_sets(
    plan: Plan, scores_NU: Float[np.ndarray, "N U"], label_N: Int[np.ndarray, " N"]
) -> Iterator[tuple[str, Subset, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each test set: its name, itself, its rows, their scores for its classes, and their labels."""
    column = {name: i for i, name in enumerate(plan.unseen)}
    whole = {"": Subset(plan.unseen, plan.test_unseen)}
    for name, subset in (plan.subsets or whole).items():
        rows = np.searchsorted(plan.test_unseen, subset.records)
        columns = np.array([column[c] for c in subset.classes])
        place = np.full(len(plan.unseen), -1)
        place[columns] = np.arange(len(columns))
        yield name, subset, rows, scores_NU[rows][:, columns], place[label_N[rows]]


def _top_k(
    scores_NK: Float[np.ndarray, "N K"], label_N: Int[np.ndarray, " N"], k: int
) -> float | None:
    """Top-k accuracy; None if k > 1 and there are at most k candidates."""
    return None if 1 < k >= scores_NK.shape[1] else metrics.top_k(scores_NK, label_N, k)


def _group(name: str, subset: Subset) -> str:
    """The group of a test set: `official`, or the name of its split without the final number."""
    return "official" if subset.official else name.rstrip("0123456789") or "splits"


def _chance(plan: Plan) -> float:
    """Top-1 accuracy of a random guess: like top-1, a mean over the first group of test sets."""
    groups: dict[str, list[int]] = {}
    for name, subset in plan.subsets.items():
        groups.setdefault(_group(name, subset), []).append(len(subset.classes))
    sizes = next(iter(groups.values()), [len(plan.unseen)])
    return float(np.mean([1 / size for size in sizes]))


def _examples(
    task: Task,
    indices_N: Int[np.ndarray, " N"],
    scores_NU: Float[np.ndarray, "N U"],
    label_N: Int[np.ndarray, " N"],
    tau: float,
) -> list[dict[str, Any]]:
    """The first video of every unseen class with the three actions of the highest scores.

    `share` is the softmax over the unseen classes at the temperature of the model.
    """
    names, found = task.plan.unseen, []
    for label, at in zip(*np.unique(label_N, return_index=True), strict=True):
        best = np.argsort(-scores_NU[at])[:3]
        share_U = np.asarray(jax.nn.softmax(scores_NU[at] / tau))
        found.append(
            {
                "action": names[label],
                "record": int(indices_N[at]),
                "video_id": task.dataset.records.video_ids[indices_N[at]],
                "top": [
                    {
                        "action": names[i],
                        "score": float(scores_NU[at, i]),
                        "share": float(share_U[i]),
                    }
                    for i in best
                ],
            }
        )
    return found
