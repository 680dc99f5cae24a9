"""Parts of a corpus."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage


@dataclasses.dataclass(frozen=True)
class KeepSubsets(Stage):
    """Filters records of other subsets.

    Attributes:
        subsets: to keep.
    """

    name: ClassVar[str] = "keep_subsets"
    takes: ClassVar[tuple[type, ...]] = (Record, TextRecord, Conversation)
    subsets: tuple[str, ...] = ()

    def process(self, element: Element) -> list[Outcome]:
        """The element, or "other_subset"."""
        if element.record.subset in self.subsets:
            return [element]
        return [Dropped(element.id, "filtered", "other_subset", element.record.subset)]
