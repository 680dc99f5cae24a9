"""Every task of the released model by name, over lists of inputs: audio and text in, text and audio out.

    model = MimoAudio.load("exported", "exported_tokenizer")
    [answer] = model.asr(["question.wav"])                     # answer.text
    [answer] = model.tts(["Good morning."])                    # answer.wave, float32 at model.sample_rate
    [answer] = model.spoken_dialogue([[Message("user", Path("question.wav"))]])
    for piece in model.stream(*model.jobs.tts(["Good morning."])):
        ...                                                    # piece.wave, piece.text, as they come

Audio goes in as a path, as a waveform (float array [samples] at `sample_rate`) or as codes (integer array [frames, C]).
Prompts are made in `jobs`, the tasks' decoding defaults stand in `decoding.TASKS`. An answer that
ended by length keeps its last position, which the released code drops.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data import prompts
from mimo_jax.data.postprocess import postprocess, split_thinking
from mimo_jax.data.sequence import Layout, arrays
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.inference import loading
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.engine import Engine
from mimo_jax.inference.jobs import Audio, Conversion, Job, Jobs, Message, Question, Speech
from mimo_jax.inference.loading import Name
from mimo_jax.inference.requests import Request, Result, Update, joined
from mimo_jax.inference.sampling import Sampling
from mimo_jax.inference.speech import Listener, streaming_decoder
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute

__all__ = ["Answer", "Audio", "Conversion", "Message", "MimoAudio", "Piece", "Question", "Speech"]


class Generator(Protocol):
    """What answers requests: an `Engine`, or a `Service` where several threads ask."""

    @property
    def config(self) -> MimoAudioConfig:
        """Shape of the model."""

    @property
    def max_positions(self) -> int:
        """Limit of prompt and answer together."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Answers in the order of the requests."""

    def stream(self, request: Request) -> Iterator[Update]:
        """One answer as it comes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What the model answered.

    Attributes:
      text: the answer's words, without thinking and without markers.
      thinking: what was thought before the answer; None where the task or the model does not think.
      wave: float32 [samples] at the model's `sample_rate`, empty where nothing was spoken; None for text tasks.
      codes: int32 [frames, C] of the spoken answer.
      positions: generated positions (text tokens and patches).
      stop_reason: "stop", or "length" where the answer was cut by a limit.
    """

    text: str
    thinking: str | None
    wave: np.ndarray | None
    codes: np.ndarray
    positions: int
    stop_reason: Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """The next part of an answer.

    Attributes:
      text: words of the answer, to be appended to those before.
      thinking: likewise, of what is thought before the answer.
      wave: float32 [samples] to be played after those before; may be empty.
      answer: the whole answer, in the last piece; else None. Its wave is that of the pieces.
    """

    text: str
    thinking: str
    wave: np.ndarray
    answer: Answer | None = None


class MimoAudio:
    """A language model with its text tokenizer and audio codec.

    The task methods take lists and run them batched. Keyword arguments are those of the method of the same name of
    `Jobs` (`model.jobs`), and for all of them:
      seeds: one integer per input (default: 0, 1, 2, ...); an answer depends on its own seed, not on its neighbours.
      max_new, min_new: limits of the answer in positions (6.25 patches are a second of speech at 25 frames/s).
      text_sampling, audio_sampling: `Sampling` instead of the task's own.
    """

    def __init__(self, engine: Generator, tokenizer: TextTokenizer, codec: AudioCodec):
        config = engine.config
        if tokenizer.special.empty != config.empty_token_id:
            raise UserError(
                f"the text tokenizer's <|empty|> is {tokenizer.special.empty}, the model's {config.empty_token_id}: "
                "they do not belong together"
            )
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the text tokenizer has ids up to {tokenizer.vocab_size - 1}, the model {config.vocab_size} of them"
            )
        self.engine, self.tokenizer, self.codec = engine, tokenizer, codec
        self.layout = Layout(tokenizer.special, config.speech_zeroemb_idx, config.group_size)
        self.jobs = Jobs(self.encode, config.group_size)

    @classmethod
    def load(
        cls,
        lm: Name,
        tokenizer: Name,
        *,
        text_tokenizer: Name | None = None,
        dtype: str = "float32",
        **engine: Any,
    ) -> MimoAudio:
        """A language model with its text tokenizer, and an audio tokenizer.

        Args:
          lm, tokenizer: each a folder in the released layout, the folder of a training run (its newest checkpoint), or
            a repository of the Hugging Face hub ("owner/name").
          text_tokenizer: folder of the text tokenizer, where it is not beside the language model.
          dtype: of the language model's weights, activations and cache ("bfloat16" on accelerators).
          engine: further arguments of `Engine` (max_batch, max_positions ...).

        Raises:
          UserError: a name that leads nowhere, a folder that is missing something, named.
        """
        config, params, text = loading.language_model(lm, text_tokenizer)
        compute = Compute(dtype=dtype, param_dtype=dtype)
        return cls(Engine(config, params, compute, **engine), text, loading.codec(tokenizer))

    @property
    def config(self) -> MimoAudioConfig:
        """Shape of the language model."""
        return self.engine.config

    @property
    def sample_rate(self) -> int:
        """Of waveforms in and out, Hz."""
        return self.codec.sample_rate

    # ----- tasks ---------------------------------------------------------------------------------------------------

    def answer(
        self,
        jobs: Sequence[Job],
        *,
        max_new: int | None = None,
        min_new: int | None = None,
        text_sampling: Sampling | None = None,
        audio_sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answers to jobs, in their order; options as of the class.

        Raises:
          RequestError: jobs that cannot run, such as prompts that are too long (`reasons`: which and why).
        """
        requests = [self.request(job, max_new, min_new, text_sampling, audio_sampling) for job in jobs]
        answers = [self._answer(job, r) for job, r in zip(jobs, self.engine.generate(requests), strict=True)]
        spoken = [a.codes for job, a in zip(jobs, answers, strict=True) if job.decoding.spoken and len(a.codes)]
        waves = iter(self.codec.decode(spoken))
        silence = np.zeros(0, np.float32)
        return [
            dataclasses.replace(a, wave=next(waves) if len(a.codes) else silence) if job.decoding.spoken else a
            for job, a in zip(jobs, answers, strict=True)
        ]

    def stream(
        self,
        job: Job,
        *,
        max_new: int | None = None,
        min_new: int | None = None,
        text_sampling: Sampling | None = None,
        audio_sampling: Sampling | None = None,
        lookahead: int | None = 40,
    ) -> Iterator[Piece]:
        """One answer while it is made; closing the iterator ends the work. Options as of the class, and

        Args:
          job: what to answer.
          max_new, min_new, text_sampling, audio_sampling: as of the class.
          lookahead: mel frames (10 ms) that the vocoder waits for before it gives sound; None = all that it can see,
            which is as good as decoding the whole at once, and 1.6 s later with the published tokenizer.

        Raises:
          ValueError: a job that cannot run.
        """
        decoding = job.decoding
        request = self.request(job, max_new, min_new, text_sampling, audio_sampling)
        decoder = streaming_decoder(self.codec, self.layout.group_size, lookahead) if decoding.spoken else None
        updates = self.engine.stream(request)  # last: nobody would end it where something else fails
        listener = Listener(self.tokenizer.decode, self.layout, job.thinking, decoding.until)
        return self._pieces(job, updates, listener, decoder)

    def _pieces(self, job: Job, updates: Iterator[Update], listener: Listener, decoder: Any) -> Iterator[Piece]:
        heard: list[Update] = []
        waves = [np.zeros(0, np.float32)]
        try:
            for update in updates:
                heard.append(update)
                text, thinking, codes = listener(update)
                last = update.stop_reason is not None
                if decoder is not None:
                    waves.append(decoder(codes, last=last))
                answer = None
                if last:
                    answer = self._answer(job, joined(heard))
                    if decoder is not None:
                        answer = dataclasses.replace(answer, wave=np.concatenate(waves))
                yield Piece(text, thinking, waves[-1] if decoder is not None else waves[0], answer)
        finally:
            close = getattr(updates, "close", None)
            if close is not None:
                close()

    def asr(self, audios: Sequence[Audio], **options: Any) -> list[Answer]:
        """Transcripts."""
        return self._run(self.jobs.asr, (audios,), options)

    def tts(self, texts: Sequence[str], **options: Any) -> list[Answer]:
        """Speech of texts."""
        return self._run(self.jobs.tts, (texts,), options)

    def instruct_tts(
        self, texts: Sequence[str], styles: Sequence[str], voices: Sequence[Audio] | None = None, **options: Any
    ) -> list[Answer]:
        """Speech of texts in described styles, after reasoning about them."""
        return self._run(self.jobs.instruct_tts, (texts, styles, voices), options)

    def natural_instruction_tts(
        self, requests: Sequence[str], voices: Sequence[Audio] | None = None, **options: Any
    ) -> list[Answer]:
        """Speech for requests that name style and words themselves."""
        return self._run(self.jobs.natural_instruction_tts, (requests, voices), options)

    def audio_understanding(self, audios: Sequence[Audio], questions: Sequence[str], **options: Any) -> list[Answer]:
        """Answers to one question per recording."""
        return self._run(self.jobs.audio_understanding, (audios, questions), options)

    def spoken_dialogue(self, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[Answer]:
        """Spoken answers to dialogues that end with the user's turn."""
        return self._run(self.jobs.spoken_dialogue, (dialogues,), options)

    def speech_to_text_dialogue(self, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[Answer]:
        """Written answers to dialogues in which the user speaks."""
        return self._run(self.jobs.speech_to_text_dialogue, (dialogues,), options)

    def text_dialogue(self, dialogues: Sequence[Sequence[Message]], **options: Any) -> list[Answer]:
        """Written answers to written dialogues."""
        return self._run(self.jobs.text_dialogue, (dialogues,), options)

    def speech_to_speech(self, requests: Sequence[Conversion], **options: Any) -> list[Answer]:
        """Few-shot conversions by a base model."""
        return self._run(self.jobs.speech_to_speech, (requests,), options)

    def few_shot_question_answering(self, questions: Sequence[Question], **options: Any) -> list[Answer]:
        """Answers by a base model that has seen some in its prompt."""
        return self._run(self.jobs.few_shot_question_answering, (questions,), options)

    def continue_speech(self, audios: Sequence[Audio], **options: Any) -> list[Answer]:
        """What a base model says after each recording."""
        return self._run(self.jobs.continue_speech, (audios,), options)

    def pretrain_asr(self, audios: Sequence[Audio], **options: Any) -> list[Answer]:
        """Transcripts by a base model, in the format of pretraining."""
        return self._run(self.jobs.pretrain_asr, (audios,), options)

    def pretrain_tts(self, texts: Sequence[str], **options: Any) -> list[Answer]:
        """Speech by a base model, in the format of pretraining."""
        return self._run(self.jobs.pretrain_tts, (texts,), options)

    def _run(self, make: Callable[..., list[Job]], inputs: tuple[Any, ...], options: dict[str, Any]) -> list[Answer]:
        """Jobs of the inputs, answered: the options that `answer` knows go there, the others to `make`."""
        for number, given in enumerate(inputs):
            if isinstance(given, str | os.PathLike | np.ndarray):
                what = repr(given)[:60]
                raise ValueError(f"argument {number + 1} is {what}: tasks take lists; put it into one, [...]")
        ours = {name: options[name] for name in _ANSWER_OPTIONS if name in options}
        rest = {name: value for name, value in options.items() if name not in ours}
        return self.answer(make(*inputs, **rest), **ours)

    # ----- parts ---------------------------------------------------------------------------------------------------

    def encode(self, audios: Sequence[Audio]) -> list[np.ndarray]:
        """Codes int32 [frames, C] of recordings; codes pass through.

        Raises:
          AudioError: a file that cannot be used, with its reason. ValueError: an array that is neither.
        """
        from mimo_jax.data.audio import load_audio

        codes: list[np.ndarray | None] = []
        waves = []
        for number, audio in enumerate(audios):
            if not isinstance(audio, np.ndarray):
                waves.append(load_audio(audio, self.sample_rate))
            elif audio.ndim == 1 and np.issubdtype(audio.dtype, np.floating):
                waves.append(audio)
            elif audio.ndim == 2 and np.issubdtype(audio.dtype, np.integer):
                codes.append(audio)
                continue
            else:
                raise ValueError(
                    f"audio {number} is {audio.dtype} {audio.shape}: give a waveform (float [samples]) or codes "
                    f"(integers [frames, {self.layout.channels}])"
                )
            codes.append(None)
        encoded = iter(self.codec.encode(waves, self.layout.channels) if waves else ())
        return [next(encoded) if c is None else c for c in codes]

    def request(
        self,
        job: Job,
        max_new: int | None = None,
        min_new: int | None = None,
        text_sampling: Sampling | None = None,
        audio_sampling: Sampling | None = None,
    ) -> Request:
        """What the engine is asked for; options as of the class."""
        decoding = job.decoding
        text, audio, _ = arrays(job.segments, self.tokenizer.encode, self.layout)
        if max_new is None:
            max_new = self.engine.max_positions if decoding.max_new is None else decoding.max_new
        return Request(
            text,
            audio,
            text_sampling=text_sampling or decoding.text,
            audio_sampling=audio_sampling or decoding.audio,
            stop_tokens=tuple(self.tokenizer.token_id(token) for token in decoding.stop),
            min_new=min(decoding.min_new, max_new - 1) if min_new is None else min_new,
            max_new=max_new,
            seed=job.seed,
        )

    def _answer(self, job: Job, result: Result) -> Answer:
        audio = np.empty((len(result.text), self.layout.group_size, self.layout.channels), np.int32)
        audio[:] = self.layout.empty_codes
        audio[result.text == self.layout.special.empty] = result.codes
        stopped = result.stop_reason == "stop"
        made = postprocess(result.text, audio, self.tokenizer.decode, self.layout, drop_last=stopped)
        thought, answer = made.thinking, made.answer
        if job.thinking and thought is None:
            # The block was opened by the prompt and never closed: all of it is thought.
            thought, answer = split_thinking(prompts.THINK_START + made.text)
        until = job.decoding.until
        if until:
            answer = answer.split(until, 1)[0].rstrip()
        return Answer(answer, thought or None, None, made.codes, len(result.text), result.stop_reason)


_ANSWER_OPTIONS = ("max_new", "min_new", "text_sampling", "audio_sampling")
