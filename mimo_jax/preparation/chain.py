"""Elements through stages, in their order, nothing lost: what every runner does with the elements of a shard."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage, StageFault

logger = logging.getLogger(__name__)

Key = tuple[int, ...]
"""Place of an outcome: the number of its item in the shard, then the number of the piece where a stage made several."""


@dataclasses.dataclass
class Meter:
    """What a stage took: seconds of processor time, seconds of audio, elements."""

    core_seconds: float = 0.0
    audio_seconds: float = 0.0
    elements: int = 0

    def add(self, other: Meter) -> None:
        """Adds another reading."""
        self.core_seconds += other.core_seconds
        self.audio_seconds += other.audio_seconds
        self.elements += other.elements


def apply(stage: Stage, elements: Sequence[Element]) -> list[list[Outcome]]:
    """Outcomes of each element; one that makes the stage fail is quarantined alone.

    Raises:
        StageFault: the stage cannot work at all, or breaks the rule of at least one outcome per element.
    """
    try:
        made = stage.process_batch(elements)
    except StageFault:
        raise
    except Exception as error:
        if len(elements) > 1:
            return [outcomes for element in elements for outcomes in apply(stage, [element])]
        logger.debug("stage %s failed on %s", stage.name, elements[0].id, exc_info=True)
        detail = f"{type(error).__name__}: {error}"
        return [[Dropped(elements[0].id, "quarantined", f"failed_{stage.name}", detail)]]
    if len(made) != len(elements) or not all(made):
        raise StageFault(
            f"stage {stage.name} ({type(stage).__qualname__}) gave {[len(m) for m in made]} outcomes for "
            f"{len(elements)} elements: each needs at least one (an Element, or Dropped with a reason)"
        )
    return made


def flow(stage: Stage, stream: Iterable[tuple[Key, Outcome]], meter: Meter) -> Iterator[tuple[Key, Outcome]]:
    """The stream behind a stage, in an order of its own: outcomes carry their place."""
    waiting: list[tuple[Key, Element]] = []
    for key, outcome in stream:
        if not isinstance(outcome, Element) or not isinstance(outcome.record, stage.takes):
            yield key, outcome
            continue
        waiting.append((key, outcome))
        if len(waiting) >= stage.batch_size:
            yield from itertools.chain.from_iterable(advance(stage, waiting, meter))
            waiting = []
    if waiting:
        yield from itertools.chain.from_iterable(advance(stage, waiting, meter))


def advance(
    stage: Stage,
    waiting: Sequence[tuple[Key, Element]],
    meter: Meter,
    clock: Callable[[], float] = time.process_time,
) -> list[list[tuple[Key, Outcome]]]:
    """The stage on a batch: for each element its outcomes with their places; ``meter`` counts what it took."""
    elements = [element for _, element in waiting]
    start = clock()
    made = apply(stage, elements)
    meter.core_seconds += clock() - start
    meter.elements += len(elements)
    meter.audio_seconds += sum(_seconds(e, outcomes) for e, outcomes in zip(elements, made, strict=True))
    return [placed(key, outcomes) for (key, _), outcomes in zip(waiting, made, strict=True)]


def placed(key: Key, outcomes: Sequence[Outcome]) -> list[tuple[Key, Outcome]]:
    """The outcomes of an element with their places; several get a number each."""
    if len(outcomes) == 1:
        return [(key, outcomes[0])]
    return [((*key, number), outcome) for number, outcome in enumerate(outcomes)]


def _seconds(element: Element, outcomes: Sequence[Outcome]) -> float:
    """Audio that a stage handled: what came in, or what it decoded."""
    return element.seconds or sum(o.seconds for o in outcomes if isinstance(o, Element))


def run_chain(
    stages: Sequence[Stage], items: Iterable[Outcome], meters: Mapping[str, Meter]
) -> Iterator[tuple[Key, Outcome]]:
    """All outcomes of a shard's items, each with its place; ``meters`` has one entry per stage."""
    stream: Iterator[tuple[Key, Outcome]] = (((number,), item) for number, item in enumerate(items))
    for stage in stages:
        stream = flow(stage, stream, meters[stage.name])
    return stream


def identity(value: Any) -> Any:
    """A JSON-able description of a stage and its settings: equal for equal work, in any process."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: identity(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init and f.compare}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, (list, tuple)):
        return [identity(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    fingerprint = getattr(value, "fingerprint", None)
    if fingerprint is not None:
        return str(fingerprint)
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', type(value).__module__)}.{name}"
