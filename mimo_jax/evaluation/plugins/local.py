"""Plug-ins that need no download: the project's recogniser, hashed character n-grams, the timbre of a voice."""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.evaluation.plugins.base import digest, unit_length


class CtcTranscriber:
    """The project's own recogniser (`mimo_jax.evaluation.judge.CtcJudge`), for the language that it was trained on.

    Args:
      folder: where the recogniser run exported it.

    Raises:
      UserError: the folder holds none.
    """

    def __init__(self, folder: str):
        from mimo_jax.evaluation.judge import CtcJudge

        try:
            self._judge = CtcJudge.load(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"ctc:{folder}: {error}") from error
        self.identity = f"ctc {digest(*sorted(path for path in Path(folder).iterdir() if path.is_file()))}"

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int, language: str) -> list[str]:
        """See `base.Transcriber`; ``language`` makes no difference."""
        from mimo_jax.data.audio import resample

        rate = self._judge.config.sample_rate
        return self._judge.transcribe(
            [resample(np.asarray(wave, np.float32), sample_rate, rate) if len(wave) else wave for wave in waves]
        )


class HashingTextEmbedder:
    """Character n-grams of a text, hashed: how many letters in sequence two texts share, not what they mean.

    A fallback for closed questions where an answer repeats one of the choices in its own words or in a sentence; an
    answer in other words ("a feline" for "cat") is lost on it, so scores are not comparable with those of a trained
    embedder. N-grams of 1 to 4 characters, after NFKC and lower case, marks as spaces, a space at each side of a
    word; weights 1 + ln(count); signed CRC-32 into `SIZE` numbers (Weinberger et al. 2009).
    """

    SIZE = 4096
    _LENGTHS = (1, 2, 3, 4)
    identity = f"hashing n=1-4 D={SIZE}"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `base.TextEmbedder`."""
        vectors = np.zeros((len(texts), self.SIZE))
        for row, text in enumerate(texts):
            for gram, count in self._grams(text).items():
                code = zlib.crc32(gram.encode())
                vectors[row, code % self.SIZE] += (1 if code >> 31 else -1) * (1 + np.log(count))
        return unit_length(vectors)

    def _grams(self, text: str) -> Counter[str]:
        folded = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", text).lower())
        padded = f" {' '.join(folded.split())} "
        grams = (padded[i : i + n] for n in self._LENGTHS for i in range(len(padded) - n + 1))
        return Counter(gram for gram in grams if not gram.isspace())


class TimbreSpeakerEmbedder:
    """The mean mel cepstrum of a voice: how its average spectrum is shaped, without any trained model.

    A fallback that tells clearly different voices apart where recordings were made alike. It does not hear pitch or
    manner, takes another microphone, codec or noise for another voice, and its cosines are high for any two voices
    (0.6 on average), so they are not comparable with those of a trained model. On eleven synthetic voices, four clean
    sentences each, its equal error rate is 6 %.

    Coefficients 1 to 19 of 40 mel bands up to 8 kHz, each times the square root of its number so that the first do
    not decide alone, averaged over the frames within 30 dB of the loudest.
    """

    _RATE, _BANDS, _COEFFICIENTS, _RANGE_DB = 16_000, 40, 20, 30.0
    identity = "builtin mean cepstrum 1-19 of 40 bands"

    def embed(self, waves: Sequence[np.ndarray], sample_rate: int) -> np.ndarray:
        """See `base.SpeakerEmbedder`."""
        vectors = np.zeros((len(waves), self._COEFFICIENTS - 1))
        for row, wave in enumerate(waves):
            if np.any(wave):
                vectors[row] = self._mean_cepstrum(np.asarray(wave, np.float32), sample_rate)
        return unit_length(vectors)

    def _mean_cepstrum(self, wave: np.ndarray, sample_rate: int) -> np.ndarray:
        from mimo_jax.data.audio import resample
        from mimo_jax.evaluation.metrics import log_mel_frames

        wave = resample(wave, sample_rate, self._RATE)
        # The mel magnitudes have a floor; the level of a recording shall not decide what is below it.
        frames = log_mel_frames(wave / max(float(np.abs(wave).max()), 1e-12), self._RATE, self._BANDS)
        level = 10 * np.log10(np.exp(2 * frames).sum(1))
        frames = frames[level >= level.max() - self._RANGE_DB]
        number = np.arange(1, self._COEFFICIENTS)
        cosines = np.cos(np.pi * number[:, None] * (np.arange(self._BANDS) + 0.5) / self._BANDS)
        return np.sqrt(number) * (cosines @ frames.mean(0))
