"""Texts that cannot be trained on."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage


@dataclasses.dataclass(frozen=True)
class CheckText(Stage):
    """Quarantines records whose text is empty (leave it out where nothing is known) or has control characters."""

    name: ClassVar[str] = "check_text"
    takes: ClassVar[tuple[type, ...]] = (Record, TextRecord)

    def process(self, element: Element) -> list[Outcome]:
        """The element, or why it is refused."""
        record = element.record
        text = None if isinstance(record, Conversation) else record.text
        if text is None:
            return [element]
        if not text.strip():
            return [Dropped(element.id, "quarantined", "empty_text", "leave `text` out where nothing is known")]
        if any(ord(c) < 32 and c not in "\t\n" or ord(c) == 127 for c in text):
            return [Dropped(element.id, "quarantined", "control_characters", f"text {text!r}")]
        return [element]
