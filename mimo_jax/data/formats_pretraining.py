"""Formats of pretraining: plain sequences without chat markup, each closed by ``<|endoftext|>``."""

import itertools

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.formats import Codes, FormatOptions, Item, Material, TaskFormat, choice, pretraining_example
from mimo_jax.data.interleaving import aligned_spans, is_audio, span_sizes, units
from mimo_jax.data.manifest import Record
from mimo_jax.data.sequence import AudioSegment, Segment, StreamedSegment, TextSegment


def _each_spoken(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(r.id, (r,)) for r in material.spoken]


def _each_recording(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(r.id, (r,)) for r in material.records]


def _each_captioned(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(r.id, (r,), answer=r.caption) for r in material.records if r.caption]


def _each_instructed(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(r.id, (r,), question=r.instruction) for r in material.spoken if r.instruction]


def _each_text(material: Material, options: FormatOptions) -> list[Item]:
    return [Item(t.id, answer=f"{t.text}\n{t.reply}" if t.reply else t.text) for t in material.texts]


def _text_of(record: Record) -> str:
    if record.text is None:
        raise ValueError(f"record {record.id}: this task needs its text")
    return record.text


def _build_asr(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    return pretraining_example("asr", prompts.base_asr(codes(record.id)), [TextSegment(_text_of(record))], options)


def _build_captioning(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    prompt = prompts.base_captioning(codes(item.records[0].id))
    return pretraining_example("captioning", prompt, [TextSegment(item.answer)], options)


def _build_text(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    return pretraining_example("text", [], [TextSegment(item.answer)], options)


def _build_continuation(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    return pretraining_example("continuation", [], [AudioSegment(codes(item.records[0].id))], options)


def _spoken(record: Record, codes: Codes) -> StreamedSegment:
    return StreamedSegment(_text_of(record), codes(record.id))


def _build_tts(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    prompt = prompts.base_tts(_text_of(record))[:-1]  # the streamed segment brings its own <|sostm|>
    return pretraining_example("tts", prompt, [_spoken(record, codes)], options)


def _build_instruct_tts(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    (record,) = item.records
    prompt = prompts.base_instruct_tts(_text_of(record), item.question)[:-1]
    return pretraining_example("instruct_tts", prompt, [_spoken(record, codes)], options)


def _plan_interleaved(material: Material, options: FormatOptions) -> list[Item]:
    """Documents of several utterances; utterances without a document that are long enough to be cut into spans."""
    items = [Item(f"document/{key}", records) for key, records in material.documents.items() if len(records) > 1]
    alone = [r for r in material.spoken if not r.document]
    return items + [Item(r.id, (r,)) for r in alone if _is_long(_text_of(r), options)]


def _is_long(text: str, options: FormatOptions) -> bool:
    pieces = units(text)
    if options.span_kind == "words":
        return len(pieces) >= 2 * options.words_per_span
    return len(span_sizes(pieces, options.span_kind, options.words_per_span)) > 1


def _spans(item: Item, codes: Codes, options: FormatOptions) -> list[tuple[str, np.ndarray]]:
    if len(item.records) > 1:
        return [(_text_of(r), codes(r.id)) for r in item.records]
    (record,) = item.records
    frames = codes(record.id)
    spans = aligned_spans(
        _text_of(record),
        len(frames),
        record.words,
        record.duration,
        kind=options.span_kind,
        words_per_span=options.words_per_span,
    )
    return [(text, frames[start:end]) for text, start, end in spans]


def _build_interleaved(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    """Spans in turn as text and as audio; whether audio or text begins depends on the example."""
    spans = _spans(item, codes, options)
    turns = is_audio(len(spans), options.audio_span_share, first=choice(options, item.id, "phase", 2) == 0)
    answer: list[Segment] = [
        AudioSegment(frames) if audio and len(frames) else TextSegment(text)
        for (text, frames), audio in zip(spans, turns, strict=True)
    ]
    return pretraining_example("interleaved", [], answer, options)


_MANNERS = ("rate", "pitch", "volume", "intonation", "style")


def _manner(record: Record) -> dict[str, str]:
    """How a recording is spoken: what a conversion within one voice can change."""
    return {name: str(record.attributes[name]) for name in _MANNERS if name in record.attributes}


def _changed(source: Record, target: Record) -> dict[str, str]:
    before, after = _manner(source), _manner(target)
    return {name: after[name] for name in after if after[name] != before.get(name)}


def conversion_wording(source: Record, target: Record) -> str:
    """The instruction that leads from one recording to another of the same words."""
    if source.clean == target.id:
        return "Remove the noise from the speech."
    if source.speaker != target.speaker:
        return "Convert the timbre of the speech to the voice shown."
    return f"Say it with {' and '.join(f'{name} {value}' for name, value in _changed(source, target).items())}."


def _conversion_key(source: Record, target: Record) -> str | None:
    """What the shots and the query of one example have in common; None for a pair that shows nothing.

    Any voice may be turned into the shown one; within a voice, any speaker may show a change of manner.
    """
    if source.clean == target.id:
        return "denoise"
    if source.speaker != target.speaker:
        return f"voice {target.speaker} {sorted(_manner(target).items())}"
    changed = _changed(source, target)
    before = _manner(source)
    return f"manner {[(name, before.get(name), value) for name, value in changed.items()]}" if changed else None


def _conversion_pairs(material: Material) -> dict[str, list[tuple[Record, Record]]]:
    """Pairs (source, target) by their key."""
    noisy = [(r, material.by_id[r.clean]) for r in material.spoken if r.clean in material.by_id]
    clean = [[r for r in group if r.clean is None] for group in material.parallel.values()]
    alike = [pair for group in clean for pair in itertools.permutations(group, 2)]
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for source, target in [*noisy, *alike]:
        key = _conversion_key(source, target)
        if key is not None and target.text:
            pairs.setdefault(key, []).append((source, target))
    return pairs


def _shots(pairs: list[tuple[Record, Record]], text: str, start: int, count: int) -> list[tuple[Record, Record]]:
    """The first ``count`` pairs from ``start`` on, round the end, of different texts that are not ``text``."""
    found: list[tuple[Record, Record]] = []
    texts = {text}
    for step in range(len(pairs)):
        pair = pairs[(start + step) % len(pairs)]
        if len(found) < count and _text_of(pair[0]) not in texts:
            texts.add(_text_of(pair[0]))
            found.append(pair)
        if len(found) == count:
            break
    return found


def _plan_conversion(material: Material, options: FormatOptions) -> list[Item]:
    """Few-shot examples: ``records`` holds source and target of each shot and then of the query."""
    pairs = _conversion_pairs(material)
    by_source: dict[str, list[tuple[str, Record, Record]]] = {}
    for key, group in pairs.items():
        for source, target in group:
            by_source.setdefault(source.id, []).append((key, source, target))
    items: list[Item] = []
    for source_id, candidates in by_source.items():
        start = choice(options, source_id, "conversion", len(candidates))
        made = 0
        for key, source, target in candidates[start:] + candidates[:start]:
            example_id = f"{source.id}>{target.id}"
            first = choice(options, example_id, "shots", len(pairs[key]))
            shots = _shots(pairs[key], _text_of(source), first, options.shots)
            if len(shots) < options.shots or made == options.conversions_per_query:
                continue
            made += 1
            records = tuple(r for pair in [*shots, (source, target)] for r in pair)
            items.append(Item(example_id, records, question=conversion_wording(source, target)))
    return items


def _build_conversion(item: Item, codes: Codes, options: FormatOptions) -> list[Segment]:
    pairs = list(zip(item.records[::2], item.records[1::2], strict=True))
    shown = [
        prompts.FewShotExample(codes(source.id), prompts.SpokenText(_text_of(target), codes(target.id)))
        for source, target in pairs[:-1]
    ]
    source, target = pairs[-1]
    prompt = prompts.few_shot_speech_to_speech(item.question, shown, codes(source.id))[:-1]
    return pretraining_example("conversion", prompt, [_spoken(target, codes)], options)


FORMATS = tuple(
    TaskFormat(name, "pretraining", summary, plan, build)
    for name, summary, plan, build in (
        ("interleaved", "documents whose spans are text and audio in turn", _plan_interleaved, _build_interleaved),
        ("asr", "recording, then its transcript", _each_spoken, _build_asr),
        ("captioning", "recording, then a description of its sound", _each_captioned, _build_captioning),
        ("text", "text only", _each_text, _build_text),
        ("continuation", "audio only", _each_recording, _build_continuation),
        ("tts", "text, then its streamed speech", _each_spoken, _build_tts),
        ("instruct_tts", "style and text, then streamed speech", _each_instructed, _build_instruct_tts),
        ("conversion", "few-shot speech to speech: voice, manner, noise", _plan_conversion, _build_conversion),
    )
)
