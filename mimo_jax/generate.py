"""Uses a trained or imported model: transcribes, speaks, answers, converts, continues.

    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=asr --audio=a.wav --audio=b.flac
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=tts --text="Good morning." --out=spoken
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=audio_understanding --audio=a.wav --question="Who?"
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=spoken_dialogue --dialogue=talk.json --voice=v.wav
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=asr --manifest=corpus --split=validation --out=asr

LM and TOKENIZER are folders in the released layout. What each task takes:

    asr, continue_speech, pretrain_asr          --audio
    tts, pretrain_tts                           --text
    instruct_tts                                --text --style [--voice]
    natural_instruction_tts                     --text [--voice]
    audio_understanding                         --audio --question [--thinking]
    spoken_dialogue                             --audio or --dialogue [--voice] [--system_prompt]
    speech_to_text_dialogue                     --audio or --dialogue [--thinking]
    text_dialogue                               --text or --dialogue [--thinking]
    speech_to_speech                            --audio --examples

--dialogue is a JSON list of turns, {"role": "user" or "assistant", "text": ..., "audio": path}, the last one the user's
(a spoken assistant turn has both text and audio). --examples is a JSON object {"instruction": ..., "examples":
[{"source": path, "target": path, "text": words of the target}, ...]}. Paths in them are relative to the JSON file.

Answers go to OUT/results.jsonl, one JSON object a line, speech to OUT/ID.wav. With --manifest, every usable record is
an input (audio, text, instruction as --style, first question of qa as --question); a record that cannot be read gets a
line with its error. Started again, a manifest run goes on after the records that are done.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags

from mimo_jax.cli import UserError, use_compilation_cache
from mimo_jax.data.audio import AudioError, load_audio, write_wav
from mimo_jax.data.manifest import ManifestError, audio_path, read_manifest
from mimo_jax.files import replacing, write_text
from mimo_jax.inference.decoding import TASKS

if TYPE_CHECKING:
    from mimo_jax.inference.tasks import Answer, Message, MimoAudio

_LM = flags.DEFINE_string("lm", "", "folder of the language model (released layout, with its text tokenizer)")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "folder of the audio tokenizer (released layout)")
_TASK = flags.DEFINE_enum("task", "", ["", *TASKS], "what to do; see above for what each task takes")
_AUDIO = flags.DEFINE_multi_string("audio", [], "input recording; may be given several times")
_TEXT = flags.DEFINE_multi_string("text", [], "input text; may be given several times")
_STYLE = flags.DEFINE_string("style", "", "style instruction of instruct_tts")
_QUESTION = flags.DEFINE_string("question", "", "question of audio_understanding")
_VOICE = flags.DEFINE_string("voice", "", "recording of how the answer shall sound")
_SYSTEM = flags.DEFINE_string("system_prompt", "", "system prompt of spoken_dialogue")
_INSTRUCTION = flags.DEFINE_string("instruction", "", "wording of the request of asr, tts, instruct_tts")
_DIALOGUE = flags.DEFINE_string("dialogue", "", "JSON file with the turns of a dialogue")
_EXAMPLES = flags.DEFINE_string("examples", "", "JSON file with the examples of speech_to_speech")
_THINKING = flags.DEFINE_bool("thinking", False, "let the model think before it answers")
_MANIFEST = flags.DEFINE_string("manifest", "", "manifest (or its folder) whose records are the inputs")
_SPLIT = flags.DEFINE_string("split", "", "only the manifest's records of this split")
_OUT = flags.DEFINE_string("out", "generated", "folder of the results")
_SEED = flags.DEFINE_integer("seed", 0, "of the random choices", lower_bound=0)
_MAX_NEW = flags.DEFINE_integer("max_new", None, "longest answer in positions (text tokens + patches)", lower_bound=1)
_MIN_NEW = flags.DEFINE_integer("min_new", 0, "shortest answer in positions", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch", 32, "inputs computed together", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the language model's computation")


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


def items_from_flags(sample_rate: int) -> list[Item]:
    """Inputs given on the command line."""
    style, question = _STYLE.value, _QUESTION.value
    items = []
    for path in _AUDIO.value:
        items.append(Item(Path(path).stem, 0, audio=_load(path, sample_rate), question=question))
    for number, text in enumerate(_TEXT.value):
        items.append(Item(f"text-{number + 1}", 0, text=text, style=style))
    if _DIALOGUE.value:
        items.append(Item(Path(_DIALOGUE.value).stem, 0, dialogue=_read_dialogue(_DIALOGUE.value, sample_rate)))
    if len({item.id for item in items}) < len(items):
        raise UserError("two inputs have the same file name, and results are named after it: rename one")
    return [dataclasses.replace(item, seed=_SEED.value + number) for number, item in enumerate(items)]


def items_from_manifest(task: str, skip: set[str], sample_rate: int) -> Iterator[Item | tuple[str, str]]:
    """Inputs from the manifest's records, or (id, error) for those that cannot be used; `skip`: ids that are done."""
    try:
        records = read_manifest(_MANIFEST.value)
    except (ManifestError, OSError) as error:
        raise UserError(f"--manifest: {error}") from error
    hears = task in _HEARS
    for record in records:
        if record.id in skip or (_SPLIT.value and record.split != _SPLIT.value):
            continue
        question = _QUESTION.value or (record.qa[0]["question"] if record.qa else "")
        style = _STYLE.value or record.instruction or ""
        try:
            lacking = {"audio_understanding": not question and "qa", "instruct_tts": not style and "instruction"}
            missing = lacking.get(task) or (not hears and not record.text and "text")
            if missing:
                raise UserError(f"the record has no {missing}")
            audio = None
            if hears:
                where = audio_path(record, _manifest_folder())
                audio = load_audio(where, sample_rate, record.start, record.end)
        except (AudioError, UserError) as error:
            yield record.id, str(error)
            continue
        yield Item(record.id, _SEED.value ^ zlib.crc32(record.id.encode()), audio, record.text or "", style, question)


_HEARS = {
    "asr",
    "audio_understanding",
    "spoken_dialogue",
    "speech_to_text_dialogue",
    "speech_to_speech",
    "continue_speech",
    "pretrain_asr",
}


def _manifest_folder() -> Path:
    path = Path(_MANIFEST.value)
    return path if path.is_dir() else path.parent


def _load(path: str | Path, sample_rate: int) -> np.ndarray:
    try:
        return load_audio(path, sample_rate)
    except AudioError as error:
        raise UserError(str(error)) from error


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _read_dialogue(path: str, sample_rate: int) -> list[Message]:
    from mimo_jax.inference.tasks import Message, Speech

    def turn(values: dict[str, Any]) -> Message:
        text = values.get("text")
        audio = _load(Path(path).parent / values["audio"], sample_rate) if "audio" in values else None
        if values.get("role") not in ("user", "assistant") or (text is None and audio is None):
            raise UserError(f"{path}: a turn needs role ('user' or 'assistant') and text or audio, got {values}")
        if audio is None:
            return Message(values["role"], str(text))
        return Message(values["role"], audio if text is None else Speech(str(text), audio))

    turns = _read_json(path)
    if not isinstance(turns, list) or not all(isinstance(values, dict) for values in turns):
        raise UserError(f"{path}: expected a JSON list of turns")
    return [turn(values) for values in turns]


def answer(model: MimoAudio, task: str, items: Sequence[Item]) -> list[Answer]:
    """Runs `task` on inputs."""
    from mimo_jax.inference.tasks import Conversion, Message, Speech

    options: dict[str, Any] = {"seeds": [item.seed for item in items], "min_new": _MIN_NEW.value}
    if _MAX_NEW.value:
        options["max_new"] = _MAX_NEW.value
    voice = _load(_VOICE.value, model.sample_rate) if _VOICE.value else None
    voices = None if voice is None else [voice] * len(items)
    audios: list[Any] = [item.audio for item in items]
    texts = [item.text for item in items]
    if task in ("asr", "continue_speech", "pretrain_asr"):
        options |= {"instruction": _INSTRUCTION.value or None} if task == "asr" else {}
        return getattr(model, task)(audios, **options)
    if task in ("tts", "pretrain_tts"):
        options |= {"instruction": _INSTRUCTION.value or None} if task == "tts" else {}
        return getattr(model, task)(texts, **options)
    if task == "instruct_tts":
        styles = [item.style for item in items]
        return model.instruct_tts(texts, styles, voices, instruction=_INSTRUCTION.value or None, **options)
    if task == "natural_instruction_tts":
        return model.natural_instruction_tts(texts, voices, **options)
    if task == "audio_understanding":
        questions = [item.question for item in items]
        return model.audio_understanding(audios, questions, thinking=_THINKING.value, **options)
    if task == "speech_to_speech":
        shown = _read_json(_EXAMPLES.value)
        folder = Path(_EXAMPLES.value).parent
        try:
            examples = [(folder / e["source"], Speech(e["text"], folder / e["target"])) for e in shown["examples"]]
            requests = [Conversion(shown["instruction"], examples, audio) for audio in audios]
        except (KeyError, TypeError) as error:
            raise UserError(f"{_EXAMPLES.value}: lacks {error}; see --help for its form") from error
        return model.speech_to_speech(requests, **options)
    dialogues = [item.dialogue or [Message("user", item.text if item.audio is None else item.audio)] for item in items]
    if task == "spoken_dialogue":
        return model.spoken_dialogue(dialogues, system_prompt=_SYSTEM.value or None, voice=voice, **options)
    return getattr(model, task)(dialogues, thinking=_THINKING.value, **options)


def check_inputs() -> None:
    """Raises UserError where flags are missing or do not go together."""
    for flag in (_LM, _TOKENIZER, _TASK):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; `python -m mimo_jax.generate --help` explains")
    for folder in (_LM, _TOKENIZER):
        if not Path(folder.value).is_dir():
            raise UserError(f"--{folder.name}={folder.value}: no such folder")
    task = _TASK.value
    given = {flag.name: bool(flag.value) for flag in (_AUDIO, _TEXT, _DIALOGUE, _STYLE, _QUESTION, _EXAMPLES)}
    sources = ["audio"] if task in _HEARS else ["text"]
    if task.endswith("dialogue"):
        sources.append("dialogue")
    needed = {"instruct_tts": "style", "audio_understanding": "question", "speech_to_speech": "examples"}.get(task)
    if _MANIFEST.value:
        if any(given[name] for name in ("audio", "text", "dialogue")):
            raise UserError("give either --manifest or inputs of your own (--audio, --text, --dialogue)")
        needed = needed if needed == "examples" else None
    elif not any(given[name] for name in sources):
        raise UserError(f"--task={task} needs {' or '.join(f'--{name}' for name in sources)}, or --manifest")
    for name in ("audio", "text", "dialogue"):
        if given[name] and name not in sources:
            raise UserError(f"--task={task} takes no --{name}; see --help")
    if needed and not given[needed]:
        raise UserError(f"--task={task} needs --{needed}")


class Results:
    """`results.jsonl` of a folder: what is there already, and appending to it."""

    def __init__(self, folder: Path, run: dict[str, Any], resume: bool):
        self.folder, self._file = folder, folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        settings, lines = folder / "run.json", []
        if resume and settings.is_file() and self._file.is_file():
            if _read_json(str(settings)) != run:
                raise UserError(f"{folder} holds results of other settings (see {settings}); choose another --out")
            # A killed run may have left half a line.
            lines = [line for line in self._file.read_bytes().splitlines(True) if line.endswith(b"\n")]
        with replacing(self._file) as partial:
            partial.write_bytes(b"".join(lines))
        write_text(settings, json.dumps(run, indent=2) + "\n")
        self.done = {json.loads(line)["id"] for line in lines}

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Appends lines, all or (but for a kill) none."""
        with self._file.open("ab") as file:
            file.write(b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries))

    def entry(self, item: Item, made: Answer, sample_rate: int) -> dict[str, Any]:
        """The line of one answer; its speech is written beside."""
        values: dict[str, Any] = {"id": item.id, "text": made.text, "stop_reason": made.stop_reason}
        if made.thinking is not None:
            values["thinking"] = made.thinking
        if made.wave is not None:
            values["seconds"] = round(len(made.wave) / sample_rate, 3)
            if len(made.wave):
                values["audio"] = f"{item.id.replace('/', '_')}.wav"
                write_wav(self.folder / values["audio"], made.wave, sample_rate)
        return values


def generate() -> None:
    """Runs what the flags say."""
    check_inputs()
    from mimo_jax.inference.tasks import MimoAudio

    task = _TASK.value
    ignored = {"out", "batch", "manifest"}
    run = {name: flags.FLAGS[name].value for name in sorted(_OWN_FLAGS - ignored)}
    results = Results(Path(_OUT.value), run, resume=bool(_MANIFEST.value))
    use_compilation_cache()
    model = MimoAudio.load(_LM.value, _TOKENIZER.value, dtype=_DTYPE.value, max_batch=_BATCH.value)
    inputs: Iterator[Item | tuple[str, str]] = (
        items_from_manifest(task, results.done, model.sample_rate)
        if _MANIFEST.value
        else iter(items_from_flags(model.sample_rate))
    )
    started, count = time.monotonic(), 0
    for chunk in _chunks(inputs, _BATCH.value):
        good = [item for item in chunk if isinstance(item, Item)]
        made = {item.id: (item, a) for item, a in zip(good, answer(model, task, good) if good else [], strict=True)}
        entries = []
        for item in chunk:
            if isinstance(item, Item):
                entries.append(results.entry(*made[item.id], model.sample_rate))
            else:
                entries.append({"id": item[0], "error": item[1]})
        results.add(entries)
        count += len(chunk)
        for entry in [] if _MANIFEST.value else entries:
            print(json.dumps(entry, ensure_ascii=False))
        if _MANIFEST.value:
            print(f"{len(results.done) + count} done, {count / (time.monotonic() - started):.1f}/s", file=sys.stderr)


def _chunks(inputs: Iterator[Item | tuple[str, str]], size: int) -> Iterator[list[Item | tuple[str, str]]]:
    chunk: list[Item | tuple[str, str]] = []
    for item in inputs:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


_OWN_FLAGS = {
    flag.name
    for flag in (_LM, _TOKENIZER, _TASK, _AUDIO, _TEXT, _STYLE, _QUESTION, _VOICE, _SYSTEM, _INSTRUCTION, _DIALOGUE)
    + (_EXAMPLES, _THINKING, _MANIFEST, _SPLIT, _OUT, _SEED, _MAX_NEW, _MIN_NEW, _BATCH, _DTYPE)
}


def main(argv: Sequence[str]) -> None:
    """Entry point; exits with code 2 on a user's mistake."""
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}; every option starts with --")
        generate()
    except (UserError, AudioError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
