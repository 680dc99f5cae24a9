"""What spoken answers are worth beside a recording or a text: voices, durations, quality, translations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.evaluation.benchmarks.base import Answered, Failure, Metric, Outcome, failed, spoken
from mimo_jax.evaluation.benchmarks.speech import error_shares
from mimo_jax.evaluation.benchmarks.tools import Tools, Wave, recorded

QUALITY = (
    Metric("PESQ-WB", unit=""),
    Metric("PESQ-NB", unit=""),
    Metric("STOI", unit=""),
    Metric("undefined quality", better="lower"),
)

# One measure of all answers: shares of each, or why it has none.
Shares = Mapping[str, tuple[float, ...]]
Part = tuple[Shares, Mapping[str, Any]] | Failure


def together(parts: Sequence[Sequence[Part]]) -> list[Outcome]:
    """Outcomes of several measures of the same answers; one that fails leaves its item without a score."""
    out = []
    for measured in zip(*parts, strict=True):
        values: dict[str, tuple[float, ...]] = {}
        details: dict[str, Any] = {}
        failure = None
        for part in measured:
            if isinstance(part, Failure):
                failure = failure or part
            else:
                values.update(part[0])
                details.update(part[1])
        out.append(Outcome(values, details) if failure is None else failed(failure, **details))
    return out


def _language(answered: Answered, language: str | None) -> str:
    return language or prompts.language_of(answered.item.fields["text"])


def words(
    answers: Sequence[Answered], waves: Sequence[Wave | Failure], tools: Tools, language: str | None
) -> list[Part]:
    """Error rates of what is heard against the words of the input."""
    languages = [_language(answered, language) for answered in answers]
    out: list[Part] = []
    for answered, text, code in zip(answers, tools.transcribe(waves, languages), languages, strict=True):
        reference = answered.item.fields["source_text"]
        if isinstance(text, Failure):
            out.append(text)
        else:
            out.append((error_shares(reference, text, code), {"transcript": text, "reference": reference}))
    return out


def voices(
    answers: Sequence[Answered], waves: Sequence[Wave | Failure], tools: Tools, like: Callable[[Answered], str]
) -> list[Part]:
    """Cosine of the voice of the answer and that of a recording; 0 where nothing was spoken."""
    rate = _sample_rate(answers)
    own = tools.embed_speakers(waves)
    other = tools.embed_speakers(recorded([like(answered) for answered in answers], rate))
    out: list[Part] = []
    for mine, theirs in zip(own, other, strict=True):
        failure = next((v for v in (mine, theirs) if isinstance(v, Failure)), None)
        if failure is not None:
            out.append(failure)
        else:
            cosine = float(np.dot(mine, theirs)) if np.size(mine) == np.size(theirs) else 0.0  # type: ignore[arg-type]
            out.append(({"speaker similarity": (cosine, 1.0)}, {"cosine": round(cosine, 6)}))
    return out


def _sample_rate(answers: Sequence[Answered]) -> int:
    return answers[0].line["sample_rate"] if answers else 24_000


def _target(answered: Answered) -> str:
    return answered.item.fields["target"]


def converted(answers: Sequence[Answered], tools: Tools, language: str | None) -> list[Outcome]:
    """Words kept, voice of the target."""
    waves = spoken(answers)
    return together(_available(answers, waves, tools, language))


def _available(
    answers: Sequence[Answered], waves: Sequence[Wave | Failure], tools: Tools, language: str | None
) -> list[list[Part]]:
    parts: list[list[Part]] = []
    if tools.has("transcriber"):
        parts.append(words(answers, waves, tools, language))
    if tools.has("speaker_embedder"):
        parts.append(voices(answers, waves, tools, _target))
    return parts


def paced(answers: Sequence[Answered], tools: Tools, language: str | None) -> list[Outcome]:
    """Duration over that of the target, and how far that is from 1; else as `converted`."""
    waves = spoken(answers)
    targets = recorded([_target(answered) for answered in answers], _sample_rate(answers))
    durations: list[Part] = []
    for wave, target in zip(waves, targets, strict=True):
        failure = next((w for w in (wave, target) if isinstance(w, Failure)), None)
        if failure is not None:
            durations.append(failure)
            continue
        seconds, wanted = (len(w[0]) / w[1] for w in (wave, target))  # type: ignore[index]
        ratio = seconds / wanted
        shares = {"duration ratio to target": (ratio, 1.0), "duration error": (abs(ratio - 1), 1.0)}
        durations.append((shares, {"seconds": round(seconds, 3), "target seconds": round(wanted, 3)}))
    return together([durations, *_available(answers, waves, tools, language)])


def quality(waves: Sequence[Wave | Failure], references: Sequence[Wave | Failure]) -> list[Part]:
    """PESQ and STOI against a reference at the same sample rate; what is not defined is counted."""
    from mimo_jax.evaluation.metrics import speech_qualities

    good = [
        i for i, pair in enumerate(zip(waves, references, strict=True)) if not any(isinstance(w, Failure) for w in pair)
    ]
    rates = {wave[1] for i in good for wave in (waves[i], references[i])}  # type: ignore[index]
    if len(rates) > 1:
        raise ValueError(f"recordings at several sample rates: {sorted(rates)}")
    measured = dict(
        zip(
            good,
            speech_qualities([references[i][0] for i in good], [waves[i][0] for i in good], rates.pop())  # type: ignore[index]
            if good
            else [],
            strict=True,
        )
    )
    out: list[Part] = []
    for i, pair in enumerate(zip(waves, references, strict=True)):
        failure = next((w for w in pair if isinstance(w, Failure)), None)
        if failure is not None:
            out.append(failure)
            continue
        found = measured[i]
        figures = {"PESQ-WB": found.pesq_wb, "PESQ-NB": found.pesq_nb, "STOI": found.stoi}
        shares = {name: (value, 1.0) for name, value in figures.items() if np.isfinite(value)}
        missing = float(len(shares) < len(figures))
        out.append(({**shares, "undefined quality": (missing, 1.0)}, {}))
    return out


def denoised(answers: Sequence[Answered], tools: Tools, language: str | None) -> list[Outcome]:
    """Quality against the clean recording, and words kept."""
    waves = spoken(answers)
    clean = recorded([_target(answered) for answered in answers], _sample_rate(answers))
    parts = [quality(waves, clean)]
    if tools.has("transcriber"):
        parts.append(words(answers, waves, tools, language))
    return together(parts)


def translated(answers: Sequence[Answered], tools: Tools, language: str) -> list[Outcome]:
    """BLEU of what is heard against the words of the target, and a trained metric where one is given."""
    from mimo_jax.evaluation.text_metrics import bleu_counts

    heard = tools.transcribe(spoken(answers), [language] * len(answers))
    counts: list[Part] = []
    for answered, text in zip(answers, heard, strict=True):
        reference = answered.item.fields["text"]
        if isinstance(text, Failure):
            counts.append(text)
        else:
            row = tuple(map(float, bleu_counts([reference], [text], language)[0]))
            counts.append(({"BLEU": row}, {"transcript": text, "reference": reference}))
    if not tools.has("translation_scorer"):
        return together([counts])
    good = [i for i, text in enumerate(heard) if not isinstance(text, Failure)]
    fields = [answers[i].item.fields for i in good]
    scores = tools.translation_scores(
        [f["source_text"] for f in fields], [str(heard[i]) for i in good], [f["text"] for f in fields]
    )
    made: dict[int, Part] = {
        i: score if isinstance(score, Failure) else ({"COMET": (score, 1.0)}, {})
        for i, score in zip(good, scores, strict=True)
    }
    return together([counts, [made.get(i, ({}, {})) for i in range(len(answers))]])
