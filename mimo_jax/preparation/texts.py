"""The text tokenizer of a prepared folder: given, or trained on what the examples will hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mimo_jax.data import formats_chat, prompts
from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.preparation.curated import Curated


def training_texts(curated: Curated) -> Iterator[str]:
    """Texts of the training split, volume by volume, in the forms that examples have."""
    for volume in curated.volumes:
        records = [r for r in curated.records(volume) if r.split == "train"]
        yield from tokenizer_texts(records, [t for t in curated.texts(volume) if t.split == "train"])
        for conversation in curated.conversations(volume):
            if conversation.split == "train":
                items = [item for turn in conversation.turns for item in turn.get("content", ())]
                yield from (item["text"] for item in items if isinstance(item.get("text"), str))
                yield from (turn["Chain-of-thought"] for turn in conversation.turns if turn.get("Chain-of-thought"))


def tokenizer_texts(records: Iterable[Record], texts: Iterable[TextRecord]) -> Iterator[str]:
    """Every kind of text that examples hold, about as often as they hold it, to train the text tokenizer on."""
    pools = [
        [w for group in pool.values() for w in group] for pool in (prompts.ASR_INSTRUCTIONS, prompts.TTS_INSTRUCTIONS)
    ]
    for number, record in enumerate(records):
        if record.text:
            # In both cases of its beginning; after a colon too, as a request has it.
            yield from (record.text, f": {prompts.normalize_case(record.text)}")
            yield from (pool[number % len(pool)] for pool in pools)
            # Role markers open every turn: spelled in pieces they would lengthen each example.
            yield from ("user\n", "assistant\n")
        if record.instruction:
            yield from (record.instruction, formats_chat.style_thought(record, record.instruction))
            yield (prompts.STYLE_LINE, prompts.STYLE_VOICE_LINE)[number % 2]
        if record.reply:
            yield prompts.VOICE_LINE
        if record.caption:
            yield from (prompts.CAPTION_LEAD, record.caption)
        for qa in record.qa:
            thought = formats_chat.thought_before_answer(record, qa["question"], qa["answer"], qa.get("thought", ""))
            yield from (qa["question"], qa["answer"], thought)
    for text in texts:
        yield from (t for t in (text.text, text.reply) if t)
