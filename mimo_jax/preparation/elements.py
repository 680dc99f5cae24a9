"""What flows through a preparation, and what a stage is. No runner, no I/O: Beam and the plain runner share this."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np

from mimo_jax.data.manifest import Conversation, Record, TextRecord

Kind = Literal["filtered", "quarantined"]
AnyRecord = Record | TextRecord | Conversation


@dataclasses.dataclass(frozen=True)
class Element:
    """A record on its way, with its sound once it was decoded.

    Attributes:
        record: what is known; stages add to it.
        wave: float32 [samples], mono, within [-1, 1] by convention; None before decoding, and for text.
        sample_rate: of the wave, Hz.
        codes: int [frames, codebooks], once it was tokenized.
    """

    record: AnyRecord
    wave: np.ndarray | None = None
    sample_rate: int = 0
    codes: np.ndarray | None = None

    @property
    def id(self) -> str:
        """Id of the record."""
        return self.record.id

    @property
    def seconds(self) -> float:
        """Length of the wave; 0 without one."""
        return len(self.wave) / self.sample_rate if self.wave is not None and self.sample_rate else 0.0


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A record that goes no further.

    Attributes:
        id: of the record (or the place of a line that is none, like ``manifest.jsonl:12``).
        kind: "filtered" (sound, but not wanted) or "quarantined" (broken: a person may want to look at it).
        reason: a key, the same for all of its kind, to be counted.
        detail: what was found, with the file and the value.
    """

    id: str
    kind: Kind
    reason: str
    detail: str = ""


Outcome = Element | Dropped


class StageFault(Exception):
    """A stage cannot do its work whatever the element is (a codec of another shape, a package that is missing): the run
    stops, instead of quarantining everything."""


class Stage:
    """One step of a preparation. Subclasses are frozen dataclasses (gin binds their fields) and picklable.

    A stage gives back at least one outcome for every element it takes, so that nothing is lost unseen. What it cannot
    use it drops with a reason; an exception that it raises is caught by the runner, which quarantines the element as
    ``failed_<name>``. What takes long to load (weights) is loaded in `setup`, once per worker process, and is kept in
    attributes that `__getstate__` leaves out.
    """

    name: ClassVar[str] = "stage"
    takes: ClassVar[tuple[type, ...]] = (Record,)
    """Kinds of records that the stage works on; others pass by."""
    batch_size: int = 1
    """Elements that `process_batch` gets at a time, fewer at the end of a shard."""

    def setup(self) -> None:
        """Called once per worker before the first element."""

    def process(self, element: Element) -> Iterable[Outcome]:
        """Outcomes of one element."""
        raise NotImplementedError

    def process_batch(self, elements: Sequence[Element]) -> list[list[Outcome]]:
        """Outcomes of each of several elements."""
        return [list(self.process(element)) for element in elements]
