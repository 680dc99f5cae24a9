"""The measured parts of one section: recogniser, reconstruction, transcription, speech, continuation, conversion.

Each function returns ``{"figures": {name: estimate}, "items": [...]}`` where the items hold what decided the figures
(reference, raw output, seed), so that any figure can be checked again by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.data.audio import write_wav
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.judge import Judge
from mimo_jax.evaluation.parts import Part, figures_of, nothing, rows_of
from mimo_jax.evaluation.selection import Conversion, Item, load_items
from mimo_jax.evaluation.speaker import SpeakerSimilarity
from mimo_jax.evaluation.systems import ConversionRequest, Shot, SpeechModel, Systems, Wave
from mimo_jax.objectives.transcripts import normalise_text


def item_seeds(seed: int, task: str, ids: Sequence[str]) -> list[int]:
    """One sampling seed per item, from its id: the same whatever else is measured beside it."""
    return [int.from_bytes(hashlib.sha256(f"{seed}/{task}/{i}".encode()).digest()[:4], "big") >> 1 for i in ids]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Writes the first few waves of each part under a folder."""

    folder: Path
    sample_rate: int
    limit: int

    def write(self, task: str, ids: Sequence[str], waves: Sequence[Wave]) -> list[str | None]:
        """File names relative to the folder, None where nothing was written."""
        names: list[str | None] = []
        for number, (record_id, wave) in enumerate(zip(ids, waves, strict=True)):
            if number >= self.limit or not len(wave):
                names.append(None)
                continue
            safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in record_id)
            name = f"{task}-{number:02d}-{safe}.wav"
            self.folder.mkdir(parents=True, exist_ok=True)
            write_wav(self.folder / name, np.nan_to_num(np.asarray(wave, np.float32)), self.sample_rate)
            names.append(name)
        return names


def ids_of(items: Sequence[Item]) -> list[str]:
    """Ids of their records."""
    return [item.record.id for item in items]


def original(judge: Judge | None, items: Sequence[Item], samples: Samples) -> Part:
    """The recogniser on the recordings themselves: the floor of every figure that it judges."""
    waves = [item.wave for item in items]
    figures, heard = _read_back("original", judge, items, waves)
    files = samples.write("original", ids_of(items), waves)
    return {
        "figures": figures,
        "items": rows_of(id=ids_of(items), reference=[item.text for item in items], heard=heard, file=files),
    }


def reconstruction(systems: Systems, items: Sequence[Item], samples: Samples, workers: int | None) -> Part:
    """Encode, decode: intelligibility and signal quality."""
    decoded = systems.codec.decode(systems.codec.encode([i.wave for i in items]))
    return judged(systems.judge, items, decoded, samples, "reconstruction", workers)


def judged(
    judge: Judge | None,
    items: Sequence[Item],
    decoded: Sequence[Wave],
    samples: Samples,
    task: str,
    workers: int | None,
    speaker: SpeakerSimilarity | None = None,
) -> Part:
    """Intelligibility and signal quality of reconstructions.

    Args:
        judge: None leaves the error rates out.
        items: the originals.
        decoded: what became of them, in the same order.
        samples: the first few are written there as ``task``.
        task: name of the samples.
        workers: processes for PESQ; None takes one per core.
        speaker: compares the voices; None leaves ``speaker_similarity`` out.
    """
    decoded = [np.asarray(w, np.float32) for w in decoded]
    figures, heard = _read_back("reconstruction", judge, items, decoded)
    waves = [item.wave for item in items]
    quality = metrics.speech_qualities(waves, decoded, samples.sample_rate, workers)
    measured = {
        field.name: [getattr(q, field.name) for q in quality] for field in dataclasses.fields(metrics.SpeechQuality)
    }
    if speaker is not None:
        measured["speaker_similarity"] = [float(s) for s in speaker(waves, decoded, samples.sample_rate)]
    return {
        "figures": figures | figures_of(**{name: metrics.finite_mean(values) for name, values in measured.items()}),
        "items": rows_of(
            id=ids_of(items),
            reference=[item.text for item in items],
            heard=heard,
            file=samples.write(task, ids_of(items), decoded),
            **measured,
        ),
    }


def _read_back(
    name: str, judge: Judge | None, items: Sequence[Item], waves: Sequence[Wave]
) -> tuple[dict[str, Any], Sequence[str | None]]:
    """(error rates of what the recogniser hears against the texts, what it hears); nothing without a recogniser."""
    if judge is None:
        return {}, [None] * len(items)
    heard = judge.transcribe(waves)
    said = [(item.text, h) for item, h in zip(items, heard, strict=True) if normalise_text(item.text)]
    if not said:
        return {}, heard
    texts, answers = zip(*said, strict=True)
    return (
        figures_of(
            **{
                f"recogniser_wer_{name}": metrics.word_error_rate(texts, answers),
                f"recogniser_cer_{name}": metrics.character_error_rate(texts, answers),
            }
        ),
        heard,
    )


def transcription(model: SpeechModel, items: Sequence[Item], seed: int) -> Part:
    """The language model's own transcriptions."""
    texts, seeds = [item.text for item in items], item_seeds(seed, "asr", ids_of(items))
    answers = model.asr([item.wave for item in items], seeds=seeds)
    per_item = [metrics.word_errors(r, h) for r, h in zip(texts, answers, strict=True)]
    utterances = metrics.finite_mean([edits / words for edits, words in per_item if words])
    return {
        "figures": figures_of(
            asr_wer_heldout=metrics.word_error_rate(texts, answers),
            asr_wer_mean_of_utterances=utterances,
            asr_cer_heldout=metrics.character_error_rate(texts, answers),
        ),
        "items": rows_of(id=ids_of(items), reference=texts, answer=answers, seed=seeds),
    }


def speech(systems: Systems, model: SpeechModel, items: Sequence[Item], samples: Samples, seed: int) -> Part:
    """The language model's speech, read back by the recogniser; chance = the same against shuffled texts."""
    texts, seeds = [item.text for item in items], item_seeds(seed, "tts", ids_of(items))
    waves = model.tts(texts, seeds=seeds)
    heard = systems.judge.transcribe(waves)
    chance = metrics.permutation_texts(texts, seed) if len(texts) > 1 else None
    files = samples.write("speak", ids_of(items), waves)
    return {
        "figures": figures_of(
            recogniser_wer_tts=metrics.word_error_rate(texts, heard),
            recogniser_cer_tts=metrics.character_error_rate(texts, heard),
            recogniser_wer_tts_chance=metrics.word_error_rate(chance, heard) if chance else None,
        ),
        "items": rows_of(id=ids_of(items), reference=texts, heard=heard, seed=seeds, file=files),
    }


def continuation(systems: Systems, model: SpeechModel, items: Sequence[Item], samples: Samples, seed: int) -> Part:
    """Continuations of the first half of each utterance: what is heard in them, and how long they are."""
    prompts = [item.wave[: max(1, len(item.wave) // 2)] for item in items]
    seeds = item_seeds(seed, "continue", ids_of(items))
    waves = model.continue_speech(prompts, seeds=seeds)
    joined = [np.concatenate([p, w]).astype(np.float32) for p, w in zip(prompts, waves, strict=True)]
    files = samples.write("continue", ids_of(items), joined)
    return {
        "figures": figures_of(
            continuation_seconds=metrics.mean_estimate([len(wave) / systems.sample_rate for wave in waves])
        ),
        "items": rows_of(id=ids_of(items), heard=systems.judge.transcribe(joined), seed=seeds, file=files),
    }


def conversion(
    systems: Systems,
    model: SpeechModel,
    wanted: Sequence[Conversion],
    root: str | os.PathLike[str],
    samples: Samples,
    seed: int,
) -> Part:
    """Few-shot conversion: content kept (word error rate), and nearer to the target than to the source (chance 0.5)."""

    from mimo_jax.data.formats_pretraining import conversion_wording

    needed = {r.id: r for c in wanted for r in (c.query, c.target, *itertools.chain(*c.shots))}
    waves = {item.record.id: item.wave for item in load_items(list(needed.values()), root, systems.sample_rate)}
    wanted = [c for c in wanted if all(r.id in waves for r in (c.query, c.target, *itertools.chain(*c.shots)))]
    if not wanted:
        return nothing()
    ids = [f"{c.query.id}-to-{c.target.id}" for c in wanted]
    seeds = item_seeds(seed, "conversion", ids)
    requests = [
        ConversionRequest(
            conversion_wording(c.query, c.target),
            tuple(Shot(waves[a.id], a.text or "", waves[b.id]) for a, b in c.shots),
            waves[c.query.id],
        )
        for c in wanted
    ]
    targets = [waves[c.target.id] for c in wanted]
    out = model.convert(requests, seeds=seeds)
    heard = systems.judge.transcribe(out)
    texts = [c.query.text or "" for c in wanted]
    nearer = [
        _nearer(c.kind, o, r.query, t, systems.sample_rate)
        for c, o, r, t in zip(wanted, out, requests, targets, strict=True)
    ]
    by_kind = {kind: [n for c, n in zip(wanted, nearer, strict=True) if c.kind == kind] for kind in ("voice", "rate")}
    files = samples.write("convert", ids, out)
    return {
        "figures": figures_of(
            conversion_wer=metrics.word_error_rate(texts, heard),
            **{f"conversion_{k}_nearer_target": metrics.finite_mean(values) for k, values in by_kind.items()},
        ),
        "items": rows_of(
            id=ids, kind=[c.kind for c in wanted], reference=texts, heard=heard, nearer=nearer, seed=seeds, file=files
        ),
    }


def _nearer(kind: str, output: Wave, source: Wave, target: Wave, sample_rate: int) -> float:
    """1.0 if the output is nearer to the target than to the source: in length for rate, in spectrum for voice."""
    if not len(output):
        return 0.0
    if kind == "rate":
        distance = [abs(np.log(len(output) / len(other))) for other in (source, target)]
    else:
        spectra = [_average_spectrum(wave, sample_rate) for wave in (output, source, target)]
        distance = [float(np.abs(spectra[0] - spectra[i]).mean()) for i in (1, 2)]
    return float(distance[1] < distance[0])


def _average_spectrum(wave: Wave, sample_rate: int) -> np.ndarray:
    """Mean log-mel spectrum over time without its level: a crude but training-free signature of a voice."""
    spectrum = metrics.log_mel_frames(np.asarray(wave, np.float64), sample_rate).mean(axis=0)
    return spectrum - spectrum.mean()
