"""What the builders of video datasets share: how a video is checked, stored and reported on.

A builder names its sources (folders, archives) and describes their members; this module reads
them, stores whole videos, and lists broken ones in `report.json` beside the data.
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from coco_jax.data import video as videos
from coco_jax.errors import UserError
from tfds_builders.common import archives

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".ogg", ".flv", ".wmv",
     ".asf", ".3gp", ".ts", ".m2ts", ".mts", ".vob", ".mxf", ".gif", ".apng", ".ivf", ".y4m", ".rm",
     ".f4v", ".divx", ".dv")
)  # fmt: skip
MIN_BROKEN = 3  # videos of a split that may be broken, however few there are
JPEG_QUALITY = 92


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a member of a source is: a unique key, the video it is of, its class, further features."""

    key: str
    video_id: str
    label: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Describe = Callable[[str], Entry | None]  # of a member's name; None: not part of the dataset


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a video is kept: its own bytes, or JPEG frames of a short side (px) and a rate (1/s)."""

    kind: str = "video"  # video | jpeg
    side: int = 288
    fps: float = 8.0

    @property
    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """The TFDS features of a stored video."""
        if self.kind == "video":
            return {"video": tfds.features.Tensor(shape=(), dtype=np.object_)}
        return {
            "frames": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_)),
            "fps": tfds.features.Scalar(np.float32),
        }

    def store(self, data: bytes, name: str) -> dict[str, Any]:
        """The stored form of a video.

        Raises:
          VideoError: it cannot be decoded at its start, middle and end.
        """
        if self.kind == "video":
            videos.decode(
                data,
                lambda info: np.array([0, info.duration / 2, info.duration]),
                short_side=32,
                name=name,
            )
            return {"video": data}
        frames_THWC = videos.decode(
            data,
            lambda info: np.arange(0.5, max(info.duration * self.fps, 1)) / self.fps,
            short_side=self.side,
            name=name,
        )
        return {"frames": [_jpeg(frame_HWC) for frame_HWC in frames_THWC], "fps": self.fps}


def _jpeg(frame_HWC: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame_HWC).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """A configuration of a video dataset: its protocol, and how videos are stored."""

    protocol: str = ""
    storage: str = "video"  # video | jpeg


def configs(**protocols: str) -> list[Config]:
    """For each protocol two configurations, with original bytes and (`_jpeg`) as JPEG frames."""
    return [
        Config(name=name + suffix, description=description, protocol=name, storage=storage)
        for name, description in protocols.items()
        for suffix, storage in (("", "video"), ("_jpeg", "jpeg"))
    ]


class VideoBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """A dataset of the contract in coco_jax/data/dataset.py, with the storage of its config."""

    # Set before building, from the flags of `tfds_builders.build` with these names.
    max_broken = 0.01  # share of a split's videos that may be broken (MIN_BROKEN may in any case)
    jpeg_side = Storage.side
    jpeg_fps = Storage.fps
    beam = False  # build with Apache Beam

    extra_features: Mapping[str, tfds.features.FeatureConnector] = {}

    @property
    def storage(self) -> Storage:
        """How this build stores videos."""
        return Storage(self.builder_config.storage, self.jpeg_side, self.jpeg_fps)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    **self.storage.features,
                    "video_id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(),  # its names come from the lists, later
                    **self.extra_features,
                }
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),
        )

    def declare(self, classes: Sequence[str], class_splits: Mapping[str, Any], **more: Any) -> None:
        """Sets the classes and the class splits; `more` is stored in the metadata."""
        label = self.info.features["label"]
        if label.num_classes is None:
            label.names = list(classes)
        self.info.metadata["class_splits"] = dict(class_splits)
        if self.builder_config.storage == "jpeg":
            more["jpeg"] = {"side": self.jpeg_side, "fps": self.jpeg_fps}
        self.info.metadata.update(more)

    def examples(
        self,
        split: str,
        sources: Sequence[pathlib.Path],
        describe: Describe,
        expected: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Any:
        """The examples of a TFDS split: in order, or as a Beam transform if `beam` is set.

        Args:
          split: its name, for the report.
          sources: folders and archives.
          describe: gives the entry of a member's name.
          expected: number of videos in the lists; those not found are counted as missing.
          notes: more counts for the report.
        """
        parts = _parts(sources) if self.beam else list(sources)
        read = functools.partial(_read, describe=describe, storage=self.storage)
        report = functools.partial(_report, self.data_path, split, expected, dict(notes or {}))
        if self.beam:
            from tfds_builders.common import beam as on_beam

            return on_beam.transform(parts, read, report)
        limit = None if expected is None else self._limit(expected)
        return self._in_order(parts, read, report, limit)

    def _limit(self, videos: int) -> float:
        """How many of a split's videos may be broken."""
        return max(self.max_broken * videos, MIN_BROKEN)

    def _in_order(self, parts, read, report, limit: float | None) -> Iterator[tuple[str, dict]]:
        stored: set[str] = set()
        repeated, broken = 0, []
        for part in parts:
            for key, example, reason in read(part):
                if example is None:
                    broken.append((key, reason))
                    if limit is not None and len(broken) > limit:
                        report(len(stored), broken, repeated)
                        self._check_reports()
                elif key in stored:
                    repeated += 1
                else:
                    stored.add(key)
                    yield key, example
        report(len(stored), broken, repeated)
        if not stored:
            self._check_reports()  # TFDS would only say that there were no examples

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        self._check_reports()

    def _check_reports(self) -> None:
        """Writes report.json from the reports of the splits.

        Raises:
          UserError: too many videos are broken, or none was found.
        """
        splits = {}
        for path in sorted(self.data_path.glob("report-*.json")):
            splits[path.stem.removeprefix("report-")] = json.loads(path.read_text())
            path.unlink()
        if not splits:
            return
        (self.data_path / "report.json").write_text(json.dumps(splits, indent=1) + "\n")
        for split, got in splits.items():
            counts = ", ".join(f"{got[k]} {k}" for k in got if isinstance(got[k], int) and got[k])
            broken = got["broken"]
            print(f"{self.info.full_name} {split}: {counts}, {len(broken)} broken", file=sys.stderr)
            for one in broken[:10]:
                print(f"  broken: {one['reason']}", file=sys.stderr)
            of = got["expected"] or got["stored"] + len(broken)
            if len(broken) > self._limit(of):
                raise UserError(
                    f"{self.info.full_name}: {len(broken)} of {of} videos of {split!r} are broken, "
                    f"more than {self.max_broken:.1%} and more than {MIN_BROKEN} (first: "
                    f"{broken[0]['reason']}); repair them, or set a higher --max_broken"
                )
            if not got["stored"]:
                raise UserError(
                    f"{self.info.full_name}: no video of {split!r} was found in its folders and archives; "
                    "README.md of the builder shows the layouts"
                )


def _read(
    part: pathlib.Path | tuple[str, pathlib.Path], describe: Describe, storage: Storage
) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """`(key, example, "")` for each video of a part, or `(name, None, reason)` if it is broken."""
    for name, read in _members(part):
        entry = describe(name)
        if entry is None:
            continue
        try:
            stored = storage.store(read(), name)
        except videos.VideoError as error:
            yield name, None, str(error)
        else:
            yield (
                entry.key,
                {**stored, "video_id": entry.video_id, "label": entry.label, **entry.extra},
                "",
            )


def _members(part) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if isinstance(part, tuple):  # one file of a folder
        name, path = part
        yield name, path.read_bytes
        return
    for member in archives.members(part, suffixes=VIDEO_SUFFIXES):
        yield member.name, member.read


def _parts(sources: Iterable[pathlib.Path]) -> list[Any]:
    """Sources as units of work: each archive, and each file of a folder."""
    parts: list[Any] = []
    for source in sources:
        if not source.is_dir():
            parts.append(source)
            continue
        parts += [
            (path.relative_to(source).as_posix(), path)
            for path in archives.files(source)
            if path.suffix.lower() in VIDEO_SUFFIXES
        ]
    return parts


def _report(folder, split: str, expected, notes, stored: int, broken, repeated: int = 0) -> None:
    counts = {
        "stored": stored,
        "expected": expected,
        "missing": None if expected is None else max(expected - stored - len(broken), 0),
        "repeated": repeated,
        **notes,
        "broken": [{"video": name, "reason": reason} for name, reason in sorted(broken)],
    }
    (pathlib.Path(folder) / f"report-{split}.json").write_text(json.dumps(counts))


def sources_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """What to read videos from in a folder: the archives right in it, and the folder's own files."""
    if not folder.is_dir():
        return [folder] if folder.exists() else []
    found = [p for p in folder.iterdir() if p.name.lower().endswith(archives.SUFFIXES)]
    return [*sorted(found), folder]


def manual_dir(dl_manager: tfds.download.DownloadManager, instructions: str) -> pathlib.Path:
    """Where files placed by hand lie.

    Raises:
      UserError: it is missing or empty.
    """
    try:
        return pathlib.Path(dl_manager.manual_dir)
    except AssertionError as error:  # several lines of TFDS
        place = " ".join(str(error).split(". ")[0].split())
        raise UserError(f"{place}; {' '.join(instructions.split())}") from None


def annotations(
    builder: tfds.core.DatasetBuilder,
    dl_manager: tfds.download.DownloadManager,
    folder: pathlib.Path | None,
    urls: Mapping[str, str],
) -> dict[str, pathlib.Path]:
    """Annotation files: from `folder` (or its `annotations/`) where they are there, else downloaded.

    Raises:
      UserError: a file placed by hand is not the one whose checksum the builder knows.
    """
    found = {}
    for which, url in urls.items():
        name = url.rpartition("/")[2]
        for path in () if folder is None else (folder / "annotations" / name, folder / name):
            if not path.is_file():
                continue
            known = builder.url_infos.get(url)
            if known and hashlib.sha256(path.read_bytes()).hexdigest() != known.checksum:
                raise UserError(
                    f"{path}: not the file that the protocol is defined by (its SHA-256 differs from "
                    f"checksums.tsv); fetch {url}, or remove it to have it downloaded"
                )
            found[which] = path
    if missing := {which: url for which, url in urls.items() if which not in found}:
        try:
            got = dl_manager.download(missing)
        except (OSError, tfds.download.DownloadError) as error:
            raise UserError(
                f"{', '.join(missing.values())} cannot be downloaded "
                f"({' '.join(str(error).split())[:80]}); fetch it elsewhere and place it in --manual_dir"
            ) from error
        found |= {which: pathlib.Path(path) for which, path in got.items()}
    return found


def halves(dataset: str, classes: Sequence[str], trials: int) -> dict[str, Any]:
    """Random class splits `{"1": {"seen": [...], "unseen": [...]}, ...}`, the same ones for ever.

    Half of the classes are seen, of an odd number one more. They are ranked by SHA-256 of
    `dataset/trial/class`, so no random generator's version matters.
    """

    def rank(trial: int, name: str) -> str:
        return hashlib.sha256(f"{dataset}/{trial}/{name}".encode()).hexdigest()

    found, seen = {}, (len(classes) + 1) // 2
    for trial in range(1, trials + 1):
        chosen = set(sorted(classes, key=lambda name: rank(trial, name))[:seen])
        found[str(trial)] = {
            "seen": [name for name in classes if name in chosen],
            "unseen": [name for name in classes if name not in chosen],
        }
    return found


def protocol_splits(
    dataset: str, protocol: str, classes: Sequence[str], trials: int
) -> dict[str, Any]:
    """Class splits of UCF101 and HMDB51: `intra`, random halves; `cross`, nothing seen.

    Of `cross` the splits `1`, `2`, `3` have all classes and the videos of that official test list,
    `half1` and so on have the unseen classes of a random half, and all their videos.
    """
    found = halves(dataset, classes, trials)
    if protocol == "intra":
        return found
    official = {str(n): {"seen": [], "unseen": list(classes), "official": n} for n in (1, 2, 3)}
    return official | {f"half{n}": {"seen": [], "unseen": found[n]["unseen"]} for n in found}
