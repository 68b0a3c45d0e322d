"""Reads the lists that users write for their own data: videos.csv, splits.json and unseen.txt."""

import csv
import difflib
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from coco_jax.errors import UserError
from tfds_builders.common import builder as common

DATASETS = ("video_folder", "video_features")  # datasets that are built from these lists
LISTS = ("videos.csv", "splits.json", "unseen.txt")
STORED_DIGEST = "lists.sha256"
TEST_SHARE = 0.2  # fraction of the videos in split test, if videos.csv names no splits
TRIALS = 3  # number of random class splits, without splits.json and unseen.txt


class Row(NamedTuple):
    """A line of videos.csv.

    Attributes:
      key: path or id of the video.
      label: class name.
      split: "train", "test", or "" if the line names none.
    """

    key: str
    label: str
    split: str


def read_videos(path: pathlib.Path, key: str) -> list[Row]:
    """Reads videos.csv.

    Args:
      path: the file; its columns are `key`, label and optionally split.
      key: name of the column that identifies a video, "path" or "video_id".

    Raises:
      UserError: the file is not UTF-8 CSV, has no lines, lacks a column, or has a line with an empty
        field, a repeated video or an unknown split.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            missing = {key, "label"} - set(table.fieldnames or ())
            if missing:
                raise UserError(
                    f"{path}:1: no column {', '.join(sorted(missing))}; the header must name {key}, "
                    "label and optionally split"
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
                        f"{where}: split {row.split!r} is neither train nor test; use one of these, or "
                        "leave the field empty for a random split"
                    )
                if row.key in found:
                    raise UserError(f"{where}: {row.key!r} is listed twice; keep one line")
                found[row.key] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; save it as a UTF-8 CSV file") from error
    if not found:
        raise UserError(f"{path}: lists no videos; add a line for each video")
    return list(found.values())


def digest(folder: str | None) -> str:
    """Returns the SHA-256 of the lists in a folder, which tells a later build whether they changed."""
    found = hashlib.sha256()
    for name in LISTS:
        path = pathlib.Path(folder or "") / name
        if folder and path.is_file():
            found.update(f"{name}:{path.stat().st_size}:".encode() + path.read_bytes())
    return found.hexdigest()


def stored_digest(folder: pathlib.Path) -> str | None:
    """Reads the hash that `store_digest` wrote next to a built dataset; None if there is none."""
    path = folder / STORED_DIGEST
    return path.read_text().strip() if path.is_file() else None


def store_digest(folder: pathlib.Path, value: str) -> None:
    """Writes the hash of the lists next to the dataset that was built from them."""
    (folder / STORED_DIGEST).write_text(value + "\n")


def drawn(key: str) -> str:
    """Assigns a video to "train" or "test" by the hash of its key.

    The split of a video therefore never changes, and does not depend on the other videos.
    """
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return "test" if share < TEST_SHARE else "train"


def class_splits(folder: pathlib.Path, classes: Sequence[str], dataset: str) -> dict[str, Any]:
    """Returns the class splits that a user's folder defines.

    They are read from splits.json, `{name: {"seen": [...], "unseen": [...]}}`. Without that file,
    there is one split, in which the classes of unseen.txt are unseen and all others are seen.
    Without either file, there are `TRIALS` random splits.

    Args:
      folder: folder of the lists.
      classes: names of the classes that have videos.
      dataset: name of the dataset, which the random splits depend on.

    Raises:
      UserError: a file cannot be read, a split names a class that has no video, lacks seen or unseen
        classes, or has a class in both; or there are fewer than 4 classes and neither file.
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
                f'{path}: {error}; write {{"1": {{"seen": [class, ...], "unseen": [class, ...]}}}}'
            ) from error
    elif (path := folder / "unseen.txt").is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        unseen = [line.strip() for line in lines if line.strip()]
        splits = {"1": {"seen": [c for c in classes if c not in set(unseen)], "unseen": unseen}}
    elif len(classes) < 4:
        raise UserError(
            f"{folder}: {len(classes)} classes are too few for random class splits; list the unseen "
            "classes in unseen.txt, one per line"
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
                f"{path}: split {name}: seen or unseen is empty, or a class is in both; give each at "
                "least one class and no class twice"
            )
    return splits
