"""The same passes as Apache Beam pipelines: the direct runner, Dataflow, Flink, Spark, by Beam's own flags.

    read shards -> one ParDo per stage -> group by shard -> write

Only what the sink needs crosses the grouping: records and codes, never sound. Needs the extra ``beam``, in an
environment without ``seqio`` (Beam wants an older protobuf than TensorFlow Text). All workers must see the source and
the output folder under the same path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import window
from apache_beam.utils.windowed_value import WindowedValue

from mimo_jax.preparation.accounts import Account
from mimo_jax.preparation.chain import Key, Meter, advance
from mimo_jax.preparation.elements import Element, Outcome, Stage
from mimo_jax.preparation.shards import Pass, Sink, total_account
from mimo_jax.preparation.sources.base import Shard, Source

# What flows: (name of the shard, (place, outcome)), or (name of the shard, (stage, what it took)).
Item = tuple[str, tuple[Key, Outcome] | tuple[str, Meter] | None]


class BeamRunner:
    """Runs passes as pipelines.

    Args:
        flags: Beam's, like ``--runner=DataflowRunner`` or ``--direct_num_workers=4``.
    """

    def __init__(self, flags: Sequence[str] = ()):
        self.flags = tuple(flags)

    def run(self, one: Pass, pending: Sequence[Shard], workers: int | None, check: Callable[[Account], None]) -> None:
        """See `runner.Runner`; how many workers there are is Beam's business."""
        if not pending:
            return
        with beam.Pipeline(options=PipelineOptions(list(self.flags))) as pipeline:
            items = (
                pipeline
                | "shards" >> beam.Create(list(pending))
                # Or one worker would read what one Create made.
                | "spread" >> beam.Reshuffle()
                | "read" >> beam.ParDo(_Read(one.source))
            )
            for stage in one.stages:
                items = items | stage.name >> beam.ParDo(_Apply(stage))
            _ = (
                items
                | "slim" >> beam.Map(_slim, one.sink)
                | "group" >> beam.GroupByKey()
                | "write" >> beam.ParDo(_Write(one, pending))
            )
        check(total_account(one.sink.folder, [shard.name for shard in pending]))


class _Read(beam.DoFn):
    """Items of a shard, with their places."""

    def __init__(self, source: Source):
        self._source = source

    def process(self, shard: Shard) -> Iterator[Item]:
        # A shard without items is written, too.
        yield shard.name, None
        for number, outcome in enumerate(self._source.read(shard)):
            yield shard.name, ((number,), outcome)


class _Apply(beam.DoFn):
    """One stage; batches are formed within a bundle."""

    def __init__(self, stage: Stage):
        self._stage = stage
        self._waiting: list[tuple[str, Key, Element]] = []

    def setup(self) -> None:
        self._stage.setup()

    def start_bundle(self) -> None:
        self._waiting = []

    def process(self, item: Item) -> Iterator[Item]:
        name, content = item
        if content is None or not isinstance(content[1], Element):
            yield item
        elif not isinstance(content[1].record, self._stage.takes):
            yield item
        else:
            self._waiting.append((name, content[0], content[1]))  # type: ignore[arg-type]
            if len(self._waiting) >= self._stage.batch_size:
                yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for item in self._flush():
            yield window.GlobalWindows.windowed_value(item)

    def _flush(self) -> Iterator[Item]:
        if not self._waiting:
            return
        meter = Meter()
        # Threads of a worker run bundles side by side: each counts its own time.
        made = advance(self._stage, [(key, e) for _, key, e in self._waiting], meter, time.thread_time)
        yield self._waiting[0][0], (self._stage.name, meter)
        for (name, _, _), outcomes in zip(self._waiting, made, strict=True):
            for pair in outcomes:
                yield name, pair
        self._waiting = []


def _slim(item: Item, sink: Sink) -> Item:
    name, content = item
    if content is None or isinstance(content[1], Meter):
        return item
    return name, (content[0], sink.slim(content[1]))  # type: ignore[return-value]


class _Write(beam.DoFn):
    """Writes a shard when all of it has come."""

    def __init__(self, one: Pass, pending: Sequence[Shard]):
        self._pass = one
        self._shards = {shard.name: shard for shard in pending}

    def process(self, group: tuple[str, Iterable[Any]]) -> Iterator[str]:
        name, contents = group
        meters = {stage.name: Meter() for stage in self._pass.stages}
        outcomes = []
        for content in contents:
            if content is None:
                continue
            if isinstance(content[1], Meter):
                meters[content[0]].add(content[1])
            else:
                outcomes.append(content)
        self._pass.write(self._shards[name], outcomes, meters)
        yield name
