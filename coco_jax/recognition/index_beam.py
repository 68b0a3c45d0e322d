"""Builds an index on many machines with Apache Beam; each video is one element.

All workers see the folder of videos and that of the index under the same paths. A worker stores the
windows of a video there, as a build on one machine does. The process that started the pipeline then
puts them together, so the result has the same bytes.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from coco_jax.command import beam_options
from coco_jax.errors import UserError
from coco_jax.recognition import index_store as store
from coco_jax.recognition.index import Embedder, Found, Result

RESULTS = "results"


class BeamRunner:
    """Embeds files in a pipeline."""

    def __init__(self, options: str, load: Callable[[], Any]):
        """Checks the options.

        Args:
          options: of the pipeline, "a=b,c".
          load: loads the recogniser; workers call it.

        Raises:
          UserError: Apache Beam is not installed.
        """
        self._options, self._load = beam_options(options), load

    def __call__(
        self, embedder: Embedder, files: Sequence[Found]
    ) -> Iterator[tuple[Found, Result]]:
        """Embeds files; yields what became of each.

        Raises:
          UserError: a worker has another model.
        """
        import apache_beam as beam

        class Embed(beam.DoFn):
            def __init__(self, load: Callable[[], Any], *fields: Any):
                self.load, self.fields = load, fields

            def setup(self) -> None:
                recognizer = self.load()
                if recognizer.fingerprint != self.fields[1].model:
                    raise UserError("a worker has another model; install the same packages there")
                self.embedder = Embedder(recognizer, *self.fields)

            def process(self, item: tuple[int, str]) -> Iterator[str]:
                yield json.dumps([item[0], *self.embedder(item[1])])

        folder = store.part_path(embedder.output, embedder.settings, RESULTS).with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fields = (embedder.output.absolute(), embedder.settings, embedder.known)
        paths = [(n, str(pathlib.Path(found.path).absolute())) for n, found in enumerate(files)]
        with beam.Pipeline(options=self._options) as pipeline:
            _ = (
                pipeline
                | beam.Create(paths)
                | beam.Reshuffle()
                | beam.ParDo(Embed(self._load, *fields))
                | beam.io.WriteToText(str(folder / RESULTS))
            )
        for path in sorted(folder.iterdir()):
            for line in path.read_text().splitlines():
                number, *result = json.loads(line)
                yield files[number], Result(*result)
