"""Builders on Apache Beam: one source or file a unit of work; needs requirements-beam.txt."""

from collections.abc import Callable, Sequence
from typing import Any

from coco_jax.errors import UserError

try:
    import apache_beam as beam
except ImportError as error:
    raise UserError(
        "--beam: Apache Beam is not installed; pip install -r requirements-beam.txt"
    ) from error


def transform(parts: Sequence[Any], read: Callable, report: Callable) -> beam.PTransform:
    """A transform that gives (key, example) and writes the report when all parts are read."""
    return _Read(list(parts), read, report)


class _Read(beam.PTransform):
    def __init__(self, parts: list[Any], read: Callable, report: Callable):
        super().__init__()
        self.parts, self.read, self.report = parts, read, report

    def expand(self, root):
        made = (
            root
            | "parts" >> beam.Create(self.parts)
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(self.read)
        )
        whole = made | "whole" >> beam.Filter(lambda made: made[1] is not None)
        broken = (
            made
            | "broken" >> beam.Filter(lambda made: made[1] is None)
            | "reasons" >> beam.Map(lambda made: (made[0], made[2]))
            | "all broken" >> beam.combiners.ToList()
        )
        count = whole | "count" >> beam.combiners.Count.Globally()
        report = self.report
        _ = broken | "report" >> beam.Map(
            lambda broken, stored: report(stored, broken), beam.pvalue.AsSingleton(count)
        )
        return whole | "examples" >> beam.Map(lambda made: (made[0], made[1]))
