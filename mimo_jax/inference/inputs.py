"""Inputs of `mimo_jax.generate`: given on the command line, or the records of a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data.audio import AudioError, load_audio
from mimo_jax.data.manifest import ManifestError, audio_path
from mimo_jax.data.manifest_files import read_manifest

if TYPE_CHECKING:
    from mimo_jax.inference.tasks import Message

# Task -> the options, one of which gives its inputs.
SOURCES: dict[str, tuple[str, ...]] = {
    "asr": ("audio",),
    "tts": ("text",),
    "instruct_tts": ("text",),
    "natural_instruction_tts": ("text",),
    "audio_understanding": ("audio",),
    "spoken_dialogue": ("audio", "dialogue"),
    "speech_to_text_dialogue": ("audio", "dialogue"),
    "text_dialogue": ("text", "dialogue"),
    "speech_to_speech": ("audio",),
    "continue_speech": ("audio",),
    "pretrain_asr": ("audio",),
    "pretrain_tts": ("text",),
}
# Task -> the option that it needs besides.
NEEDED = {"instruct_tts": "style", "audio_understanding": "question", "speech_to_speech": "examples"}


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One input. What a task does not take is left out."""

    id: str
    seed: int
    audio: np.ndarray | None = None
    text: str = ""
    style: str = ""
    question: str = ""
    dialogue: list[Message] | None = None


def check(options: argparse.Namespace) -> None:
    """Raises UserError where options are missing or do not go together."""
    task, sources, needed = options.task, SOURCES[options.task], NEEDED.get(options.task)
    given = [name for name in ("audio", "text", "dialogue") if getattr(options, name)]
    if options.manifest:
        if given:
            raise UserError("give either --manifest or inputs of your own (--audio, --text, --dialogue)")
        needed = needed if needed == "examples" else None
    elif not set(given) & set(sources):
        raise UserError(f"--task={task} needs {' or '.join(f'--{name}' for name in sources)}, or --manifest")
    for name in given:
        if name not in sources:
            raise UserError(f"--task={task} takes no --{name}; see --help")
    if needed and not getattr(options, needed):
        raise UserError(f"--task={task} needs --{needed}")


def from_options(options: argparse.Namespace, sample_rate: int) -> list[Item]:
    """Inputs given on the command line."""
    items = []
    for path in options.audio:
        items.append(Item(Path(path).stem, 0, audio=load(path, sample_rate), question=options.question))
    for number, text in enumerate(options.text):
        items.append(Item(f"text-{number + 1}", 0, text=text, style=options.style))
    if options.dialogue:
        items.append(Item(Path(options.dialogue).stem, 0, dialogue=_read_dialogue(options.dialogue, sample_rate)))
    if len({item.id for item in items}) < len(items):
        raise UserError("two inputs have the same file name, and results are named after it: rename one")
    return [dataclasses.replace(item, seed=options.seed + number) for number, item in enumerate(items)]


def from_manifest(options: argparse.Namespace, skip: set[str], sample_rate: int) -> Iterator[Item | tuple[str, str]]:
    """Inputs from the manifest's records, or (id, error) for those that cannot be used; `skip`: ids that are done."""
    path, task = Path(options.manifest), options.task
    folder = path if path.is_dir() else path.parent
    try:
        records = read_manifest(options.manifest)
    except (ManifestError, OSError) as error:
        raise UserError(f"--manifest: {error}") from error
    hears = "audio" in SOURCES[task]
    for record in records:
        if record.id in skip or (options.split and record.split != options.split):
            continue
        question = options.question or (record.qa[0]["question"] if record.qa else "")
        style = options.style or record.instruction or ""
        try:
            lacking = {"audio_understanding": not question and "qa", "instruct_tts": not style and "instruction"}
            missing = lacking.get(task) or (not hears and not record.text and "text")
            if missing:
                raise UserError(f"the record has no {missing}")
            audio = None
            if hears:
                audio = load_audio(audio_path(record, folder), sample_rate, record.start, record.end)
        except (AudioError, UserError) as error:
            yield record.id, str(error)
            continue
        seed = options.seed ^ zlib.crc32(record.id.encode())
        yield Item(record.id, seed, audio, record.text or "", style, question)


def load(path: str | Path, sample_rate: int) -> np.ndarray:
    """float32 [samples] of a recording. Raises UserError."""
    try:
        return load_audio(path, sample_rate)
    except AudioError as error:
        raise UserError(str(error)) from error


def read_json(path: str | Path) -> Any:
    """Contents of a JSON file. Raises UserError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _read_dialogue(path: str, sample_rate: int) -> list[Message]:
    from mimo_jax.inference.tasks import Message, Speech

    def turn(values: dict[str, Any]) -> Message:
        text = values.get("text")
        audio = load(Path(path).parent / values["audio"], sample_rate) if "audio" in values else None
        if values.get("role") not in ("user", "assistant") or (text is None and audio is None):
            raise UserError(f"{path}: a turn needs role ('user' or 'assistant') and text or audio, got {values}")
        if audio is None:
            return Message(values["role"], str(text))
        return Message(values["role"], audio if text is None else Speech(str(text), audio))

    turns = read_json(path)
    if not isinstance(turns, list) or not all(isinstance(values, dict) for values in turns):
        raise UserError(f"{path}: expected a JSON list of turns")
    return [turn(values) for values in turns]
