"""Inputs of `mimo_jax.generate`: given on the command line, or the records of a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
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
# Option -> the tasks that read it.
_READ_BY = {
    "instruction": ("asr", "tts", "instruct_tts"),
    "style": ("instruct_tts",),
    "question": ("audio_understanding",),
    "voice": ("instruct_tts", "natural_instruction_tts", "spoken_dialogue"),
    "system_prompt": ("spoken_dialogue",),
    "examples": ("speech_to_speech",),
    "thinking": ("audio_understanding", "speech_to_text_dialogue", "text_dialogue"),
}


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
    unread = [name for name in given if name not in sources]
    unread += [name for name, tasks in _READ_BY.items() if getattr(options, name) and task not in tasks]
    if unread:
        raise UserError(f"--task={task} takes no --{unread[0]}; see --help")
    for text in (*options.text, options.style, options.question, options.system_prompt, options.instruction):
        words(text)
    if needed and not getattr(options, needed):
        raise UserError(f"--task={task} needs --{needed}")


def from_options(options: argparse.Namespace, sample_rate: int) -> list[Item]:
    """Inputs given on the command line."""
    items = []
    for path in options.audio:
        _spare(path, Path(path).stem, options)
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
            used = {"audio_understanding": question, "instruct_tts": style}
            words(used.get(task, "") + ("" if hears else record.text or ""))
            audio = None
            if hears:
                file = audio_path(record, folder)
                _spare(file, record.id, options)
                audio = load_audio(file, sample_rate, record.start, record.end)
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


def words(text: Any) -> str:
    """A text that can be part of a prompt. Raises UserError."""
    if not isinstance(text, str):
        raise UserError(f"{text!r} is given as a text; it must be a string")
    if "<|empty|>" in text.lower():  # texts in capitals are spoken in lower case
        raise UserError(f"{text!r} holds <|empty|>, which marks audio; take it out")
    return text


def wav_name(ident: str) -> str:
    """Name of the file for an input's speech: its id where that can be a file name, else made unique by a checksum."""
    name = ident.replace("/", "_")
    if name != ident or len(name.encode(errors="surrogateescape")) > 200:
        name = f"{name[:48]}-{zlib.crc32(ident.encode(errors='surrogateescape')):08x}"
    return f"{name}.wav"


def _spare(path: str | Path, ident: str, options: argparse.Namespace) -> None:
    """Raises UserError where the speech of the answer would take the place of the input."""
    from mimo_jax.inference.decoding import TASKS

    if TASKS[options.task].spoken and os.path.realpath(path) == os.path.realpath(Path(options.out) / wav_name(ident)):
        raise UserError(f"{path} would be overwritten by its answer; choose another --out")


def read_json(path: str | Path) -> Any:
    """Contents of a JSON file. Raises UserError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _read_dialogue(path: str, sample_rate: int) -> list[Message]:
    from mimo_jax.inference.tasks import Message, Speech

    def turn(values: dict[str, Any]) -> Message:
        role, text, name = values.get("role"), values.get("text"), values.get("audio")
        if role not in ("user", "assistant") or (text is None and name is None):
            raise UserError(f"{path}: a turn needs role ('user' or 'assistant') and text or audio, got {values}")
        if name is None:
            return Message(role, words(text))
        if (text is None) != (role == "user") or not isinstance(name, str):
            raise UserError(
                f"{path}: audio is the path of a recording, of a user without text, of an assistant with its words in "
                f"text, got {values}"
            )
        audio = load(Path(path).parent / name, sample_rate)
        return Message(role, audio if text is None else Speech(words(text), audio))

    turns = read_json(path)
    if not isinstance(turns, list) or not all(isinstance(values, dict) for values in turns):
        raise UserError(f"{path}: expected a JSON list of turns")
    if not turns or turns[-1].get("role") != "user":
        raise UserError(f"{path}: the last turn must be the user's, which is to be answered")
    return [turn(values) for values in turns]
