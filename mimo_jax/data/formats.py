"""Task formats: how records become lists of segments.

A format *plans* the examples of a split from the records alone (cheap, no audio codes) and *builds* one example when
the codes are at hand. Which wording, which phase, which shots an example gets is a pure function of (seed, example id).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.interleaving import SpanKind
from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.data.sequence import Segment, TextSegment

Codes = Callable[[str], np.ndarray]
Stage = Literal["pretraining", "post_training"]


@dataclasses.dataclass(frozen=True)
class FormatOptions:
    """What a caller may decide about the formats.

    Attributes:
        seed: of all choices.
        no_prompt_loss: pretraining tasks whose prompt part carries no loss (by default every token does).
        instruction_language: wordings of this language only; None mixes all languages.
        span_kind: where an utterance is cut to be interleaved: after words or after sentences.
        words_per_span: words of one span, where it is cut after words.
        audio_span_share: share of the spans that are audio; at one half text and audio take turns.
        shots: examples shown before the query in conversion tasks.
        conversions_per_query: conversion examples made of one recording, at most.
        turns: question-answer pairs of a multi-turn dialogue.
        voice_prompt_share: share of spoken dialogues and instructed speech that begins with a voice prompt.
    """

    seed: int = 0
    no_prompt_loss: tuple[str, ...] = ()
    instruction_language: prompts.Language | None = None
    span_kind: SpanKind = "words"
    words_per_span: int = 6
    audio_span_share: float = 0.5
    shots: int = 3
    conversions_per_query: int = 1
    turns: int = 2
    voice_prompt_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Item:
    """A planned example: its id, the records it is made of in order, and what the format decided while planning."""

    id: str
    records: tuple[Record, ...] = ()
    question: str = ""
    answer: str = ""
    thought: str = ""
    voice: Record | None = None
    conversation: Conversation | None = None


class Material:
    """The records, texts and conversations of one split, with the groupings that formats need.

    Order of the manifest throughout. Recordings that are part of a conversation are in no other example.
    """

    def __init__(
        self,
        records: Sequence[Record],
        texts: Sequence[TextRecord] = (),
        conversations: Sequence[Conversation] = (),
    ):
        self.records = tuple(r for r in records if r.part_of is None)
        self.texts = tuple(texts)
        self.conversations = tuple(conversations)
        self.by_id = {r.id: r for r in self.records}
        self.spoken = tuple(r for r in self.records if r.text)
        self.by_speaker = _grouped(self.records, lambda r: r.speaker)
        self.documents = {
            key: tuple(sorted(group, key=lambda r: int((r.document or {}).get("index", 0))))
            for key, group in _grouped(self.spoken, lambda r: str(r.document["id"]) if r.document else None).items()
        }
        self.parallel = _grouped(self.spoken, lambda r: r.parallel)

    def dialogues(self) -> list[tuple[Record, Record]]:
        """(question, its reply) where the reply is in the same split and its words are known."""
        pairs = [(r, self.by_id.get(r.reply or "")) for r in self.records if r.reply]
        return [(r, reply) for r, reply in pairs if reply is not None and reply.text]


@dataclasses.dataclass(frozen=True)
class TaskFormat:
    """One task: ``plan(material, options)`` lists its examples, ``build(item, codes, options)`` makes the segments."""

    name: str
    stage: Stage
    summary: str
    plan: Callable[[Material, FormatOptions], list[Item]]
    build: Callable[[Item, Codes, FormatOptions], list[Segment]]


def _grouped(records: Iterable[Record], key: Callable[[Record], str | None]) -> dict[str, tuple[Record, ...]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        name = key(record)
        if name is not None:
            groups.setdefault(name, []).append(record)
    return {name: tuple(group) for name, group in groups.items()}


def choice(options: FormatOptions, example_id: str, purpose: str, count: int) -> int:
    """A number in [0, count) that depends on nothing but (seed, example id, purpose)."""
    digest = hashlib.blake2b(f"{options.seed}\0{purpose}\0{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


def instruction_for(
    pool: dict[prompts.Language, tuple[str, ...]],
    item: Item,
    options: FormatOptions,
    language: prompts.Language | None = None,
) -> str:
    """The wording of an example, of ``language`` unless the options fix one."""
    index = choice(options, item.id, "instruction", 1 << 30)
    return prompts.choose_instruction(pool, index, options.instruction_language or language)


def other_of_speaker(material: Material, record: Record, options: FormatOptions) -> Record | None:
    """Another recording of the same speaker, to be a voice prompt; None where there is none."""
    others = [
        r for r in material.by_speaker.get(record.speaker or "", ()) if r.id != record.id and r.text != record.text
    ]
    return others[choice(options, record.id, "voice", len(others))] if others else None


def with_voice(material: Material, item: Item, speaker_of: Record, options: FormatOptions) -> Item:
    """The item, for the configured share of items with a voice prompt of that record's speaker."""
    if choice(options, item.id, "voice_share", 1000) >= 1000 * options.voice_prompt_share:
        return item
    return dataclasses.replace(item, voice=other_of_speaker(material, speaker_of, options))


def with_loss(segments: Iterable[Segment], loss: bool) -> list[Segment]:
    """The segments, all with or all without loss."""
    return [dataclasses.replace(segment, loss=loss) for segment in segments]


def pretraining_example(
    name: str, prompt: Sequence[Segment], answer: Sequence[Segment], options: FormatOptions
) -> list[Segment]:
    """Prompt, answer, end of text: loss on everything, or not on the prompt where the options say so."""
    end = TextSegment(prompts.END_OF_TEXT)
    return [*with_loss(prompt, name not in options.no_prompt_loss), *with_loss([*answer, end], True)]
