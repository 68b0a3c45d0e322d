"""Reads the lists that users write for their own data: videos.csv, splits.json and unseen.txt."""

import collections
import csv
import difflib
import hashlib
import io
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from coco_jax.data import action_names
from coco_jax.errors import UserError
from coco_jax.files import LIST_LIMIT, open_regular, parse_json, read_bytes, read_text
from coco_jax.printing import printable
from tfds_builders.common import builder as common

DATASETS = ("video_folder", "video_features")  # datasets that are built from these lists
LISTS = ("videos.csv", "splits.json", "unseen.txt")
STORED_DIGEST = "lists.sha256"
TEST_SHARE = 0.2  # fraction of the videos in split test, if videos.csv names no splits
TRIALS = 3  # number of random class splits, without splits.json and unseen.txt
MAX_BYTES = 128 << 20  # of a list of videos
MAX_ROWS = 2_000_000  # of videos.csv


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
      UserError: the file is not a UTF-8 CSV file of at most `MAX_ROWS` lines, has no lines, lacks a
        column, or has a line with an empty field, a repeated video, an unknown split or a label with a
        line break or other control character.
    """
    try:
        with open_regular(path) as stream:
            if (size := os.fstat(stream.fileno()).st_size) > MAX_BYTES:
                raise UserError(
                    f"{path}: has {size:,} bytes, more than {MAX_BYTES:,}; build several datasets"
                )
            return _rows(path, key, io.TextIOWrapper(stream, "utf-8-sig", newline=""))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); write it again") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; save it as a UTF-8 CSV file") from error


def _rows(path: pathlib.Path, key: str, text: Iterable[str]) -> list[Row]:
    table = csv.DictReader(text, strict=True)
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
            sys.intern((line["label"] or "").strip()),
            sys.intern((line.get("split") or "").strip()),
        )
        where = f"{path}:{table.line_num}"
        if not row.key or not row.label:
            raise UserError(f"{where}: {key} or label is empty; fill it in")
        check_label(row.label, where)
        if row.split not in ("", "train", "test"):
            raise UserError(
                f"{where}: split {row.split!r:.99} is neither train nor test; use one of these, or "
                "leave the field empty for a random split"
            )
        if row.key in found:
            raise UserError(f"{where}: {row.key!r:.99} is listed twice; keep one line")
        if len(found) == MAX_ROWS:
            raise UserError(f"{where}: more than {MAX_ROWS:,} videos; build several datasets")
        found[row.key] = row
    if not found:
        raise UserError(f"{path}: lists no videos; add a line for each video")
    return list(found.values())


def check_label(label: str, where: str) -> None:
    """Checks the name of a class: TFDS stores one per line, and commands print them.

    Raises:
      UserError: it has a line break or another control character, or more than 1,000 characters. `where`
        begins the message.
    """
    if len(label) > 1000 or printable(label) != label:
        raise UserError(
            f"{where}: the label {label!r:.99} has control characters or more than 1,000 characters; "
            "rename the class"
        )


def read_list(path: pathlib.Path, limit: int = LIST_LIMIT) -> str:
    """The text of a list of at most `limit` bytes.

    Raises:
      UserError: it cannot be read, is larger, not a regular file, or not UTF-8.
    """
    try:
        return read_text(path, "utf-8-sig", limit)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}; save it as UTF-8") from error


def given(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The path of a list in a folder, or None if the folder has none of this name.

    Raises:
      UserError: it has, but not as a regular file.
    """
    path = folder / name
    if path.is_file():
        return path
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: not a regular file, or a broken link; write the list again")
    return None


def digest(folder: str | None) -> str:
    """Returns the SHA-256 of the lists in a folder, which tells a later build whether they changed."""
    found = hashlib.sha256()
    for name in LISTS if folder else ():
        if path := given(pathlib.Path(folder or ""), name):
            try:
                data = read_bytes(path, MAX_BYTES)
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror}); write it again"
                ) from error
            found.update(f"{name}:{len(data)}:".encode() + data)
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

    Names are compared in their normal form (`action_names.normal`), so that no class is seen under one
    spelling and unseen under another.

    Raises:
      UserError: a file cannot be read, a split names a class that has no video, lacks seen or unseen
        classes, or has a class twice or in both; or there are fewer than 4 classes and neither file.
    """
    splits: dict[str, Any]
    if path := given(folder, "splits.json"):
        splits = _read_splits(path)
    elif path := given(folder, "unseen.txt"):
        unseen = [line.strip() for line in read_list(path).splitlines() if line.strip()]
        seen = [name for name in classes if name not in set(unseen)]
        splits = {"1": {"seen": seen, "unseen": unseen}}
    elif len(classes) < 4:
        raise UserError(
            f"{folder}: {len(classes)} classes are too few for random class splits; list the unseen "
            "classes in unseen.txt, one per line"
        )
    else:
        splits = common.halves(dataset, classes, TRIALS)
    for name, split in splits.items():
        where = f"{path or folder}: split {name:.99}"
        for who, named in split.items():
            _check_classes(named, classes, f"{where}: {who}")
        _check_disjoint(split, where)
        if len(split["unseen"]) == 1:
            print(
                printable(
                    f"{where}: with one unseen class, {split['unseen'][0]!r}, its zero-shot accuracy is "
                    "always 100 %; only the generalised metrics say something"
                ),
                file=sys.stderr,
            )
    return splits


def _read_splits(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
    try:
        splits = {
            str(name): {who: [str(c) for c in named] for who, named in split.items()}
            for name, split in parse_json(read_list(path)).items()
        }
        if not splits or any(not {"seen", "unseen"} <= split.keys() for split in splits.values()):
            raise ValueError("seen or unseen is missing")
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f'{path}: {error}; write {{"1": {{"seen": [class, ...], "unseen": [class, ...]}}}}'
        ) from error
    return splits


def _check_classes(named: Iterable[str], classes: Sequence[str], where: str) -> None:
    """Raises a `UserError` that begins with `where` if a class has no video or is listed twice."""
    counts = collections.Counter(named)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{where} class {repeated[0]!r:.99} is listed twice; keep one")
    if unknown := sorted(counts.keys() - set(classes)):
        folded = {c.casefold(): c for c in classes}
        near = difflib.get_close_matches(unknown[0].casefold()[:1000], folded, 1)
        hint = f"did you mean {folded[near[0]]!r}? " if near else ""
        raise UserError(
            f"{where} class {unknown[0]!r:.99} has no video; {hint}the classes are "
            f"{', '.join(list(classes)[:8])}{' ...' * (len(classes) > 8)}"
        )


def _check_disjoint(split: Mapping[str, Sequence[str]], where: str) -> None:
    """Raises a `UserError` that begins with `where` if a class is both seen and unseen, or none is."""
    if not split["seen"] or not split["unseen"]:
        raise UserError(f"{where}: seen or unseen is empty; give each at least one class")
    seen = {action_names.normal(name) or name: name for name in split["seen"]}
    for name in split["unseen"]:
        same = seen.get(action_names.normal(name) or name)
        if same == name:
            raise UserError(f"{where}: class {name!r} is both seen and unseen; list it once")
        if same is not None:
            raise UserError(
                f"{where}: {same!r} is seen and {name!r} is unseen, but they name the same action; put "
                "both on one side, or their videos into one class"
            )
