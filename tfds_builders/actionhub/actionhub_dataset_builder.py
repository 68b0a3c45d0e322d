"""actionhub: descriptions of actions, one description per example; see README.md."""

import collections
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

# `tfds build FOLDER` puts only tfds_builders/ on sys.path; these imports need the repository root.
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from coco_jax.data import action_names, starter
from coco_jax.errors import UserError
from coco_jax.printing import printable
from tfds_builders.actionhub import benchmarks, captions, published, readers
from tfds_builders.actionhub.cleaning import Report, chosen, clean
from tfds_builders.common.builder import annotations, manual_dir

# TFDS shuffles up to 1 GiB of examples in memory before it writes them to disk; less is enough.
SHUFFLE_BYTES = 128 << 20
BENCHMARKS = ("kinetics_zsar", "ucf101_zsar", "hmdb51_zsar")
Rows = Iterable[tuple[int, readers.Row]]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builds a dataset of texts that describe what actions look like.

    Only the configs of `published.RECIPES` download a file, unless the user has placed it.

    Attributes:
      cleaning: cleaning steps for rows that are read from files, as in `cleaning.chosen`. Set it
        before building.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "Action, description, source and video_id.",
        "1.1.0": "Kind: caption or definition.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(
            name="motion", description="The descriptions of the benchmark motion_zsar."
        ),
        tfds.core.BuilderConfig(
            name="starter", description="The corpus of the package: 1,211 actions."
        ),
        tfds.core.BuilderConfig(name="manual", description="The corpus files in manual_dir."),
        *(
            tfds.core.BuilderConfig(
                name=name,
                description=f"The rows of the corpus files in manual_dir that describe a class of "
                f"{name}, with the class name of that dataset.",
            )
            for name in BENCHMARKS
        ),
        tfds.core.BuilderConfig(
            name="captions",
            description="Public video captions, with the classes of annotation files in manual_dir.",
        ),
        *(
            tfds.core.BuilderConfig(name=name, description=recipe.about)
            for name, recipe in published.RECIPES.items()
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "motion"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put *.json, *.jsonl, *.csv, *.tsv or ACTION.txt files (each may be gzipped) there; "
        "tfds_builders/actionhub/README.md describes their formats."
    )

    cleaning = "all"

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in readers.Row._fields}
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),  # the counts are added while the rows are read
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        tally = readers.Tally()
        self._lines: list[str] = []
        self.info.metadata.update(tally.metadata)
        return {"train": self._generate_examples(self._rows(dl_manager, tally), tally)}

    def _download_and_prepare(self, *args: Any, **options: Any) -> None:
        super()._download_and_prepare(*args, **options)
        for line in self._lines:
            print(printable(line), file=sys.stderr)

    def _generate_examples(self, rows: Rows, tally: readers.Tally):
        before, shuffle.MAX_MEM_BUFFER_SIZE = shuffle.MAX_MEM_BUFFER_SIZE, SHUFFLE_BYTES
        try:
            for key, row in rows:
                tally.store(row)
                yield key, row._asdict()
        finally:
            shuffle.MAX_MEM_BUFFER_SIZE = before

    def _rows(self, dl_manager: tfds.download.DownloadManager, tally: readers.Tally) -> Rows:
        if self.builder_config.name == "motion":
            from tfds_builders.motion_zsar import language

            corpus = enumerate(readers.Row(**row) for row in language.corpus())
            return ((key, row) for key, row in corpus if tally.check(row))
        if self.builder_config.name == "starter":
            return ((key, row) for key, row in enumerate(_starter_rows()) if tally.check(row))
        report = Report(chosen(self.cleaning))
        if self.builder_config.name in published.RECIPES:
            return self._cleaned(self._published(dl_manager, tally), tally, report)
        folder = manual_dir(dl_manager, self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        if self.builder_config.name == "captions":
            excluded = {v: f"tested by {name}" for v, name in benchmarks.tested(self.data_dir_root)}
            return self._captioned(captions.Captions(folder, excluded), tally, report)
        renaming = None
        if self.builder_config.name in BENCHMARKS:
            renaming = _Renaming(
                *benchmarks.classes(self.data_dir_root, self.builder_config.name), tally.actions
            )
        return self._from_files(folder, tally, report, renaming)

    def _published(self, dl_manager: tfds.download.DownloadManager, tally: readers.Tally) -> Rows:
        """The rows of a published file; their source is the name of the config."""
        name = self.builder_config.name
        url = published.RECIPES[name].url
        try:
            folder = pathlib.Path(dl_manager.manual_dir)
        except AssertionError:  # TFDS found no --manual_dir: the file is downloaded
            folder = None
        path = annotations(self, dl_manager, folder, {"file": url})["file"]
        suffix = pathlib.PurePosixPath(url).suffix  # a downloaded file has another name
        rows = (row._replace(source=name) for row in readers.read_file(path, suffix))
        return ((key, row) for key, row in enumerate(rows) if tally.check(row))

    def _captioned(
        self, videos: captions.Captions, tally: readers.Tally, report: Report
    ) -> Iterator[tuple[int, readers.Row]]:
        yield from self._cleaned(videos.rows(tally), tally, report)
        self._write("captions.json", videos.report)
        self._lines.append(f"{self.info.full_name}: {videos.line()}")

    def _from_files(
        self,
        folder: pathlib.Path,
        tally: readers.Tally,
        report: Report,
        renaming: "_Renaming | None",
    ) -> Iterator[tuple[int, readers.Row]]:
        rows: Rows = readers.read(folder, tally)
        if renaming:
            rows = renaming.rows(rows, folder)
        yield from self._cleaned(rows, tally, report)
        if renaming:
            self._write("names.json", renaming.report())
            self._lines.append(f"{self.info.full_name}: {renaming.line()}")

    def _cleaned(
        self, rows: Rows, tally: readers.Tally, report: Report
    ) -> Iterator[tuple[int, readers.Row]]:
        yield from clean(rows, report, self._temporary_dir())
        if report.steps:
            self._lines += report.table().splitlines()
        for step, count in report.steps.items():
            if count["dropped"]:
                tally.skipped[step] += count["dropped"]
        self._write("cleaning.json", {"steps": report.steps})
        if not tally.actions:
            raise UserError(
                f"{self.info.full_name}: cleaning dropped every row ({dict(tally.skipped)}); "
                "correct the files in --manual_dir, or turn steps off, as with --cleaning=none"
            )

    def _temporary_dir(self) -> pathlib.Path | None:
        """The folder for large temporary files; None if the dataset is not on a local disk."""
        path = pathlib.Path(self.data_dir)
        return path if path.is_dir() else None

    def _write(self, name: str, report: Any) -> None:
        # During the build, data_path is a temporary folder, which TFDS renames at the end.
        (self.data_path / name).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _starter_rows() -> Iterator[readers.Row]:
    for action, texts in starter.load().items():
        yield readers.Row(action, texts.definition, "starter", "", "definition")
        for caption in texts.captions:
            yield readers.Row(action, caption, "starter", "", "caption")


class _Renaming:
    """Renames the actions of rows to the classes of a benchmark; leaves out and counts other rows."""

    def __init__(self, benchmark: str, classes: list[str], stored: collections.Counter[str]):
        self._benchmark, self._stored = benchmark, stored
        self._classes = action_names.Classes(classes)
        self._hits: dict[str, list[str]] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    def rows(self, rows: Rows, folder: pathlib.Path) -> Iterator[tuple[int, readers.Row]]:
        """Yields the rows whose action matches exactly one class.

        Raises:
          UserError: there are none. `folder` is named in the message.
        """
        for key, row in rows:
            if row.action not in self._hits:
                self._hits[row.action] = self._classes.hits(row.action)
            self._counts[row.action] += 1
            if len(hits := self._hits[row.action]) == 1:
                yield key, row._replace(action=hits[0])
        if not any(len(hits) == 1 for hits in self._hits.values()):
            examples = ", ".join(ascii(name) for name in sorted(self._hits)[:5])
            raise UserError(
                f"{folder}: none of the {len(self._hits)} actions ({examples}) matches a class of "
                f"{self._benchmark}; add descriptions of its classes, or build actionhub/manual"
            )

    def report(self) -> dict[str, Any]:
        """The content of names.json; rows are counted before cleaning."""
        matched: dict[str, dict[str, int]] = {}
        for action, count in sorted(self._counts.items()):
            if len(hits := self._hits[action]) == 1:
                matched.setdefault(hits[0], {})[action] = count
        counts = self._counts.most_common()
        return {
            "benchmark": self._benchmark,
            "matched": matched,
            "unmatched_actions": {a: count for a, count in counts if not self._hits[a]},
            "ambiguous": {
                a: {"rows": count, "classes": self._hits[a]}
                for a, count in counts
                if len(self._hits[a]) > 1
            },
            "classes_without_description": [
                name for name in self._classes.classes if not self._stored[name]
            ],
        }

    def line(self) -> str:
        """A summary of the report in one line."""
        report = self.report()
        matched = sum(map(len, report["matched"].values()))
        rows = sum(sum(group.values()) for group in report["matched"].values())
        return (
            f"{matched:,} of {len(self._counts):,} actions match a class of {self._benchmark} "
            f"({rows:,} of {self._counts.total():,} rows), {len(report['ambiguous']):,} match several; "
            f"{len(report['classes_without_description']):,} of {len(self._classes.classes):,} classes "
            "have no description (names.json)"
        )
