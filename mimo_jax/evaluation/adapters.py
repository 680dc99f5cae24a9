"""The exported folders behind the suite's protocols: the only place that knows the inference API."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mimo_jax.evaluation.judge import CtcJudge
from mimo_jax.evaluation.systems import ConversionRequest, Reasoned, Systems, Wave
from mimo_jax.inference.sampling import Sampling

_BATCH = 32


class ReleasedCodec:
    """`inference.codec.AudioCodec` of an exported tokenizer folder, with the codebooks that the language model uses."""

    def __init__(self, folder: str | os.PathLike[str], num_quantizers: int = 8):
        from mimo_jax.inference.codec import AudioCodec

        self._codec = AudioCodec.load(folder)
        self._num_quantizers = num_quantizers

    def encode(self, waves: Sequence[Wave]) -> list[np.ndarray]:
        """Codes int [frames, codebooks]."""
        return [np.asarray(codes)[:, : self._num_quantizers] for codes in self._codec.encode(list(waves))]

    def decode(self, codes: Sequence[np.ndarray]) -> list[Wave]:
        """Waves float32 [samples]."""
        waves = self._codec.decode(list(codes), num_quantizers=self._num_quantizers)
        return [np.asarray(wave, np.float32) for wave in waves]


class ReleasedModel:
    """`inference.tasks.MimoAudio` of an exported model folder.

    Args:
      lm_dir, tokenizer_dir: exported folders.
      max_text, max_speech: new positions of a text answer and of a spoken one; a model that was trained for minutes may
        not stop by itself.
      audio_sampling: how codes are drawn; None = as the released inference code does.
      max_thought: new positions that a task which thinks first has on top.
    """

    def __init__(
        self,
        lm_dir: str | os.PathLike[str],
        tokenizer_dir: str | os.PathLike[str],
        max_text: int = 64,
        max_speech: int = 96,
        audio_sampling: Sampling | None = None,
        max_thought: int = 160,
    ):
        from mimo_jax.inference.tasks import MimoAudio

        # One batch size for every task: each new shape costs a compilation.
        self._model = MimoAudio.load(lm_dir, tokenizer_dir, max_batch=_BATCH)
        self._max_text, self._max_thought = max_text, max_thought
        self._spoken: dict[str, Any] = {"max_new": max_speech, "audio_sampling": audio_sampling}

    def asr(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[str]:
        """Transcripts."""
        return [a.text for a in self._model.asr(list(waves), seeds=list(seeds), max_new=self._max_text)]

    def tts(self, texts: Sequence[str], *, seeds: Sequence[int]) -> list[Wave]:
        """Speech of texts."""
        return _spoken(self._model.tts(list(texts), seeds=list(seeds), **self._spoken))

    def continue_speech(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[Wave]:
        """What follows each prompt."""
        return _spoken(self._model.continue_speech(list(waves), seeds=list(seeds), **self._spoken))

    def convert(self, requests: Sequence[ConversionRequest], *, seeds: Sequence[int]) -> list[Wave]:
        """Few-shot conversions."""
        from mimo_jax.inference.tasks import Conversion, Speech

        conversions = [
            Conversion(
                request.instruction,
                [(shot.source, Speech(shot.text, shot.target)) for shot in request.shots],
                request.query,
            )
            for request in requests
        ]
        return _spoken(self._model.speech_to_speech(conversions, seeds=list(seeds), **self._spoken))

    def answer_about_audio(self, waves: Sequence[Wave], questions: Sequence[str], *, seeds: Sequence[int]) -> list[str]:
        """Text answers to questions about recordings."""
        answers = self._model.audio_understanding(
            list(waves), list(questions), seeds=list(seeds), max_new=self._max_text
        )
        return [a.text for a in answers]

    def answer_after_thinking(
        self, waves: Sequence[Wave], questions: Sequence[str], *, seeds: Sequence[int]
    ) -> list[Reasoned[str]]:
        """Text answers to questions about recordings, each after a thought."""
        answers = self._model.audio_understanding(
            list(waves),
            list(questions),
            thinking=True,
            seeds=list(seeds),
            max_new=self._max_text + self._max_thought,
        )
        return [Reasoned(a.text, a.thinking) for a in answers]

    def answer_in_writing(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[str]:
        """Text answers to spoken questions."""
        from mimo_jax.inference.tasks import Message

        dialogues = [[Message("user", wave)] for wave in waves]
        answers = self._model.speech_to_text_dialogue(dialogues, seeds=list(seeds), max_new=self._max_text)
        return [a.text for a in answers]

    def speak_as_instructed(
        self, texts: Sequence[str], instructions: Sequence[str], *, seeds: Sequence[int]
    ) -> list[Reasoned[Wave]]:
        """Speech of texts in described styles, each after a thought."""
        options = self._spoken | {"max_new": self._spoken["max_new"] + self._max_thought}
        answers = self._model.instruct_tts(list(texts), list(instructions), seeds=list(seeds), **options)
        return [Reasoned(w, a.thinking) for w, a in zip(_spoken(answers), answers, strict=True)]

    def answer_in_speech(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[Wave]:
        """Spoken answers."""
        from mimo_jax.inference.tasks import Message

        dialogues = [[Message("user", wave)] for wave in waves]
        return _spoken(self._model.spoken_dialogue(dialogues, seeds=list(seeds), **self._spoken))


def _spoken(answers: Sequence[Any]) -> list[Wave]:
    """Their waves; empty where nothing was spoken."""
    return [np.zeros(0, np.float32) if answer.wave is None else answer.wave for answer in answers]


def load_systems(
    recogniser_dir: str | os.PathLike[str],
    tokenizer_dir: str | os.PathLike[str],
    lm_dir: str | os.PathLike[str] | None,
    audio_sampling: Sampling | None = None,
) -> Systems:
    """Loads the recogniser and the exported folders; `audio_sampling` as of `ReleasedModel`.

    Raises:
      FileNotFoundError: a folder is not what it should be.
    """
    judge = CtcJudge.load(recogniser_dir)
    codec = ReleasedCodec(tokenizer_dir)
    model = ReleasedModel(lm_dir, tokenizer_dir, audio_sampling=audio_sampling) if lm_dir else None
    return Systems(judge, codec, model, judge.config.sample_rate)
