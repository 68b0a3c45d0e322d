"""What explains the numbers of a run: details.json, which `coco-jax report` draws.

For each unseen class the seen classes that are nearest in the space of texts, and those from which the
model rebuilds it; the captions that videos attend to; calibration; the curve of seen against unseen
accuracy.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from coco_jax.config import uses_cycle
from coco_jax.data.task import Task
from coco_jax.evaluation import metrics
from coco_jax.evaluation.evaluate import Scored
from coco_jax.models import alignment, ridge
from coco_jax.models.closed_form import ClosedForm
from coco_jax.models.invariance import Invariance
from coco_jax.training.step import Params, Program

FORMAT = 1  # version of details.json
SEEN = 5  # seen classes that are listed for an unseen one
CAPTIONS = 4  # captions that are listed for a video
MAX_VIDEOS = 64  # whose captions are listed
MAX_CAPTION = 300  # characters
MAX_POINTS = 200  # of the curve


def explain(scored: Scored) -> dict[str, Any]:
    """The content of details.json; every process of a run has to call this."""
    program, params, task = scored.program, scored.params, scored.task
    plan, seen, tau = task.plan, len(task.plan.seen), scored.tau
    zero_shot_NU, label_U = scored.zero_shot()
    predicted_U = metrics.predict(zero_shot_NU, label_U)
    share_NU = np.asarray(jax.nn.softmax(zero_shot_NU / tau))
    bins, error = metrics.reliability(share_NU.max(1), predicted_U == label_U)
    details: dict[str, Any] = {
        "format": FORMAT,
        "calibration": {"bins": [b._asdict() for b in bins], "error": error, "temperature": tau},
        "curve": None,
        "captions": None,
        "rebuilt": None,
    }
    if len(plan.test_seen):
        seen_E, unseen_E = metrics.seen_unseen_curve(scored.scores_NK, scored.label_N, seen)
        shown = np.unique(np.linspace(0, len(seen_E) - 1, MAX_POINTS).astype(int))
        details["curve"] = {"seen": seen_E[shown].tolist(), "unseen": unseen_E[shown].tolist()}
    if task.config.alignment != "learned":
        return details | _of_closed_form(program, params, task, scored.features[0])
    l_KD, d_KMD, mask_KM = (None if x is None else np.asarray(x) for x in scored.features)
    assert l_KD is not None
    s_KD = _semantic_features(task, l_KD, d_KMD, mask_KM)
    details["nearest"] = _listed(task, s_KD[seen:] @ s_KD[:seen].T, "cosine")
    if uses_cycle(task.config):
        weight_US = _rebuilding_weights(program, params, task, s_KD)
        details["rebuilt"] = _listed(task, weight_US, "weight")
    if d_KMD is not None and mask_KM is not None:
        details["captions"] = _attended_captions(
            task, scored.v_ND, d_KMD[seen:], mask_KM[seen:], label_U, predicted_U
        )
    return details


def _listed(task: Task, value_US: np.ndarray, field: str) -> dict[str, list[dict[str, Any]]]:
    """For each unseen class the seen classes with the highest values."""
    found = {}
    for name, value_S in zip(task.plan.unseen, value_US, strict=True):
        best = np.argsort(-value_S, kind="stable")[:SEEN].tolist()
        found[name] = [{"action": task.plan.seen[i], field: float(value_S[i])} for i in best]
    return found


def _semantic_features(
    task: Task, l_KD: np.ndarray, d_KMD: np.ndarray | None, mask_KM: np.ndarray | None
) -> Float[np.ndarray, "K D"]:
    """The class semantic features, with the mean over all descriptions used in evaluation."""
    mean_K1D = None
    if d_KMD is not None and mask_KM is not None:
        total_K1D = (d_KMD * mask_KM[..., None]).sum(1, keepdims=True)
        mean_K1D = jnp.asarray(total_K1D / mask_KM.sum(1)[:, None, None])
    weight = task.config.model.label_weight
    return np.asarray(alignment.semantic_features(jnp.asarray(l_KD), mean_K1D, weight))


def _rebuilding_weights(
    program: Program, params: Params, task: Task, s_KD: np.ndarray
) -> Float[np.ndarray, "U S"]:
    """The attention of the cycle from unseen to seen classes, as a mean over its heads."""
    model, cycle, seen = task.config.model, task.config.cycle, len(task.plan.seen)
    empty = nnx.eval_shape(
        lambda: Invariance(
            model.dim, heads=cycle.heads, tau_r=cycle.tau_r, learned=cycle.learned_attention
        )
    )
    values = jax.tree.map(program.gather, params.get("invariance", {}))
    module = nnx.merge(nnx.graphdef(empty), nnx.State(values))
    with jax.default_matmul_precision("float32"):
        s_SD, s_UD = jnp.asarray(s_KD[:seen]), jnp.asarray(s_KD[seen:])
        return np.asarray(module.to_unseen.weights(s_UD, s_SD).mean(0))


def _attended_captions(
    task: Task,
    v_ND: np.ndarray,
    d_UMD: np.ndarray,
    mask_UM: np.ndarray,
    label_N: np.ndarray,
    predicted_N: np.ndarray,
) -> list[dict[str, Any]]:
    """For the first video of each unseen class: the captions of its action that it attends to most.

    If the model predicts another action, the same for that action.
    """
    found: list[dict[str, Any]] = []
    labels, first = np.unique(label_N, return_index=True)  # a class may have no videos
    for label, at in zip(labels[:MAX_VIDEOS].tolist(), first.tolist(), strict=False):
        predicted = int(predicted_N[at])
        found.append(
            {
                "video_id": task.dataset.records.video_ids[task.plan.test_unseen[at]],
                "action": task.plan.unseen[label],
                "predicted": task.plan.unseen[predicted],
                "of": {
                    task.plan.unseen[c]: _captions(task, v_ND[at], d_UMD[c], mask_UM[c], c)
                    for c in dict.fromkeys([label, predicted])
                },
            }
        )
    return found


def _captions(
    task: Task, v_D: np.ndarray, d_MD: np.ndarray, mask_M: np.ndarray, unseen: int
) -> list[dict[str, Any]]:
    inputs = (jnp.asarray(v_D[None]), jnp.asarray(d_MD[None]))
    tau_d, mask_1M = task.config.model.tau_d, jnp.asarray(mask_M[None])
    weight_M = np.asarray(alignment.description_weights(*inputs, tau_d, mask_1M))[0, 0]
    texts = task.corpus.texts[task.classes["unseen"][unseen]]
    best = np.argsort(-weight_M, kind="stable")[: min(CAPTIONS, int(mask_M.sum()))]
    return [{"text": texts[m][:MAX_CAPTION], "weight": float(weight_M[m])} for m in best.tolist()]


def _of_closed_form(
    program: Program, params: Params, task: Task, texts_KNW: np.ndarray
) -> dict[str, Any]:
    """`nearest` by the cosine of the model's kernel, `rebuilt` by the coefficients of the regression."""
    seen = len(task.plan.seen)
    model = nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: ClosedForm(task.config))),
        nnx.State(jax.tree.map(program.gather, params)),
    )
    x_KNW = jnp.asarray(texts_KNW)
    y_KNW = ridge.centre(x_KNW, x_KNW[:seen].mean(0))
    weight_N = jax.nn.softmax(model.constants.log_weight[...])
    with jax.default_matmul_precision("float32"):
        cosine_US = ridge.similarity(y_KNW[seen:], y_KNW[:seen], weight_N)
        coefficient_US = model.coefficients(x_KNW[seen:])
    return {
        "nearest": _listed(task, np.asarray(cosine_US), "cosine"),
        "rebuilt": _listed(task, np.asarray(coefficient_US), "weight"),
    }
