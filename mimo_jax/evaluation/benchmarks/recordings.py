"""Tasks whose items are recordings alone: speech continuation, reconstruction by the audio tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimo_jax.cli import UserError
from mimo_jax.evaluation.benchmarks import extraction, settings
from mimo_jax.evaluation.benchmarks.base import Answered, Benchmark, Builder, Failure, Item, Metric, Outcome, spoken
from mimo_jax.evaluation.benchmarks.measures import QUALITY, Part, quality, together, voices
from mimo_jax.evaluation.benchmarks.reading import data_files, rows, unique
from mimo_jax.evaluation.benchmarks.tools import Tools, recorded
from mimo_jax.inference.jobs import Job

_SOUND = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def read(folder: Path) -> list[Item]:
    """data.jsonl of {id, audio, group}, else every recording in the folder, its path the id."""
    if (folder / "data.jsonl").is_file() or not folder.is_dir():
        found = rows(data_files(folder, "data.jsonl"), folder)
        return unique(
            [Item(row.text("id"), {}, (row.recording("audio"),), row.group("group")) for row in found], folder
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SOUND)
    if not paths:
        raise UserError(f"{folder}: no recordings; expected data.jsonl or sound files")
    items = []
    for path in paths:
        name = path.relative_to(folder).with_suffix("")
        groups = {} if len(name.parts) == 1 else {"group": name.parts[0]}
        items.append(Item(name.as_posix(), {}, (str(path.resolve()),), groups))
    return unique(items, folder)


def build_continuation(item: Item, builder: Builder, seed: int) -> Job:
    """The recording, not closed; the model goes on."""
    [job] = builder.jobs.continue_speech([builder.codes(item.audio[0])], seeds=[seed])
    return job


def score_continuation(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    """Length, and where the plug-ins are given the voice's likeness to the prompt's and the words that are heard."""
    waves = spoken(answers)
    parts: list[list[Part]] = [
        [w if isinstance(w, Failure) else ({"seconds": (len(w[0]) / w[1], 1.0)}, {}) for w in waves]
    ]
    if tools.has("speaker_embedder"):
        parts.append(voices(answers, waves, tools, lambda answered: answered.item.audio[0]))
    if tools.has("transcriber"):
        heard = tools.transcribe(waves, [""] * len(answers))
        parts.append(
            [
                t if isinstance(t, Failure) else ({"words": (float(len(t.split())), 1.0)}, {"transcript": t})
                for t in heard
            ]
        )
    return together(parts)


def score_reconstruction(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    """Quality against the recording, and where the plug-in is given the voice's likeness."""
    waves = spoken(answers)
    rate = answers[0].line["sample_rate"] if answers else 0
    parts = [quality(waves, recorded([answered.item.audio[0] for answered in answers], rate))]
    if tools.has("speaker_embedder"):
        parts.append(voices(answers, waves, tools, lambda answered: answered.item.audio[0]))
    return together(parts)


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    similarity = Metric("speaker similarity", unit="")
    return [
        Benchmark(
            "speech_continuation",
            "continuation of recorded speech, mostly to be listened to (base model)",
            data="speech_continuation",
            read=read,
            build=build_continuation,
            decoding=settings.CONTINUATION,
            score=score_continuation,
            metrics=(Metric("seconds", "s", None), similarity, Metric("words", "", None)),
            parser=extraction.TRANSCRIPT,
            optional=("speaker_embedder", "transcriber"),
            model="base",
        ),
        Benchmark(
            "tokenizer_reconstruction",
            "reconstruction by the audio tokenizer with the language model's codebooks",
            data="tokenizer_reconstruction",
            read=read,
            build=None,
            decoding=settings.CONTINUATION,
            score=score_reconstruction,
            metrics=(*QUALITY, similarity),
            parser=extraction.NONE,
            optional=("speaker_embedder",),
            model="tokenizer",
        ),
    ]
