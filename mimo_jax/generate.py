"""Uses a trained or imported model: transcribes, speaks, answers, converts, continues.

    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=asr --audio=a.wav --audio=b.flac
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=tts --text="Good morning." --out=spoken
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=audio_understanding --audio=a.wav --question="Who?"
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=spoken_dialogue --dialogue=talk.json --voice=v.wav
    python -m mimo_jax.generate --lm=LM --tokenizer=TOKENIZER --task=asr --manifest=corpus --split=validation --out=asr

LM and TOKENIZER are folders in the released layout, training runs (--text_tokenizer names what a run lacks) or
repositories of the Hugging Face hub. What each task takes:

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
an input (audio, text, instruction as --style, first question of qa as --question); a record that cannot be read or is
too long gets a line with its error. Started again, a manifest run goes on after the records that are done. Names that
cannot be those of files ("a/b") get a checksum: the line's `audio` says which file it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax.cli import UserError
from mimo_jax.data.audio import write_wav
from mimo_jax.files import replacing, write_text
from mimo_jax.inference import arguments as shared
from mimo_jax.inference import inputs
from mimo_jax.inference.inputs import Item

if TYPE_CHECKING:
    from mimo_jax.inference.tasks import Answer, MimoAudio


def answer(model: MimoAudio, options: argparse.Namespace, items: Sequence[Item]) -> list[Answer]:
    """Runs the task on inputs."""
    from mimo_jax.inference.tasks import Conversion, Message, Speech

    task, rate = options.task, model.sample_rate
    more: dict[str, Any] = {"seeds": [item.seed for item in items], "min_new": options.min_new}
    if options.max_new:
        more["max_new"] = options.max_new
    if task in ("asr", "tts", "instruct_tts"):
        more["instruction"] = options.instruction or None
    voice = inputs.load(options.voice, rate) if options.voice else None
    voices = None if voice is None else [voice] * len(items)
    audios: list[Any] = [item.audio for item in items]
    texts = [item.text for item in items]
    if task in ("asr", "continue_speech", "pretrain_asr"):
        return getattr(model, task)(audios, **more)
    if task in ("tts", "pretrain_tts"):
        return getattr(model, task)(texts, **more)
    if task == "instruct_tts":
        return model.instruct_tts(texts, [item.style for item in items], voices, **more)
    if task == "natural_instruction_tts":
        return model.natural_instruction_tts(texts, voices, **more)
    if task == "audio_understanding":
        questions = [item.question for item in items]
        return model.audio_understanding(audios, questions, thinking=options.thinking, **more)
    if task == "speech_to_speech":
        shown, folder = inputs.read_json(options.examples), Path(options.examples).parent
        try:
            examples = [
                (
                    inputs.load(folder / e["source"], rate),
                    Speech(inputs.words(e["text"]), inputs.load(folder / e["target"], rate)),
                )
                for e in shown["examples"]
            ]
            instruction = inputs.words(shown["instruction"])
            requests = [Conversion(instruction, examples, audio) for audio in audios]
        except (KeyError, TypeError) as error:
            raise UserError(f"{options.examples}: lacks {error}; see --help for its form") from error
        return model.speech_to_speech(requests, **more)
    dialogues = [item.dialogue or [Message("user", item.text if item.audio is None else item.audio)] for item in items]
    if task == "spoken_dialogue":
        return model.spoken_dialogue(dialogues, system_prompt=options.system_prompt or None, voice=voice, **more)
    return getattr(model, task)(dialogues, thinking=options.thinking, **more)


def _answers(
    model: MimoAudio, options: argparse.Namespace, items: list[Item]
) -> tuple[dict[str, tuple[Item, Answer]], dict[str, str]]:
    """(id -> input and answer, id -> why there is none): a prompt that is too long spoils no other."""
    from mimo_jax.inference.requests import RequestError

    errors: dict[str, str] = {}
    try:
        found = answer(model, options, items) if items else []
    except RequestError as error:
        reasons = error.reasons or dict.fromkeys(range(len(items)), str(error))
        errors = {items[place].id: reason for place, reason in reasons.items()}
        items = [item for item in items if item.id not in errors]
        found = answer(model, options, items) if items else []
    return {item.id: (item, one) for item, one in zip(items, found, strict=True)}, errors


class Results:
    """`results.jsonl` of a folder: what is there already, and appending to it.

    What is there stays until there is something to add: a mistake in the input costs no earlier results.
    """

    def __init__(self, folder: Path, run: dict[str, Any], resume: bool):
        self.folder, self._file, self._settings, self._run = folder, folder / "results.jsonl", folder / "run.json", run
        self._lines: list[bytes] = []
        self._begun = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={folder}: {error.strerror}; choose another folder") from error
        if resume and self._settings.is_file() and self._file.is_file():
            if inputs.read_json(self._settings) != run:
                raise UserError(
                    f"{folder} holds results of other settings (see {self._settings}); choose another --out"
                )
            # A killed run may have left half a line.
            self._lines = [line for line in self._file.read_bytes().splitlines(True) if line.endswith(b"\n")]
        self.done = {json.loads(line)["id"] for line in self._lines}

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Appends lines, all or (but for a kill) none."""
        if not self._begun:
            with replacing(self._file) as partial:
                partial.write_bytes(b"".join(self._lines))
            write_text(self._settings, json.dumps(self._run, indent=2) + "\n")
            self._begun = True
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
                values["audio"] = inputs.wav_name(item.id)
                write_wav(self.folder / values["audio"], made.wave, sample_rate)
        return values


def generate(options: argparse.Namespace) -> None:
    """Answers every input; results go to the folder `options.out`."""
    if not options.task:
        raise UserError("--task is missing; `python -m mimo_jax.generate --help` explains")
    inputs.check(options)
    run = {name: value for name, value in sorted(vars(options).items()) if name not in ("out", "batch")}
    if options.manifest:
        run["manifest"] = str(Path(options.manifest).resolve())  # others have records of the same names
    results = Results(Path(options.out), run, resume=bool(options.manifest))
    model = shared.load(options, max_batch=options.batch, max_positions=options.max_positions)
    if options.manifest:
        items: Iterator[Item | tuple[str, str]] = inputs.from_manifest(options, results.done, model.sample_rate)
    else:
        items = iter(inputs.from_options(options, model.sample_rate))
    started, count = time.monotonic(), 0
    for chunk in _chunks(items, options.batch):
        made, errors = _answers(model, options, [item for item in chunk if isinstance(item, Item)])
        errors |= dict(item for item in chunk if not isinstance(item, Item))
        if errors and not options.manifest:
            raise UserError("; ".join(f"{name}: {error}" for name, error in errors.items()))
        entries = []
        for name in (item.id if isinstance(item, Item) else item[0] for item in chunk):
            if name in made:
                entries.append(results.entry(*made[name], model.sample_rate))
            else:
                entries.append({"id": name, "error": errors[name]})
        results.add(entries)
        count += len(chunk)
        for entry in [] if options.manifest else entries:
            print(json.dumps(entry, ensure_ascii=False))
        if options.manifest:
            print(f"{len(results.done) + count} done, {count / (time.monotonic() - started):.1f}/s", file=sys.stderr)
    results.add([])  # there may have been none


def _chunks(inputs: Iterator[Item | tuple[str, str]], size: int) -> Iterator[list[Item | tuple[str, str]]]:
    chunk: list[Item | tuple[str, str]] = []
    for item in inputs:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 = a mistake in the input, named in one line)."""
    return _parser().run(generate, arguments)


def _parser() -> shared.Parser:
    parser = shared.Parser("mimo_jax.generate", __doc__)
    add = parser.add_argument
    add("--task", choices=tuple(inputs.SOURCES), default="", help="what to do; see above for what each task takes")
    add("--audio", action="append", default=[], help="input recording; may be given several times")
    add("--text", action="append", default=[], help="input text; may be given several times")
    add("--style", default="", help="style instruction of instruct_tts")
    add("--question", default="", help="question of audio_understanding")
    add("--voice", default="", help="recording of how the answer shall sound")
    add("--system_prompt", default="", help="system prompt of spoken_dialogue")
    add("--instruction", default="", help="wording of the request of asr, tts, instruct_tts")
    add("--dialogue", default="", help="JSON file with the turns of a dialogue")
    add("--examples", default="", help="JSON file with the examples of speech_to_speech")
    parser.add_switch("thinking", False, "let the model think before it answers")
    add("--manifest", default="", help="manifest (or its folder) whose records are the inputs")
    add("--split", default="", help="only the manifest's records of this split")
    add("--out", default="generated", help="folder of the results")
    add("--seed", type=shared.integer(0), default=0, help="of the random choices")
    add("--max_new", type=shared.integer(1), help="longest answer in positions (text tokens + patches)")
    add("--min_new", type=shared.integer(0), default=0, help="shortest answer in positions")
    add("--max_positions", type=shared.integer(2), default=8192, help="limit of a prompt and its answer together")
    add("--batch", type=shared.integer(1), default=32, help="inputs computed together")
    return parser


if __name__ == "__main__":
    sys.exit(main())
