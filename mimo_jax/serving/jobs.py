"""From requests to jobs of the model: which task it is, recordings decoded and encoded, voices looked up."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.sequence import TextSegment
from mimo_jax.inference.jobs import Job, Message, Speech
from mimo_jax.inference.requests import Request
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.inference.tasks import MimoAudio
from mimo_jax.serving import sound
from mimo_jax.serving.errors import ApiError, bad
from mimo_jax.serving.history import History
from mimo_jax.serving.limits import Limits
from mimo_jax.serving.schema import (
    DEFAULT_VOICE,
    ChatRequest,
    Choices,
    Recording,
    SpeechRequest,
    TranscriptionRequest,
    Turn,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Ordered:
    """An answer that is asked for.

    Attributes:
      task: name of the task.
      job: prompt, seed, decoding.
      max_new: longest answer in positions.
      text_sampling: how text tokens are chosen.
      prompt_positions, prompt_audio: length of the prompt, and how much of it is audio.
      seconds: of audio that were uploaded.
    """

    task: str
    job: Job
    max_new: int
    text_sampling: Sampling
    prompt_positions: int
    prompt_audio: int
    seconds: float = 0.0


class Maker:
    """Makes jobs of requests; its methods may be called from several threads.

    Args:
      model: the model.
      voices: codes int [frames, C] of each voice.
      history: earlier spoken answers.
      limits: of a request.
      name: of the model, as requests call it.
    """

    def __init__(
        self, model: MimoAudio, voices: Mapping[str, np.ndarray], history: History, limits: Limits, name: str
    ) -> None:
        self._model, self._voices, self._history, self._limits, self.name = model, voices, history, limits, name

    def chat(self, request: ChatRequest) -> Ordered:
        """A chat; see `docs/serving.md` for which task it is. Raises ApiError, as all of these."""
        self.check_model(request.model)
        voice = self._voice(request.voice)
        turns, system = request.turns, request.system
        mixed = next((turn for turn in turns if turn.role == "user" and turn.text and turn.audio), None)
        if mixed is not None and (len(turns) > 1 or request.spoken):
            raise bad(
                f"{mixed.where}.content: text and recording in one message are for a written answer to a single "
                "message; put what is to be kept in mind into a system message, or send two messages",
                f"{mixed.where}.content",
            )
        budget = _Budget(self._model.sample_rate, self._limits.max_audio_seconds)
        seeds = [_seed(request.choices)]
        make = self._model.jobs
        if mixed is not None and mixed.audio is not None:
            task = "audio_understanding"
            waves = [budget(mixed.audio)]
            [job] = make.audio_understanding(waves, [mixed.text or ""], thinking=request.thinking, seeds=seeds)
        else:
            messages = [self._message(turn, budget) for turn in turns]
            if request.spoken:
                task = "spoken_dialogue"
                [job] = make.spoken_dialogue([messages], system_prompt=system, voice=voice, seeds=seeds)
            elif any(turn.role == "user" and turn.audio for turn in turns):
                task = "speech_to_text_dialogue"
                [job] = make.speech_to_text_dialogue([messages], thinking=request.thinking, seeds=seeds)
            else:
                task = "text_dialogue"
                [job] = make.text_dialogue([messages], thinking=request.thinking, seeds=seeds)
        if system is not None and not request.spoken:
            job = _led(job, system)
        return self._ordered(task, job, request.choices, budget.used, "messages")

    def speech(self, request: SpeechRequest) -> Ordered:
        """Speech of a text, in a style and a voice."""
        self.check_model(request.model)
        voice, seed = self._voice(request.voice), _seed(request.choices)
        make, voices = self._model.jobs, None
        if voice is not None:
            voices = [voice]
        if request.style is not None:
            task = "instruct_tts"
            [job] = make.instruct_tts([request.text], [request.style], voices, seeds=[seed])
        elif voices is None:
            task = "tts"
            [job] = make.tts([request.text], seeds=[seed])
        else:
            # Plain speech knows no voice. The task that does takes a request in the user's own words.
            task = "natural_instruction_tts"
            language = prompts.language_of(request.text)
            wording = prompts.choose_instruction(prompts.TTS_INSTRUCTIONS, seed, language)
            [job] = make.natural_instruction_tts([f"{wording}: {request.text}"], voices, seeds=[seed])
        return self._ordered(task, job, request.choices, 0.0, "input")

    def transcription(self, request: TranscriptionRequest) -> Ordered:
        """What is said in a recording."""
        self.check_model(request.model)
        budget = _Budget(self._model.sample_rate, self._limits.max_audio_seconds)
        waves = [budget(request.audio)]
        language = request.language or "en"
        [job] = self._model.jobs.asr(waves, language=language, seeds=[_seed(request.choices)])
        return self._ordered("asr", job, request.choices, budget.used, "file")

    # ----- parts -----------------------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for a model that is not this one; None is this one."""
        if name is not None and name != self.name:
            raise ApiError(404, f"model is {name[:100]!r}; here it is {self.name!r}", "model", "model_not_found")

    def _voice(self, name: str) -> np.ndarray | None:
        """Codes of a voice; None = the model's own. A name is looked up and nothing else."""
        if name == DEFAULT_VOICE:
            return None
        if name not in self._voices:
            known = ", ".join([DEFAULT_VOICE, *sorted(self._voices)])
            raise bad(f"voice is {name[:100]!r}; choose one of {known}", "voice", "unknown_voice")
        return self._voices[name]

    def _message(self, turn: Turn, budget: _Budget) -> Message:
        if turn.spoken is not None:
            found, where = self._history.find(turn.spoken), f"{turn.where}.audio.id"
            if found is None:
                raise bad(f"{where} is no answer that is still known; send data and transcript", where, "unknown_audio")
            return Message("assistant", Speech(found.text, found.codes))
        if turn.audio is None:
            return Message(turn.role, turn.text or "")
        wave = budget(turn.audio)
        return Message(turn.role, wave if turn.role == "user" else Speech(turn.text or "", wave))

    def _ordered(self, task: str, job: Job, choices: Choices, seconds: float, where: str) -> Ordered:
        max_new = self._limits.max_new if choices.max_new is None else choices.max_new
        sampling = _sampling(choices, job.decoding.text)
        request: Request = self._model.request(job, max_new, None, sampling)
        length = len(request.text)
        if length >= self._model.engine.max_positions:
            raise bad(
                f"{where}: the prompt has {length} positions (text tokens and patches of 0.16 s); "
                f"{self._model.engine.max_positions} is the limit for prompt and answer: send less",
                where,
                "context_length_exceeded",
            )
        heard = int((request.text == self._model.config.empty_token_id).sum())
        return Ordered(task, job, max_new, sampling, length, heard, seconds)


class _Budget:
    """Decodes the recordings of a request as long as they are not too long together."""

    def __init__(self, sample_rate: int, seconds: float) -> None:
        self._rate, self._left, self.used = sample_rate, seconds, 0.0

    def __call__(self, recording: Recording) -> np.ndarray:
        wave = sound.decode(recording, self._rate, self._left)
        seconds = len(wave) / self._rate
        self._left, self.used = max(0.0, self._left - seconds), self.used + seconds
        return wave


def _seed(choices: Choices) -> int:
    return secrets.randbits(32) if choices.seed is None else choices.seed


def _sampling(choices: Choices, usual: Sampling) -> Sampling:
    """The task's own sampling, changed as asked for; temperature 0 takes the best token."""
    if choices.temperature is None and choices.top_p is None:
        return usual
    temperature = usual.temperature if choices.temperature is None else choices.temperature
    if (temperature is not None and temperature < 1e-3) or (choices.temperature is None and not usual.do_sample):
        return GREEDY
    # 0 would mean all tokens there, and the best one alone here.
    top_p = usual.top_p if choices.top_p is None else max(choices.top_p, 1e-6)
    return Sampling(True, temperature, usual.top_k, top_p)


def _led(job: Job, system: str) -> Job:
    """The job with a system prompt at the start of the first user turn, where spoken dialogues have it.

    The released prompts of written answers know none.
    """
    turn = next(number for number, segment in enumerate(job.segments) if getattr(segment, "text", None) == prompts.USER)
    lead = [TextSegment(system, role="user"), TextSegment("\n\n", role="user")]
    segments = [*job.segments[: turn + 1], *lead, *job.segments[turn + 1 :]]
    return dataclasses.replace(job, segments=segments)
