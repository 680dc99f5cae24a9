"""What a recipe is: records -> prompts, replies -> conversations in the fine-tuning exchange format."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mimo_jax.data.manifest import Conversation, Record
from mimo_jax.preparation.recipes.forms import Form

# Facts of the built-in corpus that are about its making, not about the sound.
_NOT_HEARD = ("role", "kind", "answer", "variant", "caption_source")


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and what its reply is put together with.

    Attributes:
        id: of the conversation to be; begins with the record's.
        record: the recording that is heard, or said.
        prompt: for the text LLM.
        form: of the reply.
        question: what is asked, as text; "" where the recording asks.
        answer: the right answer.
        voice: id of a recording whose voice is to be taken on.
    """

    id: str
    record: Record
    prompt: str
    form: Form
    question: str = ""
    answer: str = ""
    voice: str | None = None


class Beside:
    """The recordings that a recipe may combine with one: those of its shard.

    Args:
        records: in the order of the source.
    """

    def __init__(self, records: Sequence[Record]):
        self.by_id = {record.id: record for record in records}
        self._by_speaker: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            if record.speaker and is_clean(record):
                self._by_speaker.setdefault((record.speaker, record.split), []).append(record)

    def voice_for(self, record: Record, seed: int) -> Record | None:
        """Another clean recording of the speaker in the same split, with other words; None where there is none."""
        group = self._by_speaker.get((record.speaker or "", record.split), [])
        others = [r for r in group if r.id != record.id and r.text != record.text]
        return others[draw(record.id, f"{seed} voice", len(others))] if others else None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Makes conversations of recordings. Subclasses are frozen dataclasses; their fields are part of the result's key.

    Attributes:
        seed: of all choices; each is a function of it and the record's id.
    """

    name: ClassVar[str] = "recipe"
    wording: ClassVar[str] = ""
    """The constant part of the prompts: another one asks anew."""
    seed: int = 0

    def requests(self, record: Record, beside: Beside) -> list[Request]:
        """What to ask about a recording; nothing where the recipe has no use for it."""
        raise NotImplementedError

    def conversations(self, request: Request, given: Mapping[str, str]) -> list[Conversation]:
        """Conversations of a reply's sections.

        Raises:
            Rejected: the reply cannot be used.
        """
        raise NotImplementedError


def draw(record_id: str, purpose: str, count: int) -> int:
    """A number in [0, count) that depends on nothing but the record and the purpose."""
    digest = hashlib.blake2b(f"{purpose}\0{record_id}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


def chosen(record_id: str, purpose: str, share: float) -> bool:
    """Whether a record is of a share in [0, 1] of all."""
    return draw(record_id, purpose, 1 << 32) < share * (1 << 32)


def is_clean(record: Record) -> bool:
    """Whether nothing is known of noise in it."""
    return record.clean is None and record.attributes.get("noise") in (None, "none")


def heard(record: Record) -> dict[str, Any]:
    """What is known about how a recording sounds, JSON-able."""
    facts: dict[str, Any] = {"caption": record.caption, "text": record.text}
    attributes = {
        name: value
        for name, value in record.attributes.items()
        if name not in _NOT_HEARD and isinstance(value, (str, int, float, bool))
    }
    return {
        **{name: value for name, value in facts.items() if value},
        **({"attributes": attributes} if attributes else {}),
    }


def with_article(word: str) -> str:
    """The word after "a" or "an", by its first letter."""
    return f"{'an' if word[:1].casefold() in 'aeiou' else 'a'} {word}"


def text_item(text: str) -> dict[str, str]:
    """Text as an item of a turn."""
    return {"type": "text", "text": text}


def audio_item(record_id: str) -> dict[str, str]:
    """A recording as an item of a turn."""
    return {"type": "audio", "audio": record_id}


def answer_turn(content: list[dict[str, str]], thinking: bool | None, thought: str = "") -> dict[str, Any]:
    """An assistant's turn; the thought gets the line break that the exchange format does not add."""
    turn: dict[str, Any] = {"role": "assistant", "thinking": thinking, "content": content}
    return {**turn, "Chain-of-thought": thought.rstrip() + "\n"} if thinking else turn
