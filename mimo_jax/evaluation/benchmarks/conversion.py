"""Speech made from speech by a base model that is shown 16 conversions: voice, emotion, rate, noise, language."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.data import prompts
from mimo_jax.evaluation.benchmarks import extraction, measures, settings
from mimo_jax.evaluation.benchmarks.base import Benchmark, Builder, Item, Metric, choose_shots
from mimo_jax.evaluation.benchmarks.reading import Row, data_files, lines, rows, unique
from mimo_jax.evaluation.benchmarks.speech import error_metrics
from mimo_jax.inference.jobs import Conversion, Job, Speech

SHOTS = 16
TRANSCRIPTS = "transcripts.tsv"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A conversion: its request, its language (None = each item's own), the name and the measures of its task."""

    name: str
    description: str
    instruction: str
    language: str | None
    score: Any
    metrics: tuple[Metric, ...]
    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def read_pairs(folder: Path) -> list[Item]:
    """pairs.jsonl or NAME.scp files; the examples of an item are others of its group, by the item alone.

    pairs.jsonl: {id, source, target (paths), text (words of the target)}, where known source_text, group, and shots, a
    list of such records that replaces the choice. NAME.scp: lines "source|target"; words stand in transcripts.tsv,
    lines "file name without suffix TAB words"; ids are NAME/NUMBER.
    """
    scripts = sorted(folder.glob("*.scp")) if folder.is_dir() else []
    pairs = folder / "pairs.jsonl"
    if scripts and not pairs.is_file():
        found = [row for script in scripts for row in _script_rows(script, folder)]
    else:
        found = list(rows(data_files(folder, "pairs.jsonl"), folder))
    items = unique([_pair(row) for row in found], folder)
    out = []
    for item, row in zip(items, found, strict=True):
        if row.get("shots") is not None:
            if not isinstance(row["shots"], list) or not all(isinstance(shot, dict) for shot in row["shots"]):
                raise row.error("shots", "must be a list of objects with source, target and text")
            shots = [_pair(Row({"id": "shot", **shot}, f"{row.where}, shots", folder)) for shot in row["shots"]]
        else:
            pool = [other for other in items if other.groups == item.groups]
            try:
                shots = choose_shots(item, pool, min(SHOTS, len(pool) - 1) if len(pool) > 1 else 1)
            except ValueError as error:
                raise row.error("source", f"{error}; add pairs, or give shots") from error
        out.append(_with_shots(item, shots))
    return out


def _pair(row: Row) -> Item:
    fields = {
        "source": row.recording("source"),
        "target": row.recording("target"),
        "text": row.text("text"),
        "source_text": str(row["source_text"]) if row.get("source_text") else row.text("text"),
    }
    return Item(row.text("id"), fields, (), row.group("group"))


def _script_rows(script: Path, folder: Path) -> list[Row]:
    words = {}
    for where, line in lines(folder / TRANSCRIPTS):
        name, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{where}: expected a file name without suffix, a tab, the words")
        words[name] = text.strip()
    out = []
    for number, (where, line) in enumerate(lines(script)):
        source, bar, target = line.strip().partition("|")
        if not bar:
            raise UserError(f"{where}: expected source|target")
        if Path(target).stem not in words:
            raise UserError(f"{where}: {folder / TRANSCRIPTS} has no words of {Path(target).stem}")
        values: dict[str, Any] = {
            "id": f"{script.stem}/{number}",
            "source": source,
            "target": target,
            "group": script.stem,
        }
        values |= {"text": words[Path(target).stem], "source_text": words.get(Path(source).stem)}
        out.append(Row(values, where, folder))
    return out


def read_voices(folder: Path) -> list[Item]:
    """VoiceConversion.tsv of columns source_id, source_path, target_id, target_path, prompt ("source#target|...").

    Words of SPEAKER/.../ID.wav stand in SPEAKER/SPEAKER.txt two folders above, lines "ID TAB words TAB ...".
    """
    table = folder / "VoiceConversion.tsv"
    text = "\n".join(line for _, line in lines(table))
    known: dict[Path, dict[str, str]] = {}
    items = []
    for number, values in enumerate(csv.DictReader(io.StringIO(text), delimiter="\t")):
        row = Row(values, f"{table}, record {number + 1}", folder)
        source, target = row.recording("source_path"), row.recording("target_path")
        fields = {"source": source, "target": target, "text": _words(source, row, "source_path", known)}
        fields["source_text"] = fields["text"]
        shots = []
        for pair in row.text("prompt").split("|"):
            shown, mark, converted = pair.partition("#")
            if not mark:
                raise row.error("prompt", f"holds {pair!r}: expected source#target")
            heard, said = row.at(shown, "prompt"), row.at(converted, "prompt")
            shots.append(Item("shot", {"source": heard, "target": said, "text": _words(said, row, "prompt", known)}))
        identifier = f"{row.text('source_id')}-{row.text('target_id')}"
        language = prompts.language_of(fields["text"])
        items.append(_with_shots(Item(identifier, {**fields, "language": language}, (), {"language": language}), shots))
    return unique(items, table)


def _words(path: str, row: Row, field: str, known: dict[Path, dict[str, str]]) -> str:
    speaker = Path(path).parent.parent
    script = speaker / f"{speaker.name}.txt"
    if script not in known:
        parts = [line.split("\t") for _, line in lines(script)]
        known[script] = {part[0]: part[1].strip() for part in parts if len(part) > 1}
    try:
        return known[script][Path(path).stem]
    except KeyError:
        raise row.error(field, f"names {path}, whose words are not in {script}") from None


def _with_shots(item: Item, shots: Sequence[Item]) -> Item:
    audio = [item.fields["source"]]
    for shot in shots:
        audio += [shot.fields["source"], shot.fields["target"]]
    return dataclasses.replace(item, audio=tuple(audio), fields={**item.fields, "shots": list(shots)})


def build(item: Item, builder: Builder, seed: int, instruction: str) -> Job:
    """The few-shot prompt of speech-to-speech conversion."""
    examples = [
        (builder.codes(shot.fields["source"]), Speech(shot.fields["text"], builder.codes(shot.fields["target"])))
        for shot in item.fields["shots"]
    ]
    request = Conversion(instruction, examples, builder.codes(item.fields["source"]))
    [job] = builder.jobs.speech_to_speech([request], seeds=[seed])
    return job


def _voice() -> tuple[Metric, ...]:
    return (Metric("speaker similarity", unit=""),)


_RATE = Metric("duration ratio to target", unit="", better=None)

KINDS: tuple[Kind, ...] = (
    Kind(
        "voice_conversion",
        "voice conversion (ESD)",
        "Convert the voice of the input speech to that of the examples, keeping what is said.",
        None,
        measures.converted,
        (*_voice(), *error_metrics()),
        ("speaker_embedder", "transcriber"),
    ),
    Kind(
        "emotion_conversion",
        "emotion conversion (Expresso)",
        "Convert the emotion of the input speech as in the examples, keeping what is said.",
        "en",
        measures.converted,
        (*error_metrics(), *_voice()),
        ("transcriber",),
        ("speaker_embedder",),
    ),
    Kind(
        "style_conversion",
        "conversion to whispered or laughing speech (Expresso)",
        "Convert the speaking style of the input speech as in the examples, keeping what is said.",
        "en",
        measures.converted,
        (*error_metrics(), *_voice()),
        ("transcriber",),
        ("speaker_embedder",),
    ),
    Kind(
        "rate_conversion",
        "conversion of the speaking rate",
        "Convert the speaking rate of the input speech as in the examples, keeping what is said.",
        None,
        measures.paced,
        (_RATE, Metric("duration error", better="lower"), *error_metrics(), *_voice()),
        (),
        ("transcriber", "speaker_embedder"),
    ),
    Kind(
        "denoising",
        "removal of noise (VoiceBank-DEMAND)",
        "Remove the noise from the input speech.",
        "en",
        measures.denoised,
        (*measures.QUALITY, *error_metrics()),
        (),
        ("transcriber",),
    ),
    Kind(
        "speech_translation_en_zh",
        "speech translation, English to Chinese",
        "Translate the input speech from English to Chinese.",
        "zh",
        measures.translated,
        (Metric("BLEU", unit="", statistic="bleu"), Metric("COMET", unit="")),
        ("transcriber",),
        ("translation_scorer",),
    ),
    Kind(
        "speech_translation_zh_en",
        "speech translation, Chinese to English",
        "Translate the input speech from Chinese to English.",
        "en",
        measures.translated,
        (Metric("BLEU", unit="", statistic="bleu"), Metric("COMET", unit="")),
        ("transcriber",),
        ("translation_scorer",),
    ),
)


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    readers: Mapping[str, Any] = {"voice_conversion": read_voices}
    return [
        Benchmark(
            kind.name,
            f"{kind.description}, {SHOTS} examples (base model)",
            data=kind.name,
            read=readers.get(kind.name, read_pairs),
            build=functools.partial(build, instruction=kind.instruction),
            decoding=settings.CONVERSION,
            score=functools.partial(kind.score, language=kind.language),
            metrics=kind.metrics,
            parser=extraction.TRANSCRIPT,
            needs=kind.needs,
            optional=kind.optional,
            model="base",
        )
        for kind in KINDS
    ]
