"""Lists that users write for their own videos and features: videos.csv, splits.json, unseen.txt."""

import csv
import difflib
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from coco_jax.errors import UserError
from tfds_builders.common import builder as common

DATASETS = ("video_folder", "video_features")  # that are built from such lists
LISTS = ("videos.csv", "splits.json", "unseen.txt")
STORED_DIGEST = "lists.sha256"
TEST_SHARE = 0.2  # of each class, where no list says which videos are tested
TRIALS = 3  # random halves, where nobody says which classes are unseen


class Row(NamedTuple):
    """A line of videos.csv; `split` is train, test or ''."""

    key: str
    label: str
    split: str


def read_videos(path: pathlib.Path, key: str) -> list[Row]:
    """Reads videos.csv, whose columns are `key`, label and, if wanted, split.

    Raises:
      UserError: a column is missing, a field empty, a video named twice, a split unknown.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            missing = {key, "label"} - set(table.fieldnames or ())
            if missing:
                raise UserError(
                    f"{path}:1: no column {', '.join(sorted(missing))}; it has the columns {key}, label "
                    "and, if wanted, split"
                )
            found: dict[str, Row] = {}
            for line in table:
                row = Row(
                    (line[key] or "").strip(),
                    (line["label"] or "").strip(),
                    (line.get("split") or "").strip(),
                )
                where = f"{path}:{table.line_num}"
                if not row.key or not row.label:
                    raise UserError(f"{where}: {key} or label is empty; fill it in")
                if row.split not in ("", "train", "test"):
                    raise UserError(
                        f"{where}: split {row.split!r} is neither train nor test; leave it empty to "
                        "have one drawn"
                    )
                if row.key in found:
                    raise UserError(f"{where}: {row.key!r} is named twice; keep one line")
                found[row.key] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; give a UTF-8 CSV file") from error
    if not found:
        raise UserError(f"{path}: names no video; add a line for each")
    return list(found.values())


def digest(folder: str | None) -> str:
    """A hash of the lists in a folder, so that a build notices when they are edited."""
    found = hashlib.sha256()
    for name in LISTS:
        path = pathlib.Path(folder or "") / name
        if folder and path.is_file():
            found.update(f"{name}:{path.stat().st_size}:".encode() + path.read_bytes())
    return found.hexdigest()


def stored_digest(folder: pathlib.Path) -> str | None:
    """The hash of the lists that a dataset was built from; None if it was not built from lists."""
    path = folder / STORED_DIGEST
    return path.read_text().strip() if path.is_file() else None


def store_digest(folder: pathlib.Path, value: str) -> None:
    """Stores the hash beside a built dataset."""
    (folder / STORED_DIGEST).write_text(value + "\n")


def drawn(key: str) -> str:
    """train or test, by the video's name: the same for ever, whatever else is in the folder."""
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return "test" if share < TEST_SHARE else "train"


def class_splits(folder: pathlib.Path, classes: Sequence[str], dataset: str) -> dict[str, Any]:
    """Who is seen: of splits.json `{name: {"seen": [...], "unseen": [...]}}`, or all but unseen.txt's.

    Where neither file is there, three random halves.

    Raises:
      UserError: a file cannot be read, or names a class that has no video.
    """
    if (path := folder / "splits.json").is_file():
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))
            splits = {
                str(name): {who: [str(c) for c in named] for who, named in split.items()}
                for name, split in splits.items()
            }
            if not splits or any(split.keys() < {"seen", "unseen"} for split in splits.values()):
                raise ValueError("seen or unseen is missing")
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f'{path}: {error}; it holds {{"1": {{"seen": [class, ...], "unseen": [class, ...]}}}}'
            ) from error
    elif (path := folder / "unseen.txt").is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        unseen = [line.strip() for line in lines if line.strip()]
        splits = {"1": {"seen": [c for c in classes if c not in set(unseen)], "unseen": unseen}}
    elif len(classes) < 4:
        raise UserError(
            f"{folder}: {len(classes)} classes; name the unseen ones, one a line, in unseen.txt"
        )
    else:
        return common.halves(dataset, classes, TRIALS)
    for name, split in splits.items():
        for who, named in split.items():
            unknown = sorted(set(named) - set(classes))
            if unknown:
                near = difflib.get_close_matches(
                    unknown[0].casefold(), {c.casefold(): c for c in classes}, 1
                )
                match = next((c for c in classes if near and c.casefold() == near[0]), None)
                hint = f"did you mean {match!r}? " if match else ""
                raise UserError(
                    f"{path}: split {name}: {who} class {unknown[0]!r} has no video; {hint}the classes "
                    f"are {', '.join(list(classes)[:8])}{' ...' * (len(classes) > 8)}"
                )
        if not split["seen"] or not split["unseen"] or set(split["seen"]) & set(split["unseen"]):
            raise UserError(
                f"{path}: split {name}: seen and unseen must both name classes, and no class twice"
            )
    return splits
