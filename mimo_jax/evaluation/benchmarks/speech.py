"""Recognition and synthesis: LibriSpeech, AISHELL-1, Seed-TTS-Eval, InstructTTSEval."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from mimo_jax.cli import UserError
from mimo_jax.evaluation.benchmarks import extraction, settings
from mimo_jax.evaluation.benchmarks.base import (
    Answered,
    Benchmark,
    Builder,
    Failure,
    Item,
    Metric,
    Outcome,
    correct,
    failed,
    spoken,
)
from mimo_jax.evaluation.benchmarks.reading import audio_path, data_files, lines, rows, unique
from mimo_jax.evaluation.benchmarks.tools import Tools
from mimo_jax.inference.jobs import Job

ERROR_RATES = ("corpus error rate", "mean error rate")
STYLES = ("APS", "DSD", "RP")
STYLE_PARSER = "style-verdict/2"

_STYLE = """You hear a recording of synthesised speech. It was asked for with this description of how it shall sound:
<description>
{style}
</description>
Does the recording follow the description in all that it asks of voice, emotion, pace, volume and manner? Do not mind \
what words are said. Give your reasoning first and end with your verdict as one word, YES or NO."""


def error_shares(reference: str, hypothesis: str, language: str) -> dict[str, tuple[float, float]]:
    """An item's shares in `ERROR_RATES`: words, in Chinese characters, after `text_metrics.normalise`."""
    from mimo_jax.evaluation.text_metrics import utterance_rates, word_errors

    errors, units = word_errors([reference], [hypothesis], language)
    return {
        ERROR_RATES[0]: (float(errors[0]), float(units[0])),
        ERROR_RATES[1]: (float(utterance_rates(errors, units)[0]), 1.0),
    }


def error_metrics(published: float | None = None) -> tuple[Metric, Metric]:
    """The two error rates; published is the mean of utterances' rates, as the released code takes it."""
    return (
        Metric(ERROR_RATES[1], better="lower", published=published),
        Metric(ERROR_RATES[0], better="lower"),
    )


# ----- recognition ----------------------------------------------------------------------------------------------------


def read_manifest(folder: Path, split: str) -> list[Item]:
    """SPLIT/manifest.txt of lines "id TAB text", SPLIT/wav/ID.wav (or .flac)."""
    folder = folder / split
    items = []
    for where, line in lines(folder / "manifest.txt"):
        identifier, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise UserError(f"{where}: expected id, a tab, the text")
        kind = ".flac" if (folder / "wav" / f"{identifier}.flac").is_file() else ".wav"
        path = audio_path(
            f"wav/{identifier}{kind}", folder, lambda problem, where=where: UserError(f"{where}: field 'id' {problem}")
        )
        items.append(Item(identifier, {"text": text.strip()}, (path,)))
    return unique(items, folder)


def build_recognition(item: Item, builder: Builder, seed: int, language: str) -> Job:
    """The recording and one fixed request; no thinking."""
    instruction = settings.TRANSCRIBE[language]
    [job] = builder.jobs.asr([item.audio[0]], instruction=instruction, seeds=[seed])
    return job


def score_recognition(answers: Sequence[Answered], tools: Tools, language: str) -> list[Outcome]:
    """Error rates of the written transcripts."""
    out = []
    for answered in answers:
        text = extraction.after_thinking(answered.text)
        reference = answered.item.fields["text"]
        out.append(Outcome(error_shares(reference, text, language), {"extracted": text, "reference": reference}))
    return out


# ----- synthesis ------------------------------------------------------------------------------------------------------


def read_texts(folder: Path, split: str) -> list[Item]:
    """SPLIT/text.txt, one text a line; ids are the lines' numbers from 0."""
    folder = folder / split
    items = [Item(str(number), {"text": text}) for number, (_, text) in enumerate(lines(folder / "text.txt"))]
    return unique(items, folder)


def build_synthesis(item: Item, builder: Builder, seed: int, language: str) -> Job:
    """The text and one fixed request."""
    [job] = builder.jobs.tts([item.fields["text"]], instruction=settings.READ_ALOUD[language], seeds=[seed])
    return job


def score_synthesis(answers: Sequence[Answered], tools: Tools, language: str) -> list[Outcome]:
    """Error rates of what a recogniser hears in the answers."""
    heard = tools.transcribe(spoken(answers), [language] * len(answers))
    out = []
    for answered, text in zip(answers, heard, strict=True):
        reference = answered.item.fields["text"]
        if isinstance(text, Failure):
            out.append(failed(text, reference=reference))
        else:
            out.append(Outcome(error_shares(reference, text, language), {"transcript": text, "reference": reference}))
    return out


def read_styles(folder: Path, language: str) -> list[Item]:
    """LANGUAGE.jsonl (or .json, .parquet): id, text, APS, DSD, RP (descriptions); three items a record."""
    items = []
    for row in rows(data_files(folder, *(f"{language}{kind}" for kind in (".jsonl", ".json", ".parquet"))), folder):
        if row.get("language", language) != language:
            continue
        for style in STYLES:
            fields = {"text": row.text("text"), "style": row.text(style)}
            items.append(Item(f"{row.text('id')}.{style}", fields, (), {"description": style}))
    return unique(items, folder)


def build_style(item: Item, builder: Builder, seed: int, language: str) -> Job:
    """The text, one fixed request and the description; the model thinks first."""
    fields = item.fields
    [job] = builder.jobs.instruct_tts(
        [fields["text"]], [fields["style"]], instruction=settings.READ_ALOUD[language], seeds=[seed]
    )
    return job


def score_style(answers: Sequence[Answered], tools: Tools, language: str) -> list[Outcome]:
    """Error rates, and with a judge that hears whether the description was followed, which silence does not."""
    out = score_synthesis(answers, tools, language)
    if not tools.has("listener"):
        return out
    waves = spoken(answers)
    asked = [i for i, wave in enumerate(waves) if isinstance(wave, Failure) or len(wave[0])]
    prompts = [_STYLE.format(style=answers[i].item.fields["style"]) for i in asked]
    judged = dict(zip(asked, tools.listen(prompts, [waves[i] for i in asked], extraction.verdict), strict=True))
    for i, answered in enumerate(answers):
        if out[i].failure is not None:
            continue
        verdict = judged.get(i, (False, ""))
        if isinstance(verdict, Failure):
            out[i] = failed(verdict, **out[i].details)
        else:
            followed, reply = verdict
            shares = {name: correct(followed) for name in ("style", answered.item.groups["description"])}
            out[i] = Outcome({**out[i].values, **shares}, {**out[i].details, "verdict": followed, "reply": reply})
    return out


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    made = [
        Benchmark(
            name,
            f"{said}: speech recognition",
            data=name,
            read=functools.partial(read_manifest, split=split),
            build=functools.partial(build_recognition, language=language),
            decoding=settings.TRANSCRIPTION,
            score=functools.partial(score_recognition, language=language),
            metrics=error_metrics(published),
            parser=extraction.TRANSCRIPT,
        )
        for name, said, split, language, published in (
            ("librispeech", "LibriSpeech test-clean", "test_clean", "en", 3.76),
            ("aishell1", "AISHELL-1 test", "test", "zh", 1.78),
        )
    ]
    made += [
        Benchmark(
            f"seed_tts_{split.removesuffix('case')}",
            f"Seed-TTS-Eval {said}: speech synthesis, error rate of a recogniser",
            data="seed_tts",
            read=functools.partial(read_texts, split=split),
            build=functools.partial(build_synthesis, language=language),
            decoding=settings.SPEECH,
            score=functools.partial(score_synthesis, language=language),
            metrics=error_metrics(published),
            parser=extraction.TRANSCRIPT,
            needs=("transcriber",),
        )
        for split, said, language, published in (
            ("en", "English", "en", 5.37),
            ("zh", "Chinese", "zh", 1.96),
            ("zh_hardcase", "Chinese, hard texts", "zh", 14.14),
        )
    ]
    for language, said, published in (
        ("en", "English", (80.60, 77.63, 59.54)),
        ("zh", "Chinese", (75.74, 74.3, 61.54)),
    ):
        styles = tuple(Metric(style, published=value) for style, value in zip(STYLES, published, strict=True))
        made.append(
            Benchmark(
                f"instruct_tts_eval_{language}",
                f"InstructTTSEval {said}: speech in described styles",
                data="instruct_tts_eval",
                read=functools.partial(read_styles, language=language),
                build=functools.partial(build_style, language=language),
                decoding=settings.STYLED_SPEECH,
                score=functools.partial(score_style, language=language),
                metrics=(*error_metrics(), Metric("style"), *styles),
                parser=STYLE_PARSER,
                needs=("transcriber",),
                optional=("listener",),
            )
        )
    return made
