"""The exported folders behind the suite's protocols: the only place that knows the inference API."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from mimo_jax.evaluation.systems import ConversionRequest, Wave


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
    """`inference.tasks.MimoAudio` of an exported model folder."""

    def __init__(self, lm_dir: str | os.PathLike[str], tokenizer_dir: str | os.PathLike[str]):
        from mimo_jax.inference.tasks import MimoAudio

        self._model = MimoAudio.load(lm_dir, tokenizer_dir)

    def asr(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[str]:
        """Transcripts."""
        return self._model.asr(list(waves), seeds=list(seeds))

    def tts(self, texts: Sequence[str], *, seeds: Sequence[int]) -> list[Wave]:
        """Speech of texts."""
        return self._model.tts(list(texts), seeds=list(seeds))

    def continue_speech(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[Wave]:
        """What follows each prompt."""
        return self._model.continue_speech(list(waves), seeds=list(seeds))

    def convert(self, requests: Sequence[ConversionRequest], *, seeds: Sequence[int]) -> list[Wave]:
        """Few-shot conversions, one call each: requests differ in instruction and shots."""
        return [
            self._model.speech_to_speech(
                request.instruction,
                [(shot.source, shot.text, shot.target) for shot in request.shots],
                request.query,
                seed=seed,
            )
            for request, seed in zip(requests, seeds, strict=True)
        ]

    def answer_about_audio(self, waves: Sequence[Wave], questions: Sequence[str], *, seeds: Sequence[int]) -> list[str]:
        """Text answers to questions about recordings."""
        return self._model.understand(list(waves), list(questions), seeds=list(seeds))

    def answer_in_speech(self, waves: Sequence[Wave], *, seeds: Sequence[int]) -> list[Wave]:
        """Spoken answers."""
        return self._model.spoken_dialogue(list(waves), seeds=list(seeds))
