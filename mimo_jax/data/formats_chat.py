"""Formats of post-training: chat turns, the loss on the assistant's answers only."""

from mimo_jax.data import prompts
from mimo_jax.data.conversations import conversation_segments
from mimo_jax.data.formats import (
    Codes,
    FormatOptions,
    Item,
    Material,
    TaskFormat,
    choice,
    instruction_for,
    with_voice,
)
from mimo_jax.data.manifest import Record
from mimo_jax.data.sequence import Segment


def _spoken_text(record: Record, codes: Codes) -> prompts.SpokenText:
    return prompts.SpokenText(record.text or "", codes(record.id))


def _plan_spoken(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(r.id, (r,)) for r in material.spoken]


def _build_asr(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    prompt = prompts.asr(codes(record.id), instruction_for(prompts.ASR_INSTRUCTIONS, item, options))
    return prompts.complete_with_text(prompt, record.text or "")


def _build_tts(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    text = record.text or ""
    wording = instruction_for(prompts.TTS_INSTRUCTIONS, item, options, prompts.language_of(text))
    return prompts.complete_with_speech(prompts.tts(text, wording), _spoken_text(record, codes))


def _plan_questions(material: Material, options: FormatOptions) -> list[Item]:
    items = []
    for record in material.records:
        for number, qa in enumerate(record.qa):
            options_text = f" Choose from: {', '.join(map(str, qa['choices']))}." if qa.get("choices") else ""
            question, thought = qa["question"] + options_text, qa.get("thought", "")
            items.append(Item(f"{record.id}/qa{number}", (record,), question, qa["answer"], thought))
    return items


def _build_understanding(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    prompt = prompts.audio_understanding(codes(item.records[0].id), item.question, thinking=False)
    return prompts.complete_with_text(prompt, item.answer)


def listening_thought(record: Record, question: str, answer: str) -> str:
    """A short reasoning written by rule from what is known about the recording; ends with a line break."""
    heard = [f"What I hear: {record.caption.rstrip('.')}."] if record.caption else []
    said = [f'The words are "{record.text}".'] if record.text else []
    return " ".join([*heard, *said, f'The question is "{question}"', f"That points to: {answer}."]) + "\n"


def thought_before_answer(record: Record, question: str, answer: str, written: str = "") -> str:
    """The ``written`` thought of a question where there is one, else that by rule; ends with a line break."""
    return f"{written.strip()}\n" if written.strip() else listening_thought(record, question, answer)


def _build_understanding_thinking(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    prompt = prompts.audio_understanding(codes(record.id), item.question, thinking=True)
    thought = thought_before_answer(record, item.question, item.answer, item.thought)
    return prompts.complete_with_text(prompt, item.answer, thought)


def _plan_instructed(material: Material, options: FormatOptions) -> list[Item]:
    found = [Item(r.id, (r,), question=r.instruction) for r in material.spoken if r.instruction]
    return [with_voice(material, item, item.records[0], options) for item in found]


_STYLE_FACTS = ("gender", "accent", "rate", "pitch", "volume", "intonation", "style")


def style_thought(record: Record, style: str) -> str:
    """A short reasoning about how to speak, written by rule from the record's attributes; ends with a line break."""
    facts = [f"{name} {record.attributes[name]}" for name in _STYLE_FACTS if record.attributes.get(name) is not None]
    manner = f" That means: {', '.join(facts)}." if facts else ""
    return f'The style asked for is "{style}".{manner} The words to say are "{record.text}".\n'


def _build_instruct_tts(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    text, voice = record.text or "", codes(item.voice.id) if item.voice else None
    wording = instruction_for(prompts.TTS_INSTRUCTIONS, item, options, prompts.language_of(text))
    prompt = prompts.instruct_tts(text, item.question, wording, voice)
    return prompts.complete_with_speech(prompt, _spoken_text(record, codes), style_thought(record, item.question))


def _plan_dialogue(material: Material, options: FormatOptions) -> list[Item]:
    found = [Item(question.id, (question, reply)) for question, reply in material.dialogues()]
    return [with_voice(material, item, item.records[1], options) for item in found]


def _plan_multiturn(material: Material, options: FormatOptions) -> list[Item]:
    """Each dialogue followed by others whose replies come from the same voice."""
    by_voice: dict[str, list[tuple[Record, Record]]] = {}
    for pair in material.dialogues():
        by_voice.setdefault(str(pair[1].speaker), []).append(pair)
    items = []
    for pairs in by_voice.values():
        if len(pairs) < options.turns:
            continue
        for number, (question, _) in enumerate(pairs):
            step = 1 + choice(options, question.id, "turns", max(1, (len(pairs) - 1) // max(1, options.turns - 1)))
            chosen = [pairs[(number + i * step) % len(pairs)] for i in range(options.turns)]
            item = Item(f"{question.id}/turns", tuple(r for pair in chosen for r in pair))
            items.append(with_voice(material, item, chosen[0][1], options))
    return items


def _build_dialogue(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    """Turn after turn; every answer carries loss, also those that are history to the next."""
    voice = codes(item.voice.id) if item.voice else None
    out: list[Segment] = []
    for question, reply in zip(item.records[::2], item.records[1::2], strict=True):
        prompt = prompts.spoken_dialogue(
            [prompts.Message("user", codes(question.id))], voice=voice if not out else None
        )
        out += prompts.complete_with_speech(prompt, _spoken_text(reply, codes))
    return out


def _build_speech_to_text(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    question, reply = item.records
    prompt = prompts.text_answer_dialogue([prompts.Message("user", codes(question.id))])
    return prompts.complete_with_text(prompt, reply.text or "")


def _plan_text_dialogue(material: Material, options: FormatOptions) -> list[Item]:
    written = [Item(t.id, question=t.text, answer=t.reply) for t in material.texts if t.reply]
    spoken = [Item(f"{q.id}/text", question=q.text, answer=r.text or "") for q, r in material.dialogues() if q.text]
    return written + spoken


def _build_text_dialogue(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    prompt = prompts.text_answer_dialogue([prompts.Message("user", item.question)])
    return prompts.complete_with_text(prompt, item.answer)


def _plan_conversation(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(c.id, conversation=c) for c in material.conversations]


def _build_conversation(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    if item.conversation is None:
        raise ValueError(f"{item.id}: a conversation is needed")
    return conversation_segments(item.conversation.turns, codes)


FORMATS = tuple(
    TaskFormat(name, "post_training", summary, plan, build)
    for name, summary, plan, build in (
        ("sft_asr", "transcription on request", _plan_spoken, _build_asr),
        ("sft_tts", "speech on request", _plan_spoken, _build_tts),
        ("sft_understanding", "a question about a recording", _plan_questions, _build_understanding),
        (
            "sft_understanding_thinking",
            "a question about a recording, answered after a thought",
            _plan_questions,
            _build_understanding_thinking,
        ),
        ("sft_spoken_dialogue", "a spoken question, a spoken answer", _plan_dialogue, _build_dialogue),
        ("sft_spoken_dialogue_multiturn", "several spoken turns", _plan_multiturn, _build_dialogue),
        ("sft_speech_text_dialogue", "a spoken question, a written answer", _plan_dialogue, _build_speech_to_text),
        ("sft_instruct_tts", "speech in a described style after a thought", _plan_instructed, _build_instruct_tts),
        ("sft_text_dialogue", "a written question, a written answer", _plan_text_dialogue, _build_text_dialogue),
        ("sft_conversation", "turns of the fine-tuning exchange format", _plan_conversation, _build_conversation),
    )
)
