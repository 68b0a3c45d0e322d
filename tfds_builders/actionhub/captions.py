"""Public caption sets keyed by YouTube id, joined to action classes by annotation files.

What a file is shows in its content, not in its name; README.md lists the forms. Captions of a
video that anybody evaluates on are left out, and counted.
"""

import collections
import functools
import itertools
import pathlib
import re
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
# Any other split is one to evaluate on: val, validate, validation, test, testing, holdout, ...
TRAINING = ("train", "training")
NO_CLASS = "no class is known of its video"

# VATEX (eric-xw.github.io/vatex-website/download.html) writes ID_START_END, ActivityNet Captions
# (cs.stanford.edu/people/ranjaykrishna/densevid) v_ID; an id of YouTube has 11 characters.
_CLIP = re.compile(r"(?:v_)?(?P<id>[\w-]{11})(?:_\d+_\d+|\.\w{3,4})?")


class Annotations:
    """The classes of videos, and why some videos may not be used."""

    def __init__(self, excluded: Mapping[str, str] | None = None):
        """`excluded` gives videos that are known not to be usable, with the reason."""
        self.labels: dict[str, list[str]] = {}
        self.excluded = {youtube_id(video): reason for video, reason in (excluded or {}).items()}

    def add(self, video: str, label: str, split: str) -> None:
        """One line of an annotation file."""
        split = split.strip().casefold()
        if split not in TRAINING:
            self.excluded.setdefault(video, f"annotated as {split or 'of no split'}")
        labels = self.labels.setdefault(video, [])
        # Kinetics-400 and 600 may both annotate a video, and spell its class differently.
        if label and action_names.normal(label) not in map(action_names.normal, labels):
            labels.append(label)


class _Form(NamedTuple):
    """What a file is, and how its items are read: captions, annotations or ids."""

    kind: str
    read: Callable[[streaming.Source], Iterator[Any]]


def youtube_id(name: str) -> str:
    """The id in "v_ID", "ID_000010_000020" or "ID.mp4"; other names are left as they are."""
    name = name.strip()
    found = _CLIP.fullmatch(name)
    return found["id"] if found else name


class Captions:
    """The captions of a folder's files; `report` counts what became of them as they are read."""

    def __init__(self, folder: pathlib.Path, excluded: Mapping[str, str] | None = None):
        """Reads all but the captions.

        Args:
          folder: holds captions, annotations and perhaps excluded_ids.txt.
          excluded: videos not to be used, with the reason.

        Raises:
          UserError: a file is neither, or one of the two is missing.
        """
        self._folder = folder
        self._files = {path: _form(path) for path in _files(folder)}
        for kind, example in (("captions", "VATEX's JSON"), ("annotations", "Kinetics' train.csv")):
            if not any(form.kind == kind for form in self._files.values()):
                raise UserError(
                    f"{folder}: no file of {kind} found; place such as {example} there, or name "
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
        """Yields (key, row), a row for each class of a caption's video; a key is unique.

        Raises:
          UserError: nothing is left, or a file cannot be read.
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
                f"{self._folder}: none of its {self.report['captions']} captions can be used "
                f"(left out: {reasons or 'none'}); see that the annotation files name the captions' "
                "videos, in a training split"
            )

    def line(self) -> str:
        """The report in one line."""
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


def _form(path: pathlib.Path) -> _Form:
    """What a file is.

    Raises:
      UserError: nothing that belongs here.
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
        source.fail(f"a text file here can only be {EXCLUDED}, one id a line; move it elsewhere")


def _json_form(source: streaming.Source) -> _Form:
    """Told by the first element."""
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
            break
    source.fail(
        "neither captions (VATEX's list of {videoID, enCap}, ActivityNet Captions' {v_ID: "
        "{sentences}}) nor annotations (ActivityNet's {database}); remove it"
    )


def _table_form(source: streaming.Source, dialect: str, header: list[str]) -> _Form:
    """Told by its columns."""
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
            f"no column split beside {shown}; without it, videos to evaluate on cannot be told "
            "from others: add it (train, val or test)"
        )
    source.fail(
        f"neither captions (columns id and caption, nothing else of ours) nor annotations (label, "
        f"youtube_id, split); found {shown}; rename its columns, or remove it"
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
                labels = [one["label"].strip() for one in value["annotations"]]
                split.strip()
            except (KeyError, TypeError, AttributeError):
                source.fail(
                    f"video {streaming.show(name)} has no subset and list of annotations with a label; "
                    "fetch the file again"
                )
            for label in labels or [""]:
                yield youtube_id(name), label, split


def _excluded(source: streaming.Source) -> Iterator[str]:
    return (youtube_id(line) for line in source.lines() if line.strip())


def _texts(source: streaming.Source, values: Any, name: str) -> Iterable[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        source.fail(f"a video has no list of texts {name}; fetch the file again")
    return (value.strip() for value in values)
