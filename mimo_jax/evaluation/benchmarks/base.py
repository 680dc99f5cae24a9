"""What a benchmark is made of: items, prompts, answers, what an answer is worth."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mimo_jax.data.sequence import AudioSegment, Segment, StreamedSegment
from mimo_jax.evaluation.benchmarks.tools import Failure, Tools, Wave
from mimo_jax.inference.decoding import Decoding
from mimo_jax.inference.jobs import Job, Jobs


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One question of a benchmark.

    Attributes:
      id: unique in the benchmark.
      fields: the record as published, checked; what prompt and score are made of.
      audio: recordings that the prompt holds (paths, or references as of `mimo_jax.data.references`).
      groups: name of a grouping -> the item's group in it, for tables of subgroups.
    """

    id: str
    fields: Mapping[str, Any]
    audio: tuple[str, ...] = ()
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Builder:
    """What prompts are made with.

    Attributes:
      jobs: makes the jobs of the model's tasks; recordings are given as the items name them.
      codes: codes int32 [frames, C] of one of the item's recordings.
    """

    jobs: Jobs
    codes: Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """An item with its line of answers.jsonl and the folder that the line's wave lies in."""

    item: Item
    line: Mapping[str, Any]
    folder: Path

    @property
    def text(self) -> str:
        """The written answer, without thoughts; of a spoken answer the text that was streamed with it."""
        return self.line["text"]

    def wave(self) -> tuple[np.ndarray, int]:
        """The spoken answer: float32 [samples] (none where nothing was spoken) and its sample rate in Hz.

        Raises:
          OSError: its file is missing or damaged.
        """
        if self.line.get("audio") is None:
            return np.zeros(0, np.float32), self.line["sample_rate"]
        import soundfile

        path = self.folder / self.line["audio"]
        try:
            wave, rate = soundfile.read(path, dtype="float32")
        except (OSError, soundfile.LibsndfileError) as error:
            raise OSError(f"{path}: the answer's recording cannot be read ({error}); generate it again") from error
        return wave, rate


def spoken(answers: Sequence[Answered]) -> list[Wave | Failure]:
    """The recordings of spoken answers."""
    out: list[Wave | Failure] = []
    for answer in answers:
        try:
            out.append(answer.wave())
        except OSError as error:
            out.append(Failure(str(error)))
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What one answer is worth.

    Attributes:
      values: metric -> the item's share in it, as of the metric's statistic ((numerator, denominator) of a ratio). A
        metric that does not concern the item is left out.
      details: what explains the values (what was extracted, heard, judged); goes to items.jsonl.
      failure: why there are no values.
    """

    values: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failure: str | None = None


def failed(failure: Failure, **details: Any) -> Outcome:
    """The outcome of an item that has no score yet."""
    return Outcome({}, details, failure.reason)


def correct(right: bool) -> tuple[float, float]:
    """An item's share in an accuracy."""
    return float(right), 1.0


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure over items.

    Attributes:
      name: key of `Outcome.values`.
      unit: "%" is shown times 100; others ("", "s", ...) as they are.
      better: which way is good; None = neither.
      statistic: name in `statistic.STATISTICS`: how the sums of the items' shares become the figure.
      published: the report's figure in the shown unit (arXiv 2512.23808).
    """

    name: str
    unit: str = "%"
    better: Literal["higher", "lower"] | None = "higher"
    statistic: Literal["ratio", "bleu"] = "ratio"
    published: float | None = None


Read = Callable[[Path], list[Item]]
Build = Callable[[Item, Builder, int], Job]
Score = Callable[[Sequence[Answered], Tools], list[Outcome]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark, declared.

    Attributes:
      name: of the task on the command line and of its folder of results.
      description: one line.
      data: folder under --data; tasks that share data name the same.
      read: that folder -> items; raises UserError naming file, line and field.
      build: (item, builder, seed) -> job. None: the item's recording is encoded and decoded, no language model asked.
      decoding: instead of the job's own.
      score: answers in the order of the data -> outcomes in that order.
      metrics: the first one is the task's headline.
      parser: name and version of the rule that reads answers and of what judges are asked; the number goes up when
        results may change.
      needs: kinds of plug-ins that scoring cannot do without (those of `plugins.KINDS`, and "listener").
      optional: kinds that add metrics where they are given.
      model: which kind of model the task asks.
    """

    name: str
    description: str
    data: str
    read: Read
    build: Build | None
    decoding: Decoding
    score: Score
    metrics: tuple[Metric, ...]
    parser: str
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    model: Literal["base", "instruct", "tokenizer"] = "instruct"


def integer_of(*parts: object) -> int:
    """A number in [0, 2**31) that follows from the parts alone, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def choose_shots(item: Item, pool: Sequence[Item], count: int) -> list[Item]:
    """`count` items of the pool, never the item itself, that follow from the item and the pool alone.

    Raises:
      ValueError: the pool is too small.
    """
    others = [other for other in pool if other.id != item.id]
    if len(others) < count:
        raise ValueError(f"{count} examples are shown and there are only {len(others)} other items to take them from")
    return sorted(others, key=lambda other: (integer_of(item.id, other.id), other.id))[:count]


def readable(segments: Sequence[Segment]) -> str:
    """A prompt to be read: text as it is, audio as its number of frames and a digest of its codes."""
    parts = []
    for segment in segments:
        if isinstance(segment, AudioSegment):
            parts.append(_heard(segment.codes))
        elif isinstance(segment, StreamedSegment):
            parts.append(f"[streamed: {segment.text} {_heard(segment.codes)}]")
        else:
            parts.append(segment.text if isinstance(segment.text, str) else f"[ids {list(segment.text)}]")
    return "".join(parts)


def _heard(codes: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(codes, np.int32).tobytes()).hexdigest()
    return f"[audio: {len(codes)} frames, {digest[:12]}]"
