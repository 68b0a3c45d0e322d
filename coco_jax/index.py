"""Embeds an archive of videos once, and answers questions about it without opening a video again.

coco-jax index build FOLDER --output=INDEX
coco-jax index search INDEX "riding a horse" "juggling" --top=10
coco-jax index label INDEX --actions="riding a horse, juggling"

`build` embeds each window of 2.56 s of each video below FOLDER. Run it again to resume a build that was
stopped, or to bring the index up to date. `search` prints the windows that fit an action best; `label`
says what happens when in each video, as `coco-jax predict --timeline` does. See docs/index_search.md.

Exit codes: 0: done; 2: the command could not start; 3: some videos could not be read, and stderr gives
the reason for each.
"""

import csv
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags
from tqdm import tqdm

from coco_jax.command import report_unreadable, run_command
from coco_jax.errors import UserError
from coco_jax.printing import csv_cell, printable
from coco_jax.recognition import model_flags

if TYPE_CHECKING:  # JAX is imported when the flags have been read
    from coco_jax.recognition.index import Embedder, Found, Index

USAGE = (
    'say what to do: index build FOLDER --output=INDEX, index search INDEX "riding a horse", or '
    'index label INDEX --actions="riding a horse, juggling"'
)


def define_flags() -> None:
    """Defines the flags of the command."""
    model_flags.define_flags()
    flags.DEFINE_string("output", None, "build: the folder of the index.")
    flags.DEFINE_float(
        "stride", None, "build: seconds from one window to the next; by default 2.56, their length."
    )
    flags.DEFINE_string(
        "beam_pipeline_options",
        None,
        'build: run on many machines with Apache Beam and these options: "runner=DirectRunner".',
    )
    flags.DEFINE_integer("top", 10, "search: number of windows for each action.", lower_bound=1)
    flags.DEFINE_bool("faiss", False, "search: approximate search with FAISS, for large indexes.")
    flags.DEFINE_string("actions", None, 'label: candidate actions: "juggling, rope skipping".')
    flags.DEFINE_string("actions_file", None, "label: file of actions, one a line or CSV.")
    flags.DEFINE_string(
        "threshold",
        None,
        'label: adds "none of these" with this raw score; a number, or "default".',
    )
    flags.DEFINE_string("descriptions", None, "search, label: file of captions, as for predict.")
    flags.DEFINE_bool("json", False, "Print JSON instead of text.")
    flags.DEFINE_bool("csv", False, "Print CSV instead of text.")


def command(argv: list[str]) -> None:
    """Runs the action that the first word names."""
    values = flags.FLAGS
    words = argv[1:]
    if len(words) < 2 or words[0] not in ("build", "search", "label"):
        raise UserError(USAGE)
    if values.json and values.csv:
        raise UserError("--json and --csv exclude each other; give one of them")
    {"build": build, "search": search, "label": label}[words[0]](words[1:], values)


def build(words: Sequence[str], values: flags.FlagValues) -> None:
    """Embeds the videos of a folder."""
    from coco_jax.recognition import index
    from coco_jax.recognition.timeline import check_seconds

    if len(words) != 1 or not values.output:
        raise UserError("give a folder and an index: index build FOLDER --output=INDEX")
    stride = index.STRIDE if values.stride is None else values.stride
    check_seconds(stride=stride)
    files = index.find(words[0])
    load = model_flags.loader(values)
    runner: index.Runner = _with_progress
    if values.beam_pipeline_options is not None:
        from coco_jax.recognition.index_beam import BeamRunner

        runner = BeamRunner(values.beam_pipeline_options, load)
    done = index.build(files, pathlib.Path(values.output), load(), stride, runner)
    print(
        f"{printable(values.output)}: {done.windows:,} windows of "
        f"{done.videos - len(done.unreadable):,} videos, of which {done.embedded:,} were embedded now"
    )
    report_unreadable(done.unreadable, done.videos)


def _with_progress(embedder: "Embedder", files: Sequence["Found"]) -> Iterator[tuple]:
    """Embeds files in this process, with a progress bar on terminals."""
    from coco_jax.recognition.index import one_by_one

    results = one_by_one(embedder, files)
    is_terminal = sys.stderr.isatty()
    yield from tqdm(results, total=len(files), unit="video", leave=False, disable=not is_terminal)


def search(words: Sequence[str], values: flags.FlagValues) -> None:
    """Prints the windows that fit actions best."""
    from coco_jax.recognition.outputs import clock

    if len(words) < 2:
        raise UserError('give an index and actions: index search INDEX "riding a horse" "juggling"')
    opened = _open(words[0], values)
    candidates = opened.recognizer.embed_actions(list(words[1:]), _descriptions(values))
    if values.faiss:
        from coco_jax.recognition import index_faiss

        found = index_faiss.search(opened, candidates, values.top)
    else:
        found = opened.search(candidates, values.top)
    by_action = list(zip(candidates.names, found, strict=True))
    rows = [{"action": action, **hit._asdict()} for action, hits in by_action for hit in hits]
    if values.json:
        print(json.dumps(rows, indent=2))
    elif values.csv:
        table = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        table.writerow(("action", "video", "start", "end", "score"))
        for action, hits in by_action:
            for hit in hits:
                table.writerow((csv_cell(action), csv_cell(hit.video), *map(_round, hit[1:])))
    else:
        for action, hits in by_action:
            print(printable(action))
            for hit in hits:
                span = f"{clock(hit.start):>9} - {clock(hit.end):>9}"
                print(f"  {hit.score:7.3f}  {span}  {printable(hit.video)}")


def label(words: Sequence[str], values: flags.FlagValues) -> None:
    """Prints what happens when in each video."""
    from coco_jax.recognition import outputs
    from coco_jax.recognition.inputs import read_actions, read_threshold

    if len(words) != 1:
        raise UserError('give one index: index label INDEX --actions="juggling, rope skipping"')
    actions = read_actions(values.actions, values.actions_file)
    opened = _open(words[0], values)
    candidates = opened.recognizer.embed_actions(actions, _descriptions(values))
    kind = "json" if values.json else "csv" if values.csv else "text"
    writer = outputs.writer(kind, sys.stdout, timeline=True)
    threshold = read_threshold(values.threshold, opened.recognizer.default_threshold)
    for found in opened.label(candidates, threshold):
        writer.write(found)
    writer.close()


def _round(value: float) -> float:
    return round(value, 6)


def _open(folder: str, values: flags.FlagValues) -> "Index":
    """An index with its recogniser."""
    from coco_jax.recognition.index import Index
    from coco_jax.recognition.index_store import read

    read(pathlib.Path(folder))  # an error before the model is loaded
    return Index(folder, model_flags.loader(values)())


def _descriptions(values: flags.FlagValues) -> dict[str, list[str]] | None:
    from coco_jax.recognition.inputs import read_descriptions

    return read_descriptions(values.descriptions) if values.descriptions else None


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.index", accepts_words=True)


if __name__ == "__main__":
    main()
