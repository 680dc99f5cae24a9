"""Transcribes recordings of any length, hours included, in bounded memory.

    python -m mimo_jax.transcribe --lm=LM --tokenizer=TOKENIZER --audio=lecture.mp3 --format=srt --out=transcripts

LM and TOKENIZER are folders in the released layout. A recording is cut at quiet places into windows of at most --window
seconds; each is transcribed by itself. OUT/NAME.FORMAT holds the transcript:

    txt     one line a window
    srt     subtitles, SubRip
    vtt     subtitles, WebVTT
    jsonl   {"start": seconds, "end": seconds, "text": ...} a line

Without --out it goes to the standard output, window by window.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from mimo_jax.cli import UserError, use_compilation_cache
from mimo_jax.data.references import AudioError
from mimo_jax.files import replacing

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


def transcribe(
    *,
    lm: str,
    tokenizer: str,
    audio: Sequence[str],
    form: str = "txt",
    out: str = "",
    window: float = 30.0,
    together: int = 8,
    language: str = "en",
    dtype: str = "float32",
) -> None:
    """Transcribes files; arguments as the flags of the same names.

    Raises:
      UserError: a folder or a recording that is missing, two recordings of one name. AudioError: an unusable one.
    """
    for name, folder in (("lm", lm), ("tokenizer", tokenizer)):
        if not folder:
            raise UserError(f"--{name} is missing; `python -m mimo_jax.transcribe --help` explains")
        if not Path(folder).is_dir():
            raise UserError(f"--{name}={folder}: no such folder")
    if not audio:
        raise UserError("--audio is missing: name a recording")
    for path in audio:
        if not Path(path).is_file():
            raise UserError(f"--audio={path}: no such file")
    names = [Path(path).stem for path in audio]
    if out and len(set(names)) < len(names):
        raise UserError("two recordings have the same name, and transcripts are named after it: rename one")
    from mimo_jax.inference import long_audio
    from mimo_jax.inference.tasks import MimoAudio

    if not window > 1:
        raise UserError(f"--window={window}: give more than a second")
    use_compilation_cache()
    model = MimoAudio.load(lm, tokenizer, dtype=dtype, max_batch=together)
    for path, name in zip(audio, names, strict=True):
        passages = long_audio.transcribe(
            model, path, longest=window, search=window / 3, together=together, language=language
        )
        if not out:
            for line in lines(passages, form):
                print(line, flush=True)
            continue
        Path(out).mkdir(parents=True, exist_ok=True)
        with replacing(Path(out) / f"{name}.{form}") as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines(passages, form))
        print(f"{Path(out) / name}.{form}", file=sys.stderr)


_LM = flags.DEFINE_string("lm", "", "folder of the language model (released layout, with its text tokenizer)")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "folder of the audio tokenizer (released layout)")
_AUDIO = flags.DEFINE_multi_string("audio", [], "recording; may be given several times")
_FORMAT = flags.DEFINE_enum("format", "txt", FORMATS, "of the transcript")
_OUT = flags.DEFINE_string("out", "", "folder of the transcripts; none = the standard output")
_WINDOW = flags.DEFINE_float("window", 30.0, "longest stretch the model hears at a time, seconds")
_BATCH = flags.DEFINE_integer("batch", 8, "windows transcribed together", lower_bound=1)
_LANGUAGE = flags.DEFINE_enum("language", "en", ["en", "zh"], "of the request that the model is given")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the language model's computation")


def main(argv: Sequence[str]) -> None:
    """Entry point; exits with code 2 on a user's mistake."""
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}; every option starts with --")
        transcribe(
            lm=_LM.value,
            tokenizer=_TOKENIZER.value,
            audio=_AUDIO.value,
            form=_FORMAT.value,
            out=_OUT.value,
            window=_WINDOW.value,
            together=_BATCH.value,
            language=_LANGUAGE.value,
            dtype=_DTYPE.value,
        )
    except (UserError, AudioError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
