"""Transcribes recordings of any length, hours included, in bounded memory.

    python -m mimo_jax.transcribe --lm=LM --tokenizer=TOKENIZER --audio=lecture.mp3 --format=srt --out=transcripts

LM and TOKENIZER are folders in the released layout, training runs (--text_tokenizer names what a run lacks) or
repositories of the Hugging Face hub. A recording is cut at quiet places into windows of at most --window seconds; each
is transcribed by itself. OUT/NAME.FORMAT holds the transcript:

    txt     one line a window
    srt     subtitles, SubRip
    vtt     subtitles, WebVTT
    jsonl   {"start": seconds, "end": seconds, "text": ...} a line

Without --out it goes to the standard output, window by window.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mimo_jax.cli import UserError
from mimo_jax.data.references import AudioError
from mimo_jax.files import replacing
from mimo_jax.inference import arguments as shared

if TYPE_CHECKING:
    from mimo_jax.inference.long_audio import Passage

FORMATS = ("txt", "srt", "vtt", "jsonl")


def lines(passages: Iterable[Passage], form: str) -> Iterator[str]:
    """A transcript in one of `FORMATS`, line by line without line ends; silent passages are left out."""
    if form == "vtt":
        yield from ("WEBVTT", "")
    number = 0
    for passage in passages:
        if not passage.text:
            continue
        number += 1
        if form == "jsonl":
            entry = {"start": round(passage.start, 3), "end": round(passage.end, 3), "text": passage.text}
            yield json.dumps(entry, ensure_ascii=False)
            continue
        text = " ".join(passage.text.split())
        if form == "txt":
            yield text
            continue
        mark = "," if form == "srt" else "."
        if form == "srt":
            yield str(number)
        yield f"{_clock(passage.start, mark)} --> {_clock(passage.end, mark)}"
        yield from (text, "")


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def transcribe(options: argparse.Namespace) -> None:
    """Transcribes files.

    Raises:
      UserError: a recording that is missing or unusable, two recordings of one name.
    """
    if not options.audio:
        raise UserError("--audio is missing: name a recording")
    for path in options.audio:
        if not Path(path).is_file():
            raise UserError(f"--audio={path}: no such file")
    names = [Path(path).stem for path in options.audio]
    if options.out and len(set(names)) < len(names):
        raise UserError("two recordings have the same name, and transcripts are named after it: rename one")
    if not options.window > 1:
        raise UserError(f"--window={options.window}: give more than a second")
    from mimo_jax.inference import long_audio

    model = shared.load(options, max_batch=options.batch)
    try:
        for path, name in zip(options.audio, names, strict=True):
            passages = long_audio.transcribe(
                model,
                path,
                longest=options.window,
                search=options.window / 3,
                together=options.batch,
                language=options.language,
            )
            out = Path(options.out) / f"{name}.{options.format}" if options.out else None
            _write(lines(passages, options.format), out)
    except AudioError as error:
        raise UserError(str(error)) from error


def _write(made: Iterable[str], out: Path | None) -> None:
    """Writes lines to a file; None: to the standard output, each as it comes."""
    if out is None:
        for line in made:
            print(line, flush=True)
        return
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in made)
    print(out, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 = a mistake in the input, named in one line)."""
    return _parser().run(transcribe, arguments)


def _parser() -> shared.Parser:
    parser = shared.Parser("mimo_jax.transcribe", __doc__)
    add = parser.add_argument
    add("--audio", action="append", default=[], help="recording; may be given several times")
    add("--format", choices=FORMATS, default="txt", help="of the transcript")
    add("--out", default="", help="folder of the transcripts; none = the standard output")
    add("--window", type=float, default=30.0, help="longest stretch the model hears at a time, seconds")
    add("--batch", type=shared.integer(1), default=8, help="windows transcribed together")
    add("--language", choices=("en", "zh"), default="en", help="of the request that the model is given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
