"""evidence.json: all that a number of a run depends on, so that others can check and compare it.

docs/protocols.md describes the format. `SECTIONS` are the parts that two runs are compared by.
"""

import functools
import hashlib
import json
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from coco_jax import files, weights
from coco_jax.config import FREE, flatten, training_steps, uses_descriptions
from coco_jax.data import dataset as datasets
from coco_jax.data.task import Task
from coco_jax.errors import UserError
from coco_jax.evaluation import bootstrap, metrics, predictions, published
from coco_jax.evaluation.predictions import Prediction
from coco_jax.evaluation.results import write_json
from coco_jax.training.step import Params, Program
from coco_jax.version import __version__

FORMAT = 1  # version of evidence.json
FILE = "evidence.json"
MAX_BYTES = 128 << 20
# Datasets up to this size get a checksum of their videos or features; others only of ids and classes.
MAX_CONTENT = 256 << 20
# The name of a run in a sweep: a path inside the workdir, without "..".
_NAME = re.compile(r"(?!\.)[^/\0]+(/(?!\.)[^/\0]+)*")

# The sections of a run's evidence, and the config fields that belong to each, by prefix; the longest
# fitting prefix counts. Fields that fit none are in "method".
SECTIONS: dict[str, tuple[str, ...]] = {
    "data": ("protocol", "split", "validation_classes", "data.name", "data.test_", "data.shared_"),
    "classes": (),
    "prompts": ("text.templates", "text.definitions"),
    "descriptions": ("text.corpus", "text.eval_descriptions", "text.shuffle_descriptions"),
    "frames": (
        "video_tower.kind", "video_tower.frames", "video_tower.size", "video_tower.feature_dim",
        "video_tower.mean", "video_tower.std", "data.sampling", "data.stride", "data.crop", "data.views",
    ),
    "weights": ("video_tower.", "text_tower.", "text.", "model.dim", "model.dtype"),
    "method": ("ablation", "alignment", "model.", "cycle.", "ridge.", "eval."),
    "training": (
        "seed", "optimizer.", "lora.", "data.", "text.descriptions", "text.feature_noise",
        "eval.every", "eval.keep_best", "eval.patience",
        "video_tower.trainable", "text_tower.trainable", "video_tower.dropout", "text_tower.dropout",
        "model.remat", "model.start",
    ),
    "code": (),
}  # fmt: skip
# Fields that a result does not depend on, and paths: files are compared by their checksums.
LEFT_OUT = (
    *FREE, "video_tower.weights", "text_tower.weights", "text.tokenizer", "eval.ridge", "data.cache",
)  # fmt: skip


def section_of(field: str) -> str:
    """The section of a config field."""
    fitting = [
        (len(prefix), section)
        for section, prefixes in SECTIONS.items()
        for prefix in prefixes
        if field.startswith(prefix)
    ]
    return max(fitting, default=(0, "method"))[1]


def settings(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The config fields that a result depends on, by section."""
    found: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    sections = tuple(name for name in LEFT_OUT if name.endswith("."))
    for field, value in flatten(config.to_dict()).items():
        if field not in LEFT_OUT and not field.startswith(sections):
            found[section_of(field)][field] = value
    return found


def of_task(task: Task) -> dict[str, dict[str, Any]]:
    """The sections of a run, as far as they follow from its config, its data and its texts."""
    config = task.config
    sections: dict[str, dict[str, Any]] = {
        "data": _data(task),
        "classes": _classes(task),
        "prompts": {"templates_sha256": _sha256_of_json(list(config.text.templates))},
        "descriptions": _descriptions(task),
        "frames": {},
        "weights": _weights(task),
        "method": {},
        "training": {"steps": training_steps(config)},
        "code": dict(code()),
    }
    for section, fields in settings(config).items():
        sections[section]["config"] = fields
    return sections


def of_run(
    task: Task,
    result: Mapping[str, Any],
    rows: Sequence[Prediction],
    parameters_sha256: str,
    predictions_sha256: str,
) -> dict[str, Any]:
    """The content of a run's evidence.json.

    Args:
      task: of the run.
      result: the content of result.json.
      rows: the content of predictions.csv.
      parameters_sha256: a checksum of the evaluated parameters (`parameters_sha256`).
      predictions_sha256: of the file.
    """
    sections = of_task(task)
    sections["weights"]["evaluated_parameters_sha256"] = parameters_sha256
    sections["method"]["temperature"] = result["temperature"]
    sections["training"]["evaluated_step"] = result["step"]
    config = task.config
    return {
        "format": FORMAT,
        "kind": "run",
        **{field: config[field] for field in ("ablation", "split", "seed")},
        **sections,
        "numbers": numbers(result),
        "bootstrap": intervals(rows, result),
        "predictions": {"file": predictions.FILE, "sha256": predictions_sha256},
    }


def write(
    folder: pathlib.Path,
    task: Task,
    result: Mapping[str, Any],
    rows: Sequence[Prediction],
    parameters_sha256: str,
) -> None:
    """Writes predictions.csv, then evidence.json, into the folder of a run."""
    predictions.write(folder / predictions.FILE, rows)
    digest = file_sha256(folder / predictions.FILE)
    write_json(folder / FILE, of_run(task, result, rows, parameters_sha256, digest))


def write_sweep(workdir: pathlib.Path, names: Sequence[str], summary: Mapping[str, Any]) -> None:
    """Writes the evidence.json of a workdir: that of its runs, by name, and their mean and std.

    Runs that were evaluated before there was evidence are left out.
    """
    runs = {name: workdir / name / FILE for name in names}
    found = {name: load(path) for name, path in runs.items() if path.is_file()}
    table = {name: got["top1"] for name, got in summary["ablations"].items()}
    write_json(
        workdir / FILE,
        {"format": FORMAT, "kind": "sweep", "top1": table, "runs": found},
    )


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads an evidence.json of a run or of a sweep.

    Raises:
      UserError: it cannot be read, or is not of this form.
    """
    try:
        value = files.parse_json(files.read_bytes(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in ("run", "sweep"):
        raise UserError(f"{path}: not an evidence.json; `coco-jax certify RUN` writes one")
    if value.get("format") != FORMAT:
        raise UserError(
            f"{path}: has format {value.get('format')!r:.20}, this coco_jax reads {FORMAT}; update "
            "coco_jax"
        )
    runs = value.get("runs") if kind == "sweep" else {"run": value}
    if not isinstance(runs, dict) or not all(
        _is_run(run) and _NAME.fullmatch(name) for name, run in runs.items()
    ):
        raise UserError(f"{path}: damaged; write it again with `coco-jax certify RUN`")
    return value


def _is_run(value: Any) -> bool:
    parts = (*SECTIONS, "numbers", "bootstrap", "predictions")
    return isinstance(value, dict) and all(isinstance(value.get(part), dict) for part in parts)


def numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracies of a run (fractions), and mean and std of each group of its test sets."""
    found: dict[str, Any] = {name: result[name] for name in ("top1", "top5", "chance")}
    found["videos"] = result["unseen_videos"]
    found["generalised"], found["ridge"] = result["generalised"], result["ridge"]
    found["first_group"] = next(iter(result.get("groups", {"": [""]}).values()))
    found["groups"] = {
        group: {
            name: metrics.mean_std(values) if None not in values else None
            for name, values in by_name.items()
        }
        for group, by_name in result.get("cross", {}).items()
    }
    return found


def intervals(rows: Sequence[Prediction], result: Mapping[str, Any]) -> dict[str, Any]:
    """Bootstrap intervals of the accuracies, and what is needed to compute them again."""
    found: dict[str, Any] = {
        "resampled": "videos, plain: not within each class",
        "interval": "percentile",
        "level": bootstrap.LEVEL,
        "resamples": bootstrap.RESAMPLES,
        "seed": bootstrap.SEED,
        "test_sets": {},
    }
    groups = result.get("groups", {"": [""]})
    first = next(iter(groups.values()))
    for k in (1, 5):
        name = f"top{k}"
        _, sets, values_NS = predictions.hits(rows, k)
        means_RS = bootstrap.resample(values_NS)
        mean_R = np.nanmean(means_RS[:, [sets.index(one) for one in first]], axis=1)
        found[name] = None if result[name] is None else list(bootstrap.interval(mean_R))
        for group, members in result.get("cross", {}).items():
            for one, mean in zip(groups[group], members[name], strict=True):
                column = sets.index(one)
                row = found["test_sets"].setdefault(
                    one, {"videos": int((~np.isnan(values_NS[:, column])).sum())}
                )
                row[name] = mean
                row[f"{name}_interval"] = (
                    None if mean is None else list(bootstrap.interval(means_RS[:, column]))
                )
    return found


def parameters_sha256(program: Program, params: Params) -> str:
    """A checksum of parameters, the same on every mesh. All processes have to call it."""
    return hashlib.sha256(np.asarray(program.fingerprint(params)).tobytes()).hexdigest()


def file_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a regular file."""
    with files.open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def code() -> dict[str, Any]:
    """The versions of the code and of the libraries that compute, and the devices."""
    devices = jax.devices()
    return {
        "coco_jax": __version__,
        "git": _git(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def _git() -> dict[str, Any] | None:
    """The commit of the checkout that this file belongs to, and whether files were changed since."""
    here = pathlib.Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails in an installed package
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _data(task: Task) -> dict[str, Any]:
    dataset, plan, records = task.dataset, task.plan, task.dataset.records
    lines = (
        f"{split}\t{dataset.classes[label]}\t{video_id}"
        for split, label, video_id in zip(
            records.splits, records.labels.tolist(), records.video_ids, strict=True
        )
    )

    def chosen(indices_N: np.ndarray) -> dict[str, Any]:
        ids = [records.video_ids[i] for i in indices_N.tolist()]
        return {"videos": len(ids), "ids_sha256": _sha256_of_lines(ids)}

    return {
        "dataset": dataset.name,
        "sources": [_source(source) for source in dataset.sources],
        "records": len(records),
        "records_sha256": _sha256_of_lines(lines),
        "content_sha256": _content_sha256(dataset.sources),
        "tested": chosen(plan.test_unseen),
        "tested_of_seen_classes": chosen(plan.test_seen),
        "trained": chosen(plan.train),
        "test_sets": {name: chosen(subset.records) for name, subset in plan.subsets.items()},
    }


@functools.lru_cache(maxsize=16)
def _source(source: datasets.Source) -> dict[str, Any]:
    """The version of a built dataset, and how many videos were expected, stored, missing and broken.

    `videos` is None for builders that write no report.json, e.g. because there are no lists of videos.
    """
    counts = None
    report = pathlib.Path(source.folder) / "report.json"
    if report.is_file():
        try:
            parts = files.parse_json(files.read_bytes(report)).items()
            counts = {
                split: {
                    **{name: got.get(name) for name in ("expected", "stored", "missing")},
                    "broken": len(got.get("broken", ())),
                }
                for split, got in parts
            }
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{report}: damaged ({error}); build the dataset again") from error
    return {"name": source.name, "version": source.version, "videos": counts}


@functools.lru_cache(maxsize=16)
def _content_sha256(sources: Sequence[datasets.Source]) -> str | None:
    """SHA-256 of all videos or features of small datasets, in their order; None for large ones."""
    size = sum(files.check_tree(pathlib.Path(source.folder)) for source in sources)
    if not sources or size > MAX_CONTENT:
        return None
    digest = hashlib.sha256()
    for source in sources:
        for record in datasets.load(source.name, source.data_dir).records:
            for part in _content(record):
                digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _content(record: Mapping[str, Any]) -> Iterator[bytes]:
    yield record["video_id"].encode()
    if "features" in record:
        yield np.asarray(record["features"], np.float32).tobytes()
    elif "frames" in record:
        yield from record["frames"]
    else:
        yield record["video"]


def _classes(task: Task) -> dict[str, Any]:
    def chosen(names: Sequence[str]) -> dict[str, Any]:
        return {
            "count": len(names),
            "published": published.find(names),
            "normal_sha256": published.normal_sha256(names),
            "ordered_sha256": published.ordered_sha256(names),
            "names": list(names),
        }

    display = task.dataset.display_names
    found: dict[str, Any] = {group: chosen(task.classes[group]) for group in ("seen", "unseen")}
    found["test_sets"] = {
        name: {k: v for k, v in chosen(display(subset.classes)).items() if k != "names"}
        for name, subset in task.plan.subsets.items()
    }
    return found


def _descriptions(task: Task) -> dict[str, Any]:
    config, corpus = task.config, task.whole_corpus
    if not config.text.corpus:
        return {"corpus": None, "used": False}
    return {
        "corpus": config.text.corpus,
        "used": uses_descriptions(config),
        "sha256": corpus.sha256(),
        "count": corpus.count,
        "removed": task.removed_descriptions,
    }


def _weights(task: Task) -> dict[str, Any]:
    config = task.config
    return {
        "video": _published(config.video_tower.weights, "video_tower.weights"),
        "text": _published(config.text_tower.weights, "text_tower.weights"),
        "tokenizer_sha256": hashlib.sha256(task.tokenizer.model).hexdigest(),
    }


def _published(where: str, field: str) -> dict[str, Any] | None:
    """A published checkpoint and its SHA-256; that is None if the file is no longer on this machine."""
    if not where:
        return None
    try:
        return {"where": where, "sha256": weights.files.checksum(where, field)}
    except UserError:
        return {"where": where, "sha256": None}


def _sha256_of_lines(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
