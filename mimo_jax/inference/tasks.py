"""Every task of the released model by name, over lists of inputs: audio and text in, text and audio out.

    model = MimoAudio.load("exported", "exported_tokenizer")
    [answer] = model.asr(["question.wav"])                     # answer.text
    [answer] = model.tts(["Good morning."])                    # answer.wave, float32 at model.sample_rate
    [answer] = model.spoken_dialogue([[Message("user", Path("question.wav"))]])

Audio goes in as a path, as a waveform (float array [samples] at `sample_rate`) or as codes (integer array [frames, C]).
Prompts and decoding defaults are those of the released inference code; where that code errs, the user's meaning wins:
an answer that ended by length keeps its last position, a dialogue keeps its system prompt and voice in every turn, and
a string is always text (a missing file is an error, not a text).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data import prompts
from mimo_jax.data.postprocess import postprocess, split_thinking
from mimo_jax.data.sequence import Layout, Segment, arrays
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.decoding import TASKS
from mimo_jax.inference.engine import Engine, Request, Result
from mimo_jax.inference.sampling import Sampling
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute

Audio = str | os.PathLike[str] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Speech:
    """A spoken utterance with its words."""

    text: str
    audio: Audio


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """One turn of a dialogue: a user's text (str) or audio (path object or array), an assistant's text or `Speech`."""

    role: Literal["user", "assistant"]
    content: str | os.PathLike[str] | np.ndarray | Speech


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A few-shot conversion: what to do, pairs (input, output with its words) that show it, the input to convert."""

    instruction: str
    examples: Sequence[tuple[Audio, Speech]]
    query: Audio


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


class MimoAudio:
    """A language model with its text tokenizer and audio codec.

    The task methods take lists and run them batched. Keyword arguments that all of them share:
      seeds: one integer per input (default: 0, 1, 2, ...); an answer depends on its own seed, not on its neighbours.
      max_new, min_new: limits of the answer in positions (6.25 patches are a second of speech at 25 frames/s).
      text_sampling, audio_sampling: `Sampling` instead of the task's own.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, codec: AudioCodec):
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

    @classmethod
    def load(
        cls,
        lm_dir: str | os.PathLike[str],
        tokenizer_dir: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        **engine: Any,
    ) -> MimoAudio:
        """From folders in the released layout: language model (with its text tokenizer) and audio tokenizer.

        Args:
          lm_dir, tokenizer_dir: the folders.
          dtype: of the language model's weights, activations and cache ("bfloat16" on accelerators).
          engine: further arguments of `Engine` (max_batch, max_positions ...).

        Raises:
          UserError: a folder that is missing something, named.
        """
        from mimo_jax.interop import hf

        config, params = hf.load_lm(lm_dir)
        compute = Compute(dtype=dtype, param_dtype=dtype)
        return cls(
            Engine(config, params, compute, **engine), TextTokenizer.load(lm_dir), AudioCodec.load(tokenizer_dir)
        )

    @property
    def config(self) -> MimoAudioConfig:
        """Shape of the language model."""
        return self.engine.config

    @property
    def sample_rate(self) -> int:
        """Of waveforms in and out, Hz."""
        return self.codec.sample_rate

    # ----- tasks ---------------------------------------------------------------------------------------------------

    def asr(
        self,
        audios: Sequence[Audio],
        *,
        instruction: str | None = None,
        language: prompts.Language | None = "en",
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Transcripts.

        `instruction`: wording of the request; by default one of the known ones, by the seed, in `language` (None = any
        of them: only for a model that was trained on requests in all).
        """
        seeds = _seeds(seeds, len(audios))
        made = [
            prompts.asr(codes, instruction or prompts.choose_instruction(prompts.ASR_INSTRUCTIONS, seed, language))
            for codes, seed in zip(self.encode(audios), seeds, strict=True)
        ]
        return self._answers("asr", made, seeds=seeds, **options)

    def tts(
        self,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Speech of texts."""
        seeds = _seeds(seeds, len(texts))
        wordings = _read_aloud(texts, instruction, seeds)
        return self._answers("tts", list(map(prompts.tts, texts, wordings)), seeds=seeds, **options)

    def instruct_tts(
        self,
        texts: Sequence[str],
        styles: Sequence[str],
        voices: Sequence[Audio] | None = None,
        *,
        instruction: str | None = None,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Speech of texts in described styles, after reasoning about them; `voices`: how the speakers shall sound."""
        seeds = _seeds(seeds, len(texts))
        wordings = _read_aloud(texts, instruction, seeds)
        made = [
            prompts.instruct_tts(*row)
            for row in zip(texts, styles, wordings, self._voices(voices, len(texts)), strict=True)
        ]
        return self._answers("instruct_tts", made, thinking=True, seeds=seeds, **options)

    def natural_instruction_tts(
        self, requests: Sequence[str], voices: Sequence[Audio] | None = None, **options: Any
    ) -> list[Answer]:
        """Speech for requests that name style and words themselves ("Say softly: Good night")."""
        made = [
            prompts.natural_instruction_tts(request, voice)
            for request, voice in zip(requests, self._voices(voices, len(requests)), strict=True)
        ]
        return self._answers("natural_instruction_tts", made, thinking=True, **options)

    def audio_understanding(
        self, audios: Sequence[Audio], questions: Sequence[str], *, thinking: bool = False, **options: Any
    ) -> list[Answer]:
        """Answers to one question per recording."""
        made = [
            prompts.audio_understanding(codes, question, thinking)
            for codes, question in zip(self.encode(audios), questions, strict=True)
        ]
        return self._answers("audio_understanding", made, thinking=thinking, **options)

    def spoken_dialogue(
        self,
        dialogues: Sequence[Sequence[Message]],
        *,
        system_prompt: str | None = None,
        voice: Audio | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Spoken answers to dialogues that end with the user's turn; `voice`: how the model shall sound."""
        codes = None if voice is None else self.encode([voice])[0]
        made = [prompts.spoken_dialogue(m, system_prompt, codes) for m in self._messages(dialogues)]
        return self._answers("spoken_dialogue", made, **options)

    def speech_to_text_dialogue(
        self, dialogues: Sequence[Sequence[Message]], *, thinking: bool = False, **options: Any
    ) -> list[Answer]:
        """Written answers to dialogues in which the user speaks."""
        made = [prompts.text_answer_dialogue(m, thinking) for m in self._messages(dialogues)]
        return self._answers("speech_to_text_dialogue", made, thinking=thinking, **options)

    def text_dialogue(
        self, dialogues: Sequence[Sequence[Message]], *, thinking: bool = False, **options: Any
    ) -> list[Answer]:
        """Written answers to written dialogues."""
        made = [prompts.text_answer_dialogue(m, thinking) for m in self._messages(dialogues)]
        return self._answers("text_dialogue", made, thinking=thinking, **options)

    def speech_to_speech(self, requests: Sequence[Conversion], **options: Any) -> list[Answer]:
        """Few-shot conversions by a base model: the query converted as the examples show."""
        flat = [audio for r in requests for source, target in r.examples for audio in (source, target.audio)]
        shown, queries = iter(self.encode(flat)), self.encode([r.query for r in requests])
        made = []
        for request, query in zip(requests, queries, strict=True):
            examples = [
                prompts.FewShotExample(next(shown), prompts.SpokenText(target.text, next(shown)))
                for _, target in request.examples
            ]
            made.append(prompts.few_shot_speech_to_speech(request.instruction, examples, query))
        return self._answers("speech_to_speech", made, **options)

    def continue_speech(self, audios: Sequence[Audio], **options: Any) -> list[Answer]:
        """What a base model says after each recording; the answer is the continuation alone."""
        group = self.layout.group_size
        # A patch filled up with copies of its last frame would be heard in the middle of the speech.
        made = [prompts.base_continuation(c[: max(len(c) // group * group, 1)]) for c in self.encode(audios)]
        return self._answers("continue_speech", made, **options)

    def pretrain_asr(self, audios: Sequence[Audio], **options: Any) -> list[Answer]:
        """Transcripts by a base model, in the format of pretraining."""
        return self._answers("pretrain_asr", list(map(prompts.base_asr, self.encode(audios))), **options)

    def pretrain_tts(self, texts: Sequence[str], **options: Any) -> list[Answer]:
        """Speech by a base model, in the format of pretraining."""
        return self._answers("pretrain_tts", list(map(prompts.base_tts, texts)), **options)

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

    def _voices(self, voices: Sequence[Audio] | None, count: int) -> Sequence[np.ndarray | None]:
        return [None] * count if voices is None else self.encode(voices)

    def _messages(self, dialogues: Sequence[Sequence[Message]]) -> list[list[prompts.Message]]:
        """The dialogues with their audio encoded, all recordings together."""
        audios = []
        for message in (m for messages in dialogues for m in messages):
            content = message.content.audio if isinstance(message.content, Speech) else message.content
            if not isinstance(content, str) or isinstance(message.content, Speech):
                audios.append(content)
        codes = iter(self.encode(audios))

        def encoded(message: Message) -> prompts.Message:
            content = message.content
            if isinstance(content, str):
                return prompts.Message(message.role, content)
            if isinstance(content, Speech):
                return prompts.Message(message.role, prompts.SpokenText(content.text, next(codes)))
            return prompts.Message(message.role, next(codes))

        return [[encoded(message) for message in messages] for messages in dialogues]

    def _answers(
        self,
        task: str,
        made: Sequence[Sequence[Segment]],
        *,
        thinking: bool = False,
        seeds: Sequence[int] | None = None,
        max_new: int | None = None,
        min_new: int = 0,
        text_sampling: Sampling | None = None,
        audio_sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answers to prompts; `thinking`: the prompt ends inside the think block."""
        decoding = TASKS[task]
        requests = []
        for segments, seed in zip(made, _seeds(seeds, len(made)), strict=True):
            text, audio, _ = arrays(segments, self.tokenizer.encode, self.layout)
            requests.append(
                Request(
                    text,
                    audio,
                    text_sampling=text_sampling or decoding.text,
                    audio_sampling=audio_sampling or decoding.audio,
                    stop_tokens=tuple(self.tokenizer.token_id(token) for token in decoding.stop),
                    min_new=min_new,
                    max_new=self.engine.max_positions if max_new is None else max_new,
                    seed=seed,
                )
            )
        results = self.engine.generate(requests)
        answers = [self._answer(result, thinking) for result in results]
        return self._spoken(answers) if decoding.spoken else answers

    def _answer(self, result: Result, thinking: bool) -> Answer:
        audio = np.empty((len(result.text), self.layout.group_size, self.layout.channels), np.int32)
        audio[:] = self.layout.empty_codes
        audio[result.text == self.layout.special.empty] = result.codes
        stopped = result.stop_reason == "stop"
        made = postprocess(result.text, audio, self.tokenizer.decode, self.layout, drop_last=stopped)
        thought, answer = made.thinking, made.answer
        if thinking and thought is None:
            # The block was opened by the prompt and never closed: all of it is thought.
            thought, answer = split_thinking(prompts.THINK_START + made.text)
        return Answer(answer, thought or None, None, made.codes, len(result.text), result.stop_reason)

    def _spoken(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answers with their waves, decoded together."""
        waves: Iterator[np.ndarray] = iter(self.codec.decode([a.codes for a in answers if len(a.codes)]))
        silence = np.zeros(0, np.float32)
        return [dataclasses.replace(a, wave=next(waves) if len(a.codes) else silence) for a in answers]


def _seeds(seeds: Sequence[int] | None, count: int) -> Sequence[int]:
    if seeds is not None and len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} inputs")
    return range(count) if seeds is None else seeds


def _read_aloud(texts: Sequence[str], instruction: str | None, seeds: Sequence[int]) -> list[str]:
    """The wording of the request for each text: the caller's, or one in the language of the text, by the seed."""
    return [
        instruction or prompts.choose_instruction(prompts.TTS_INSTRUCTIONS, seed, prompts.language_of(text))
        for text, seed in zip(texts, seeds, strict=True)
    ]
