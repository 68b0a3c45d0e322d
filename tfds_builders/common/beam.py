"""Reads the examples of a split with Apache Beam; requirements-beam.txt lists what to install.

An archive is one unit of work, and so is each file of a folder.
"""

from collections.abc import Callable, Sequence
from typing import Any

from coco_jax.errors import UserError

try:
    import apache_beam as beam
except ImportError as error:
    raise UserError(
        "--beam_pipeline_options: Apache Beam is not installed; run `pip install -r "
        "requirements-beam.txt`"
    ) from error


def transform(parts: Sequence[Any], read: Callable, report: Callable) -> beam.PTransform:
    """Returns a transform that yields `(key, example)` and writes the report of the split.

    Args:
      parts: units of work.
      read: maps a part to triples: `(key, example, "")` for a video, `(name, None, reason)` for a
        broken video, `(name, None, None)` for a file that is not a video.
      report: called once all parts are read, with the number of videos, the `(name, reason)` of
        broken videos, the number of repeated videos (always 0 here), and the names of skipped files.
    """
    return _Read(list(parts), read, report)


class _Read(beam.PTransform):
    def __init__(self, parts: list[Any], read: Callable, report: Callable):
        super().__init__()
        self.parts, self.read, self.report = parts, read, report

    def expand(self, root):
        triples = (
            root
            | "parts" >> beam.Create(self.parts)
            | "reshuffle" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(self.read)
        )
        valid = triples | "valid" >> beam.Filter(lambda triple: triple[1] is not None)
        broken = (
            triples
            | "broken" >> beam.Filter(lambda triple: triple[1] is None and triple[2] is not None)
            | "reasons" >> beam.Map(lambda triple: (triple[0], triple[2]))
            | "all broken" >> beam.combiners.ToList()
        )
        skipped = (
            triples
            | "skipped" >> beam.Filter(lambda triple: triple[2] is None)
            | "skipped names" >> beam.Map(lambda triple: triple[0])
        )
        count = valid | "count" >> beam.combiners.Count.Globally()
        report = self.report
        _ = broken | "report" >> beam.Map(
            lambda broken, stored, skipped: report(stored, broken, 0, skipped),
            beam.pvalue.AsSingleton(count),
            beam.pvalue.AsList(skipped),
        )
        return valid | "examples" >> beam.Map(lambda triple: (triple[0], triple[1]))
