"""Joins public video captions to action classes by the YouTube ids in annotation files.

The type of a file is detected from its content, not its name; README.md describes the formats.
Captions of videos that a benchmark evaluates on are left out and counted.
"""

import collections
import functools
import itertools
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from coco_jax.data import action_names
from coco_jax.errors import UserError
from tfds_builders.actionhub import streaming
from tfds_builders.actionhub.readers import Row, Tally

EXCLUDED = "excluded_ids.txt"
IDS = ("youtube_id", "video_id", "videoid", "vid", "id")
TEXTS = ("caption", "description", "text", "sentence")
LABELS = ("label", "class", "action")
# Videos of any other split (val, validation, test, holdout, ...) are for evaluation.
TRAINING = ("train", "training")
NO_CLASS = "no class is known of its video"  # a key of captions.json
PICKLES = (".pt", ".pth", ".pkl", ".pickle")

# Ids are ID_START_END in VATEX (eric-xw.github.io/vatex-website/download.html) and v_ID in ActivityNet
# Captions (cs.stanford.edu/people/ranjaykrishna/densevid). A YouTube id has 11 characters.
_CLIP = re.compile(r"(?:v_)?(?P<id>[\w-]{11})(?:_\d+_\d+)?(?:\.\w{3,4})?")


class Annotations:
    """The classes of videos, and the videos that must not be used.

    Attributes:
      labels: the classes of each video.
      excluded: the reason why a video must not be used, by video.
    """

    def __init__(self, excluded: Mapping[str, str] | None = None):
        """`excluded` maps videos that must not be used to the reason."""
        self.labels: dict[str, list[str]] = {}
        self.excluded = {youtube_id(video): reason for video, reason in (excluded or {}).items()}

    def add(self, video: str, label: str, split: str) -> None:
        """Adds one annotation: the class of a video and the split that it is in."""
        split = split.strip().casefold()
        if split not in TRAINING:
            self.excluded.setdefault(video, f"annotated as {split or 'of no split'}")
        labels = self.labels.setdefault(video, [])
        # Kinetics-400 and 600 may both annotate a video and spell its class differently.
        if label and action_names.normal(label) not in map(action_names.normal, labels):
            labels.append(label)


class _Form(NamedTuple):
    """The type of a file ("captions", "annotations" or "excluded") and the function that reads it."""

    kind: str
    read: Callable[[streaming.Source], Iterator[Any]]


def youtube_id(name: str) -> str:
    """Extracts the id from "v_ID", "ID_000010_000020" or "CLASS/ID.mp4"; keeps other names."""
    name = name.strip().replace("\\", "/").rpartition("/")[2]
    found = _CLIP.fullmatch(name)
    return found["id"] if found else name


class Captions:
    """The captions in the files of a folder.

    Attributes:
      report: the content of captions.json; the counts are updated while captions are read.
    """

    def __init__(self, folder: pathlib.Path, excluded: Mapping[str, str] | None = None):
        """Reads the annotations and the excluded ids, and detects the files of captions.

        Args:
          folder: folder of captions, annotations and optionally excluded_ids.txt.
          excluded: videos that must not be used, with the reason.

        Raises:
          UserError: a file is of another type, or there are no captions or no annotations.
        """
        self._folder = folder
        self._files = {path: _form(path) for path in _files(folder)}
        for kind, example in (("captions", "VATEX's JSON"), ("annotations", "Kinetics' train.csv")):
            if not any(form.kind == kind for form in self._files.values()):
                _check_pickles(folder)
                raise UserError(
                    f"{folder}: no file of {kind} found; put one there, such as {example}, or give "
                    "another directory with --manual_dir"
                )
        self._annotations = Annotations(excluded)
        self._left_out: collections.Counter[str] = collections.Counter()
        self._videos: dict[str, set[str]] = {}
        self.report: dict[str, Any] = {
            "files": {path.name: form.kind for path, form in self._files.items()},
            "captions": 0,
            "used": 0,
            "left_out": self._left_out,
            "videos_left_out": {},
        }
        for path, form in self._files.items():
            if form.kind == "captions":
                continue
            with streaming.opened(path) as source:
                for item in form.read(source):
                    if form.kind == "annotations":
                        self._annotations.add(*item)
                    else:
                        self._annotations.excluded[item] = EXCLUDED

    def rows(self, tally: Tally) -> Iterator[tuple[int, Row]]:
        """Yields `(key, row)` for each caption and each class of its video; keys are unique.

        Args:
          tally: counts the rows.

        Raises:
          UserError: no caption can be used, or a file cannot be read.
        """
        used = 0
        for index, (path, form) in enumerate(self._files.items()):
            if form.kind != "captions":
                continue
            keys = itertools.count(index << 40)
            with streaming.opened(path) as source:
                for video, caption in form.read(source):
                    self.report["captions"] += 1
                    labels = self._annotations.labels.get(video, [])
                    reason = self._annotations.excluded.get(video, "" if labels else NO_CLASS)
                    if reason:
                        self._leave_out(reason, video)
                        continue
                    used += 1
                    self.report["used"] = used
                    for label in labels:
                        row = Row(label, caption, path.name, video)
                        if tally.check(row):
                            yield next(keys), row
        if not tally.whole:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self._left_out.items())
            raise UserError(
                f"{self._folder}: none of the {self.report['captions']} captions can be used (left out: "
                f"{reasons or 'none'}); add annotations that list the videos of the captions in split "
                "train"
            )

    def line(self) -> str:
        """A summary of the report in one line."""
        reasons = ", ".join(
            f"{count:,} ({len(self._videos[reason]):,} videos) {reason}"
            for reason, count in self._left_out.most_common()
        )
        return (
            f"{self.report['used']:,} of {self.report['captions']:,} captions used; left out: "
            f"{reasons or 'none'} (captions.json)"
        )

    def _leave_out(self, reason: str, video: str) -> None:
        self._left_out[reason] += 1
        videos = self._videos.setdefault(reason, set())
        videos.add(video)
        self.report["videos_left_out"][reason] = len(videos)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    suffixes = (".json", ".csv", ".tsv", ".txt")
    found = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(
        p for p in found if streaming.suffix(p) in suffixes and not p.name.startswith(".")
    )


def _check_pickles(folder: pathlib.Path) -> None:
    """Raises a `UserError` that says how to convert a pickle, if the folder has one.

    The captions of Open-VCLIP are one: {video: caption}, saved with PyTorch.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in files:
        if path.suffix.lower() in PICKLES:
            code = (
                f"import json, torch; json.dump(torch.load({path.name!r}, weights_only=True), "
                f"open({path.stem + '.json'!r}, 'w'))"
            )
            raise UserError(
                f"{path}: a pickle, which could run code when it is read; convert it to JSON in an "
                f"environment with PyTorch: python -c {shlex.quote(code)}"
            )


def _form(path: pathlib.Path) -> _Form:
    """Detects the type of a file.

    Raises:
      UserError: the type is unknown.
    """
    suffix = streaming.suffix(path)
    with streaming.opened(path) as source:
        if suffix == ".json":
            return _json_form(source)
        if suffix in (".csv", ".tsv"):
            dialect = "excel" if suffix == ".csv" else "excel-tab"
            return _table_form(source, dialect, next(streaming.table(source, dialect), []))
        if path.name.lower().removesuffix(".gz") == EXCLUDED:
            return _Form("excluded", _excluded)
        source.fail(
            f"the only text file allowed here is {EXCLUDED}, with one id per line; remove this file"
        )


def _json_form(source: streaming.Source) -> _Form:
    """Detects the type of a JSON file from its first element."""
    document = streaming.Json(source)
    top = document.peek()
    if top == "[":
        first = next(document.elements(), None)
        if isinstance(first, dict) and {"videoID", "enCap"} <= set(first):
            return _Form("captions", _vatex)
    elif top == "{":
        for name in document.names():
            if name in ("version", "taxonomy"):  # of activity_net.v1-3.json
                document.value()
                continue
            if name == "database" and document.peek() == "{":
                return _Form("annotations", _activitynet)
            value = document.value()
            if isinstance(value, dict) and "sentences" in value:
                return _Form("captions", _activitynet_captions)
            if isinstance(value, str) or _are_texts(value):
                return _Form("captions", _by_video)
            break
    source.fail(
        "neither captions (VATEX: list of {videoID, enCap}; ActivityNet Captions: {v_ID: "
        "{sentences}}; {ID: caption or [caption, ...]}) nor annotations (ActivityNet: "
        "{database}); remove this file"
    )


def _table_form(source: streaming.Source, dialect: str, header: list[str]) -> _Form:
    """Detects the type of a table from its columns."""
    columns = {name.strip().lower(): i for i, name in reversed(list(enumerate(header)))}
    ids, texts, labels = (
        next((columns[name] for name in wanted if name in columns), None)
        for wanted in (IDS, TEXTS, LABELS)
    )
    split = columns.get("split", columns.get("subset"))
    shown = ", ".join(map(streaming.show, header[:8])) or "none"
    if ids is not None and texts is not None and labels is None and split is None:
        return _Form("captions", functools.partial(_table, dialect=dialect, columns=(ids, texts)))
    if ids is not None and texts is None and split is not None:
        wanted = (ids, labels, split)
        return _Form("annotations", functools.partial(_table, dialect=dialect, columns=wanted))
    if ids is not None and texts is None and labels is not None:
        source.fail(
            f"no column split besides {shown}, so evaluation videos cannot be left out; add it, with "
            "train, val or test in each row"
        )
    source.fail(
        f"neither captions (columns id, caption, and no label or split) nor annotations (columns label, "
        f"youtube_id, split); found {shown}; rename the columns or remove this file"
    )


def _table(
    source: streaming.Source, dialect: str, columns: tuple[int | None, ...]
) -> Iterator[tuple[str, ...]]:
    for values in itertools.islice(streaming.table(source, dialect), 1, None):
        video, *others = ("" if column is None else values[column] for column in columns)
        yield (youtube_id(video), *(other.strip() for other in others))


def _vatex(source: streaming.Source) -> Iterator[tuple[str, str]]:
    for element in streaming.Json(source).elements():
        known = isinstance(element, dict) and isinstance(element.get("videoID"), str)
        video = youtube_id(element["videoID"]) if known else ""
        for caption in _texts(source, element.get("enCap") if known else None, "enCap"):
            yield video, caption


def _activitynet_captions(source: streaming.Source) -> Iterator[tuple[str, str]]:
    document = streaming.Json(source)
    for name in document.names():
        value = document.value()
        sentences = value.get("sentences") if isinstance(value, dict) else None
        for caption in _texts(source, sentences, "sentences"):
            yield youtube_id(name), caption


def _by_video(source: streaming.Source) -> Iterator[tuple[str, str]]:
    document = streaming.Json(source)
    for name in document.names():
        value = document.value()
        for caption in (
            [value] if isinstance(value, str) else _texts(source, value, streaming.show(name))
        ):
            yield youtube_id(name), caption.strip()


def _activitynet(source: streaming.Source) -> Iterator[tuple[str, str, str]]:
    document = streaming.Json(source)
    for section in document.names():
        if section != "database":
            document.value()
            continue
        for name in document.names():
            value = document.value()
            try:
                split = value["subset"]
                labels = [entry["label"].strip() for entry in value["annotations"]]
                split.strip()
            except (KeyError, TypeError, AttributeError):
                source.fail(
                    f"video {streaming.show(name)} has no subset or no list of annotations with a "
                    "label; download the file again"
                )
            for label in labels or [""]:
                yield youtube_id(name), label, split


def _excluded(source: streaming.Source) -> Iterator[str]:
    return (youtube_id(line) for line in source.lines() if line.strip())


def _texts(source: streaming.Source, values: Any, name: str) -> Iterable[str]:
    if not _are_texts(values):
        source.fail(f"a video has no list of strings called {name}; download the file again")
    return (value.strip() for value in values)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
