"""Base class and helpers of the builders of video datasets.

A builder lists its sources (folders and archives) and maps the name of each member to an `Entry`.
This module reads the members, decodes each video to check it, stores the ones that decode, and
writes `report.json` next to the data with the broken videos and the files that are not videos.
"""

import dataclasses
import fnmatch
import functools
import glob
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
from coco_jax.printing import printable
from tfds_builders.common import archives

VIDEO_SUFFIXES = videos.SUFFIXES
MIN_BROKEN = 3  # broken videos that a split may always have, however small it is
MAX_SKIPPED = 20  # names of skipped files in report.json and in the printed summary
JPEG_QUALITY = 92


@dataclasses.dataclass(frozen=True)
class Entry:
    """One example of the dataset, as described by the name of its file.

    Attributes:
      key: unique key of the example within its split.
      video_id: id of the video.
      label: class name.
      extra: values of the builder's `extra_features`.
    """

    key: str
    video_id: str
    label: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Maps the name of a file to its entry, or to None if the file is not part of the dataset.
Describe = Callable[[str], Entry | None]


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a video is stored: as its original bytes or as JPEG frames.

    Attributes:
      kind: "video" for the original bytes, "jpeg" for JPEG frames.
      side: short side of JPEG frames, in pixels.
      fps: JPEG frames per second.
    """

    kind: str = "video"
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
        """Checks a video and converts it to its stored form.

        Args:
          data: the bytes of the video file.
          name: name of the file, for error messages.

        Returns:
          The values of `features`.

        Raises:
          VideoError: the video cannot be decoded. With kind "video", only the frames at its start,
            middle and end are decoded.
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
    """Configuration of a video dataset.

    Attributes:
      protocol: evaluation protocol, "intra" or "cross"; empty for datasets with only one.
      storage: "video" for the original bytes, "jpeg" for JPEG frames.
    """

    protocol: str = ""
    storage: str = "video"


def configs(**protocols: str) -> list[Config]:
    """Returns two configurations per protocol: `NAME` (original bytes) and `NAME_jpeg` (JPEG frames).

    Args:
      **protocols: description of each protocol, by its name.
    """
    return [
        Config(name=name + suffix, description=description, protocol=name, storage=storage)
        for name, description in protocols.items()
        for suffix, storage in (("", "video"), ("_jpeg", "jpeg"))
    ]


class VideoBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Base class of the video builders; coco_jax/data/dataset.py describes the datasets they write.

    Set the options before building; `tfds_builders.build` sets them from the flags of the same names.

    Attributes:
      max_broken: fraction of a split's videos that may be broken. `MIN_BROKEN` videos always may.
      jpeg_side: short side of JPEG frames, in pixels.
      jpeg_fps: JPEG frames per second.
      beam: whether to build with Apache Beam.
      extra_features: features of the subclass besides the video, its id and its label.
      list_files: glob patterns of files that the subclass reads itself, such as lists of videos.
        They are not videos, but are not reported as skipped.
    """

    max_broken = 0.01
    jpeg_side = Storage.side
    jpeg_fps = Storage.fps
    beam = False

    extra_features: Mapping[str, tfds.features.FeatureConnector] = {}
    list_files: Sequence[str] = ()

    @property
    def storage(self) -> Storage:
        """The storage that the configuration and the options ask for."""
        return Storage(self.builder_config.storage, self.jpeg_side, self.jpeg_fps)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    **self.storage.features,
                    "video_id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(),  # declare() sets the names
                    **self.extra_features,
                }
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),
        )

    def declare(self, classes: Sequence[str], class_splits: Mapping[str, Any], **more: Any) -> None:
        """Sets the class names and the class splits of the dataset.

        Args:
          classes: class names, in the order of their labels.
          class_splits: class names by split, `{"1": {"seen": [...], "unseen": [...]}, ...}`.
          **more: further entries of the dataset's metadata.
        """
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
        describe: Describe | None,
        expected: int | None = None,
        notes: Mapping[str, Any] | None = None,
        read: Callable[[Any], Iterator[tuple[str, dict[str, Any] | None, str | None]]]
        | None = None,
    ) -> Any:
        """Returns the examples of a TFDS split: a generator, or a Beam transform if `beam` is set.

        Args:
          split: name of the split, for the report.
          sources: folders and archives to read videos from.
          describe: maps the name of a file to its entry, or to None to leave the file out. None with
            `read`.
          expected: number of videos that the dataset's lists name; report.json counts the ones that
            are not found as missing. None if there are no lists.
          notes: further entries of the report; numbers are printed.
          read: reads sources that are neither folders nor archives: maps each to triples, as `_read`
            does.
        """
        parts = _parts(sources) if self.beam and read is None else list(sources)
        archive_names = [glob.escape(source.name) for source in sources if not source.is_dir()]
        if read is None:
            if describe is None:
                raise TypeError("examples() needs `describe` or `read`.")
            read = functools.partial(
                _read,
                describe=describe,
                storage=self.storage,
                not_skipped=(*self.list_files, *archive_names),
            )
        report = functools.partial(_report, self.data_path, split, expected, dict(notes or {}))
        if self.beam:
            from tfds_builders.common import beam as beam_transforms

            return beam_transforms.transform(parts, read, report)
        limit = None if expected is None else self._limit(expected)
        return self._in_order(parts, read, report, limit)

    def _limit(self, videos: int) -> float:
        """The number of broken videos that a split of `videos` videos may have."""
        return max(self.max_broken * videos, MIN_BROKEN)

    def _in_order(self, parts, read, report, limit: float | None) -> Iterator[tuple[str, dict]]:
        stored: set[str] = set()
        repeated, broken, skipped = 0, [], []
        for part in parts:
            for key, example, reason in read(part):
                if reason is None:
                    skipped.append(key)
                elif example is None:
                    broken.append((key, reason))
                    if limit is not None and len(broken) > limit:
                        report(len(stored), broken, repeated, skipped)
                        self._check_reports()
                elif key in stored:
                    repeated += 1
                else:
                    stored.add(key)
                    yield key, example
        report(len(stored), broken, repeated, skipped)
        if not stored:
            self._check_reports()  # its error says more than that of TFDS for an empty split

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        self._check_reports()

    def _check_reports(self) -> None:
        """Prints the reports of the splits and merges them into report.json.

        Raises:
          UserError: too many videos of a split are broken, or none was found.
        """
        splits = {}
        for path in sorted(self.data_path.glob("report-*.json")):
            splits[path.stem.removeprefix("report-")] = json.loads(path.read_text())
            path.unlink()
        if not splits:
            return
        (self.data_path / "report.json").write_text(json.dumps(splits, indent=1) + "\n")
        for split, counts in splits.items():
            broken, skipped = counts["broken"], counts["skipped"]
            numbers = [f"{n} {name}" for name, n in counts.items() if isinstance(n, int) and n]
            numbers += [f"{len(broken)} broken", f"{skipped['count']} other files skipped"]
            print(f"{self.info.full_name} {split}: {', '.join(numbers)}", file=sys.stderr)
            for video in broken[:10]:
                print(printable(f"  broken: {video['reason']}"), file=sys.stderr)
            for name in skipped["files"]:
                print(f"  skipped, not a supported file type: {name!r}", file=sys.stderr)
            if (unnamed := skipped["count"] - len(skipped["files"])) > 0:
                print(
                    f"  skipped, not a supported file type: {unnamed} more files", file=sys.stderr
                )
            total = counts["expected"] or counts["stored"] + len(broken)
            if len(broken) > self._limit(total):
                raise UserError(
                    f"{self.info.full_name}: {len(broken)} of {total} videos of split {split!r} are "
                    f"broken, more than {self.max_broken:.1%} and more than {MIN_BROKEN} (first: "
                    f"{broken[0]['reason']}); replace these files or set a higher --max_broken"
                )
            if not counts["stored"]:
                raise UserError(
                    f"{self.info.full_name}: no video of split {split!r} was found in the folders and "
                    f"archives; arrange the files as in tfds_builders/{self.name}/README.md"
                )


def _read(
    part: pathlib.Path | tuple[str, pathlib.Path],
    describe: Describe,
    storage: Storage,
    not_skipped: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any] | None, str | None]]:
    """Yields a triple for each file of a folder or archive, except videos outside the dataset.

    The triple is `(key, example, "")` for a video, `(name, None, reason)` for a broken video, and
    `(name, None, None)` for a file that is not a video and whose name matches no pattern of
    `not_skipped`.
    """
    for name, read in _members(part):
        path = pathlib.PurePosixPath(name)
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in not_skipped):
                yield name, None, None
            continue
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
    for member in archives.members(part):
        yield member.name, member.read


def _parts(sources: Iterable[pathlib.Path]) -> list[Any]:
    """Splits sources into units of work for Beam: whole archives and single files of folders."""
    parts: list[Any] = []
    for source in sources:
        if not source.is_dir():
            parts.append(source)
            continue
        parts += [(path.relative_to(source).as_posix(), path) for path in archives.files(source)]
    return parts


def _report(
    folder,
    split: str,
    expected: int | None,
    notes: Mapping[str, Any],
    stored: int,
    broken: Iterable[tuple[str, str]],
    repeated: int = 0,
    skipped: Iterable[str] = (),
) -> None:
    """Writes the report of one split; `VideoBuilder._check_reports` merges them."""
    broken = sorted(broken)
    counts = {
        "stored": stored,
        "expected": expected,
        "missing": None if expected is None else max(expected - stored - len(broken), 0),
        "repeated": repeated,
        **notes,
        "skipped": skipped_files(skipped),
        "broken": [{"video": name, "reason": reason} for name, reason in broken],
    }
    (pathlib.Path(folder) / f"report-{split}.json").write_text(json.dumps(counts))


def skipped_files(names: Iterable[str]) -> dict[str, Any]:
    """The entry of report.json on skipped files: their number and the first `MAX_SKIPPED` names."""
    names = sorted(names)
    return {"count": len(names), "files": names[:MAX_SKIPPED]}


def sources_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the sources of a folder: the archives directly in it, then the folder itself.

    A path that is not a folder is its own only source; a path that does not exist has none.
    """
    if not folder.is_dir():
        return [folder] if folder.exists() else []
    packed = [p for p in folder.iterdir() if p.name.lower().endswith(archives.SUFFIXES)]
    return [*sorted(packed), folder]


def manual_dir(dl_manager: tfds.download.DownloadManager, instructions: str) -> pathlib.Path:
    """Returns the folder of files that the user downloaded (`--manual_dir`).

    Args:
      dl_manager: the download manager of the build.
      instructions: what to put into the folder, for the error message.

    Raises:
      UserError: the folder is missing or empty.
    """
    try:
        return pathlib.Path(dl_manager.manual_dir)
    except (
        AssertionError
    ) as error:  # the message of TFDS has several lines: keep its first sentence
        place = " ".join(str(error).split(". ")[0].split())
        raise UserError(f"{place}; {' '.join(instructions.split())}") from None


def annotations(
    builder: tfds.core.DatasetBuilder,
    dl_manager: tfds.download.DownloadManager,
    folder: pathlib.Path | None,
    urls: Mapping[str, str],
) -> dict[str, pathlib.Path]:
    """Returns the paths of annotation files, and downloads the ones that the user did not provide.

    Args:
      builder: its `url_infos`, which TFDS reads from checksums.tsv, hold the expected checksums.
      dl_manager: downloads the files and checks them.
      folder: folder of files that the user downloaded; files are looked for in it and in its
        subfolder annotations/. None if there is no such folder.
      urls: URL of each file, by any key; the result has the same keys.

    Raises:
      UserError: checksums.tsv is missing or has no line for a URL, a file has another checksum than in
        checksums.tsv, or a download fails.
    """
    if builder.url_infos is None:
        raise UserError(
            f"tfds_builders/{builder.name}/checksums.tsv: missing, so the files of {builder.name} "
            "cannot be verified; restore it from the repository"
        )
    # TFDS accepts a download of any content if its URL has no checksum.
    if unknown := [url for url in urls.values() if url not in builder.url_infos]:
        raise UserError(
            f"tfds_builders/{builder.name}/checksums.tsv: no line for {', '.join(unknown)}, so the "
            "file cannot be verified; restore the line from the repository"
        )
    found = {}
    for which, url in urls.items():
        name = url.rpartition("/")[2]
        for path in () if folder is None else (folder / "annotations" / name, folder / name):
            if not path.is_file():
                continue
            if _sha256(path) != builder.url_infos[url].checksum:
                raise UserError(
                    f"{path}: SHA-256 differs from that in tfds_builders/{builder.name}/"
                    f"checksums.tsv; replace it with {url}, or remove it to have it downloaded"
                )
            found[which] = path
    if missing := {which: url for which, url in urls.items() if which not in found}:
        try:
            downloaded = dl_manager.download(missing)
        except (OSError, tfds.download.DownloadError) as error:
            raise UserError(
                f"{', '.join(missing.values())}: download failed "
                f"({' '.join(str(error).split())[:80]}); download it yourself into "
                "--manual_dir"
            ) from error
        found |= {which: pathlib.Path(path) for which, path in downloaded.items()}
    return found


def decoded(data: bytes, where: str) -> str:
    """Decodes the text of a list; the error names the file.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); download the lists again") from error


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def halves(dataset: str, classes: Sequence[str], trials: int) -> dict[str, Any]:
    """Draws random class splits `{"1": {"seen": [...], "unseen": [...]}, ...}`.

    Half of the classes are seen, rounded up: the first half by the SHA-256 of `dataset/trial/class`.
    The splits thus depend on the arguments only, not on the version of a random generator.

    Args:
      dataset: name that is part of the hash, such as "ucf101".
      classes: all class names; each list of the result has their order.
      trials: number of splits, named "1" to str(trials).
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
    """Returns the class splits of UCF101 or HMDB51 under a protocol.

    With protocol "intra", these are the random splits of `halves`. With "cross", no class is seen:
    the splits "1", "2" and "3" have all classes as unseen and only the test videos of that official
    split; "half1", "half2", ... have the unseen classes of the random splits and all their videos.

    Args:
      dataset: name of the dataset for `halves`, "ucf101" or "hmdb51".
      protocol: "intra" or "cross".
      classes: all class names.
      trials: number of random splits.
    """
    found = halves(dataset, classes, trials)
    if protocol == "intra":
        return found
    official = {str(n): {"seen": [], "unseen": list(classes), "official": n} for n in (1, 2, 3)}
    return official | {f"half{n}": {"seen": [], "unseen": found[n]["unseen"]} for n in found}
