"""What the demo's widgets say as jobs of the model, and the model's answers as what the widgets show; no widgets here.

Inputs come from strangers: everything is checked, and whatever is wrong becomes a `UserError` whose text may be shown.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data import prompts
from mimo_jax.data.audio import REASONS, AudioError, load_audio
from mimo_jax.inference.decoding import Decoding
from mimo_jax.inference.jobs import Conversion, Job, Message, Speech
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.inference.tasks import Answer, MimoAudio, Piece

# Reasons whose details say something to a user and name no file of the server.
_TELLING = ("too_short", "too_long", "bad_sample_rate")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the demo accepts.

    Attributes:
      seconds: longest recording.
      voice_seconds: longest recording of how the answer shall sound, longest part of an example.
      characters: longest text.
      examples: most pairs that show a conversion.
      positions: longest answer unless the user asks for more; text tokens and patches.
      running, waiting: inputs worked on at a time, and those that may wait for it.
      megabytes: largest uploaded file.
    """

    seconds: float = 120.0
    voice_seconds: float = 30.0
    characters: int = 2000
    examples: int = 3
    positions: int = 1024
    running: int = 8
    waiting: int = 32
    megabytes: int = 32


class Settings(NamedTuple):
    """What the user may set of decoding; temperature 0 = the best token, top_p 1 and top_k 0 = all tokens."""

    seed: int
    max_new: int
    text_temperature: float
    text_top_p: float
    text_top_k: int
    audio_temperature: float
    audio_top_p: float
    audio_top_k: int

    @classmethod
    def of(cls, decoding: Decoding, max_new: int) -> Settings:
        """A task's own settings."""
        return cls._make((0, max_new, *_numbers(decoding.text), *_numbers(decoding.audio)))

    def options(self, own: Settings) -> dict[str, Any]:
        """Keyword arguments of `MimoAudio.stream`. What stands as in `own` is left to the task that is run.

        Raises:
          UserError: a setting that is missing.
        """
        if None in self:
            raise UserError("A sampling setting is empty; give a number")
        options: dict[str, Any] = {"max_new": int(self.max_new)}
        for name, mine, theirs in (("text_sampling", self[2:5], own[2:5]), ("audio_sampling", self[5:8], own[5:8])):
            if mine != theirs:
                options[name] = _sampling(*mine)
        return options


def _numbers(sampling: Sampling) -> tuple[float, float, int]:
    if not sampling.do_sample:
        return 0.0, 1.0, 0
    return sampling.temperature or 1.0, sampling.top_p or 1.0, sampling.top_k or 0


def _sampling(temperature: float, top_p: float, top_k: float) -> Sampling:
    if temperature <= 0:
        return GREEDY
    # 0 would mean all tokens there, and the best one alone here.
    return Sampling(True, float(temperature), int(top_k) or None, None if top_p >= 1 else max(float(top_p), 1e-6))


# ----- inputs -> jobs -------------------------------------------------------------------------------------------------


class Inputs:
    """Makes the jobs. Recordings are paths of uploaded files, None where there is none; all methods raise UserError.

    Args:
      model: makes the prompts.
      voices: float32 [samples] at the model's sample rate by name, offered as voices of answers.
      limits: what is accepted.
    """

    def __init__(self, model: MimoAudio, voices: Mapping[str, np.ndarray], limits: Limits):
        self._model, self._voices, self._limits = model, voices, limits

    def recording(self, path: str | None, what: str = "the recording", seconds: float | None = None) -> np.ndarray:
        """Waveform float32 [samples] at the model's sample rate of a file of at most `seconds`."""
        if not path:
            raise UserError(f"{what.capitalize()} is missing: upload a file or use the microphone")
        try:
            return load_audio(path, self._model.sample_rate, max_seconds=seconds or self._limits.seconds)
        except AudioError as error:
            detail = f" ({error.detail})" if error.reason in _TELLING else ""
            raise UserError(f"{what.capitalize()} cannot be used: {REASONS[error.reason]}{detail}") from error

    def words(self, text: str | None, what: str = "the text", optional: bool = False) -> str:
        """The text without space around it."""
        text = (text or "").strip()
        if not text and not optional:
            raise UserError(f"{what.capitalize()} is empty")
        if len(text) > self._limits.characters:
            raise UserError(f"{what.capitalize()} has {len(text)} characters, the limit is {self._limits.characters}")
        return text

    def voice(self, name: str | None, path: str | None) -> np.ndarray | None:
        """How the answer shall sound: an uploaded recording, else one of the voices by name, else None."""
        if path:
            return self.recording(path, "the voice", self._limits.voice_seconds)
        if name and name not in self._voices:
            raise UserError(f"There is no voice {name!r}")
        return self._voices[name] if name else None

    def transcribe(self, seed: int, path: str | None) -> Job:
        """Transcription."""
        return self._model.jobs.asr([self.recording(path)], seeds=[seed])[0]

    def speak(
        self, seed: int, text: str, style: str, natural: bool, voice_name: str | None, voice_path: str | None
    ) -> Job:
        """Speech of a text; `natural`: the text itself says how, as in "Say softly: Good night"."""
        text, style = self.words(text), self.words(style, "the style", optional=True)
        voice, jobs = self.voice(voice_name, voice_path), self._model.jobs
        voices = None if voice is None else [voice]
        if natural and style:
            raise UserError("The style is given twice: empty it, or let the text say only what is spoken")
        if style:
            return jobs.instruct_tts([text], [style], voices, seeds=[seed])[0]
        if voice is not None and not natural:
            # The plain task takes no voice; the one that follows a request does, and reading aloud is a request.
            wording = prompts.choose_instruction(prompts.TTS_INSTRUCTIONS, seed, prompts.language_of(text))
            natural, text = True, f"{wording}: {text}"
        if natural:
            return jobs.natural_instruction_tts([text], voices, seeds=[seed])[0]
        return jobs.tts([text], seeds=[seed])[0]

    def understand(self, seed: int, path: str | None, question: str, thinking: bool) -> Job:
        """An answer to a question about a recording."""
        wave = self.recording(path)
        return self._model.jobs.audio_understanding(
            [wave], [self.words(question, "the question")], thinking=thinking, seeds=[seed]
        )[0]

    def continue_speech(self, seed: int, path: str | None) -> Job:
        """What a base model says after a recording."""
        return self._model.jobs.continue_speech([self.recording(path)], seeds=[seed])[0]

    def convert(self, seed: int, instruction: str, query: str | None, *cells: str | None) -> Job:
        """A few-shot conversion; `cells`: source, target and the target's words of each row, empty rows left out."""
        examples = []
        for number, start in enumerate(range(0, len(cells), 3), 1):
            source, target, text = cells[start : start + 3]
            if source or target or (text or "").strip():
                example = f"of example {number}"
                first = self.recording(source, f"the source {example}", self._limits.voice_seconds)
                second = self.recording(target, f"the target {example}", self._limits.voice_seconds)
                examples.append((first, Speech(self.words(text, f"the words {example}"), second)))
        if not examples:
            raise UserError("No examples: give at least one pair that shows the conversion")
        request = Conversion(self.words(instruction, "the instruction"), examples, self.recording(query))
        return self._model.jobs.speech_to_speech([request], seeds=[seed])[0]

    def turn(self, history: Sequence[Turn], path: str | None, text: str = "") -> list[Turn]:
        """The dialogue `history` with the user's next turn, spoken where there is a recording, and written."""
        if path and (text or "").strip():
            raise UserError("Give a text or a recording, not both")
        if path:
            # Codes, so that later turns need not encode it again.
            codes = self._model.encode([self.recording(path)])[0]
            return [*history, Turn(Message("user", codes), path=path)]
        return [*history, Turn(Message("user", self.words(text, "the message")))]

    def talk(
        self,
        seed: int,
        turns: Sequence[Turn],
        system_prompt: str,
        voice_name: str | None,
        voice_path: str | None,
    ) -> Job:
        """The spoken answer to a dialogue."""
        system = self.words(system_prompt, "the system prompt", optional=True) or None
        voice = self.voice(voice_name, voice_path)
        messages = [turn.message for turn in turns]
        return self._model.jobs.spoken_dialogue([messages], system_prompt=system, voice=voice, seeds=[seed])[0]

    def chat(self, seed: int, turns: Sequence[Turn], thinking: bool) -> Job:
        """The written answer to a dialogue."""
        messages, jobs = [turn.message for turn in turns], self._model.jobs
        heard = any(not isinstance(m.content, str) for m in messages)
        make = jobs.speech_to_text_dialogue if heard else jobs.text_dialogue
        return make([messages], thinking=thinking, seeds=[seed])[0]


# ----- answers -> what is shown ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """One turn of a dialogue.

    Attributes:
      message: for the model.
      path: recording to play beside it.
      thinking: what was thought before it.
    """

    message: Message
    path: str | None = None
    thinking: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """What has come of an answer.

    Attributes:
      text, thinking: all so far.
      sound: the new samples as the bytes of a WAV file; None where nothing was spoken.
      answer: the whole answer at the end.
    """

    text: str
    thinking: str
    sound: bytes | None
    answer: Answer | None


def follow(pieces: Iterable[Piece], sample_rate: int) -> Iterator[Shown]:
    """What is to be shown after each piece."""
    text = thinking = ""
    for piece in pieces:
        text, thinking = text + piece.text, thinking + piece.thinking
        sound = wav(pcm(piece.wave), sample_rate) if len(piece.wave) else None
        if piece.answer is not None:
            text, thinking = piece.answer.text, piece.answer.thinking or ""
        yield Shown(text, thinking, sound, piece.answer)


def pcm(wave: np.ndarray) -> np.ndarray:
    """Float [samples] in [-1, 1] as int16; values outside are clipped."""
    return np.round(np.clip(wave, -1.0, 1.0) * 32767.0).astype(np.int16)


def wav(samples: np.ndarray, sample_rate: int) -> bytes:
    """int16 [samples] as a WAV file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def status(answer: Answer, sample_rate: int) -> str:
    """One line about a whole answer."""
    spoken = f"{len(answer.wave) / sample_rate:.1f} s of speech, " if answer.wave is not None else ""
    end = "" if answer.stop_reason == "stop" else "; cut off at the limit of its length"
    return f"{spoken}{answer.positions} positions{end}"


def answered(turns: Sequence[Turn], answer: Answer, path: str | None = None) -> list[Turn]:
    """A dialogue with the model's turn; `path`: its recording."""
    content = answer.text if path is None else Speech(answer.text, answer.codes)
    return [*turns, Turn(Message("assistant", content), path, answer.thinking or "")]


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A dialogue as gradio's Chatbot shows it."""
    shown: list[dict[str, Any]] = []
    for turn in turns:
        content = turn.message.content
        text = content.text if isinstance(content, Speech) else content
        shown += bubbles(turn.message.role, text if isinstance(text, str) else "", turn.thinking)
        if turn.path:
            shown.append({"role": turn.message.role, "content": {"path": turn.path}})
    return shown


def bubbles(role: str, text: str, thinking: str = "") -> list[dict[str, Any]]:
    """Text and thought of a turn, which may be unfinished, as gradio's Chatbot shows them."""
    thought = {"role": role, "content": thinking, "metadata": {"title": "Thought"}}
    return ([thought] if thinking else []) + ([{"role": role, "content": text}] if text else [])
