"""Which recordings and texts go on: limits of scores, and sampling by quality."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from mimo_jax.data.manifest import TextRecord
from mimo_jax.preparation.elements import AnyRecord, Dropped, Element, Outcome, Stage

Limit = tuple[float | None, float | None]
"""Lowest and highest value that is kept; None for no limit."""


def value_of(record: AnyRecord, name: str) -> float | None:
    """A score, or the duration in seconds; None where it is unknown."""
    value = getattr(record, "scores", {}).get(name)
    if value is None and name == "duration":
        value = getattr(record, "duration", None)
    return None if value is None or math.isnan(value) else float(value)


@dataclasses.dataclass(frozen=True)
class Filter(Stage):
    """Drops recordings with scores outside limits, or without what is required.

    Reasons are one per limit (``snr_db_below_5``, ``duration_above_30``) and requirement (``no_text``). A score that a
    recording does not have is within all limits: to be strict, require it too.

    Attributes:
        name: of the stage; several filters in one chain need different ones.
        limits: score (or ``duration``) -> (lowest, highest), None for no limit. Bounds are kept.
        require: fields of the record, or scores, that must be there.
    """

    name: str = "filter"  # type: ignore[misc]
    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)
    require: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            low, high = limit if len(limit) == 2 else (math.inf, -math.inf)
            if low is not None and high is not None and not low <= high:
                raise ValueError(f"Filter.limits[{name!r}] must be (lowest, highest), None for no limit, not {limit!r}")

    def process(self, element: Element) -> Iterator[Outcome]:
        record = element.record
        for name in self.require:
            if not getattr(record, name, None) and value_of(record, name) is None:
                yield Dropped(record.id, "filtered", f"no_{name}", f"{name} is required")
                return
        for name, (low, high) in self.limits.items():
            value = value_of(record, name)
            if value is None:
                continue
            if low is not None and value < low:
                yield Dropped(record.id, "filtered", f"{name}_below_{low:g}", f"{name} is {value:g}")
                return
            if high is not None and value > high:
                yield Dropped(record.id, "filtered", f"{name}_above_{high:g}", f"{name} is {value:g}")
                return
        yield element


@dataclasses.dataclass(frozen=True)
class TextFilter(Filter):
    """`Filter` for text-only material."""

    takes: ClassVar[tuple[type, ...]] = (TextRecord,)
    name: str = "text_filter"  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Sample(Stage):
    """Keeps better recordings with higher probability; the others are filtered as ``not_sampled``.

    The probability rises from ``floor`` at ``low`` to 1 at ``high`` and is constant outside; ``power`` bends it: above
    1 only the best are likely to stay, below 1 most do. Whether a recording is kept depends on id, score and seed,
    not on the runner; whoever is kept under some settings is kept under all with higher probabilities.

    Attributes:
        name: of the stage; several samples in one chain need different ones.
        score: score (or ``duration``) that measures quality.
        low, high: its range; ``low > high`` where low scores are the good ones (``asr_wer``).
        floor: probability of the worst.
        power: exponent of the ramp.
        missing: probability of those without the score.
        seed: another seed draws another sample.
    """

    name: str = "sample"  # type: ignore[misc]
    score: str = "snr_db"
    low: float = 0.0
    high: float = 30.0
    floor: float = 0.1
    power: float = 1.0
    missing: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.low == self.high or self.power <= 0 or not (0 <= self.floor <= 1 and 0 <= self.missing <= 1):
            raise ValueError(
                f"Sample: low and high must differ, power be above 0, floor and missing lie in 0 to 1, not {self}"
            )

    def probability(self, record: AnyRecord) -> float:
        """How likely the record is kept."""
        value = value_of(record, self.score)
        if value is None:
            return self.missing
        ramp = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self.floor + (1.0 - self.floor) * ramp**self.power

    def process(self, element: Element) -> Iterator[Outcome]:
        probability = self.probability(element.record)
        if draw(self.seed, element.id) < probability:
            yield element
        else:
            yield Dropped(element.id, "filtered", "not_sampled", f"kept with probability {probability:.4f}")


@dataclasses.dataclass(frozen=True)
class TextSample(Sample):
    """`Sample` for text-only material."""

    takes: ClassVar[tuple[type, ...]] = (TextRecord,)
    name: str = "text_sample"  # type: ignore[misc]


def draw(seed: int, record_id: str) -> float:
    """A number within [0, 1), evenly spread over ids, the same for ever for one seed and id."""
    digest = hashlib.blake2b(record_id.encode(), key=str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
