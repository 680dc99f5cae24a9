"""Metrics: error rates, speech quality, entropies, bootstrap intervals.

Deterministic, whatever the number of workers.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from mimo_jax.objectives.transcripts import normalise_text

PESQ_RATE = 16_000  # of both modes, as codec papers report them
_BOOTSTRAP_SEED = 20_251_223
_MEL_FLOOR = 1e-5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with what is needed to trust it: number of items and a 95 % bootstrap interval over items."""

    value: float
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, float | int | list[float]]:
        """JSON form ``{"value", "n", "interval_95": [low, high]}``."""
        return {"value": self.value, "n": self.n, "interval_95": [self.low, self.high]}


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float], draws: int = 1000) -> Estimate:
    """Sum of numerators over sum of denominators, its 95 % interval by resampling items (percentile bootstrap).

    Raises:
      ValueError: no items, or denominators that sum to 0.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(top) != len(bottom) or not len(top) or bottom.sum() <= 0:
        raise ValueError(f"need items with a positive total, got {len(top)} with total {bottom.sum():g}")
    rng = np.random.Generator(np.random.Philox(_BOOTSTRAP_SEED))
    samples = np.empty(draws)
    for i in range(draws):
        chosen = rng.integers(0, len(top), len(top))
        samples[i] = top[chosen].sum() / max(bottom[chosen].sum(), 1e-12)
    low, high = np.percentile(samples, (2.5, 97.5))
    return Estimate(float(top.sum() / bottom.sum()), len(top), float(low), float(high))


def mean_estimate(values: Sequence[float], draws: int = 1000) -> Estimate:
    """Mean over items with its interval.

    Raises:
      ValueError: no items.
    """
    return ratio_estimate(values, [1.0] * len(values), draws)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference words) after `normalise_text`."""
    return _errors(normalise_text(reference).split(), normalise_text(hypothesis).split())


def character_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(character edits, reference characters) after `normalise_text`; spaces do not count."""
    return _errors(list(normalise_text(reference).replace(" ", "")), list(normalise_text(hypothesis).replace(" ", "")))


def _errors(reference: list[str], hypothesis: list[str]) -> tuple[int, int]:
    import jiwer

    if not reference:  # jiwer refuses an empty reference; every word is an insertion then
        return len(hypothesis), 0
    out = jiwer.process_words([" ".join(reference)], [" ".join(hypothesis)])
    return out.substitutions + out.deletions + out.insertions, len(reference)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> Estimate:
    """Corpus word error rate (all edits over all reference words; Chinese per character)."""
    pairs = [word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return ratio_estimate([edits for edits, _ in pairs], [words for _, words in pairs])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> Estimate:
    """Corpus character error rate."""
    pairs = [character_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return ratio_estimate([edits for edits, _ in pairs], [characters for _, characters in pairs])


def exact_match(references: Sequence[str], hypotheses: Sequence[str]) -> Estimate:
    """Share of answers equal to the reference after `normalise_text`."""
    return mean_estimate([normalise_text(r) == normalise_text(h) for r, h in zip(references, hypotheses, strict=True)])


def identical(reference: str, answer: str) -> bool:
    """Whether an answer is the reference letter by letter, case and punctuation too; space around it does not count."""
    return answer.strip() == reference.strip()


def ends_with(answer: str, words: str) -> bool:
    """Whether the last words of an answer are these, after `normalise_text`: what a full sentence leads up to."""
    said, wanted = normalise_text(answer).split(), normalise_text(words).split()
    return bool(wanted) and said[-len(wanted) :] == wanted


def paired_difference(
    mine: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]], draws: int = 1000
) -> Estimate:
    """How much more one system has than another on the same items, with its interval (paired bootstrap over items).

    Args:
      mine, base: (numerator, denominator) of each item, in one order; an item has one denominator in both.
      draws: of the bootstrap.

    Raises:
      ValueError: items of different numbers or denominators, no items, or denominators that sum to 0.
    """
    weights = [weight for _, weight in base]
    if [weight for _, weight in mine] != weights:
        raise ValueError("the items of both systems must be the same, in one order")
    return ratio_estimate([a - b for (a, _), (b, _) in zip(mine, base, strict=True)], weights, draws)


def unigram_entropy(codes: np.ndarray, vocabulary_size: int | None = None) -> float:
    """Entropy in nats of the empirical distribution of integer codes: what always guessing by frequency costs.

    Raises:
      ValueError: no codes.
    """
    codes = np.asarray(codes).reshape(-1)
    if not codes.size:
        raise ValueError("unigram entropy needs at least one code")
    counts = np.bincount(codes, minlength=vocabulary_size or 0).astype(np.float64)
    p = counts[counts > 0] / codes.size
    return float(-(p * np.log(p)).sum())


def unigram_cross_entropy(codes: np.ndarray, train_codes: np.ndarray, vocabulary_size: int) -> float:
    """Cost in nats per code of held-out codes under the training set's unigram frequencies, add-one smoothed."""
    counts = np.bincount(np.asarray(train_codes).reshape(-1), minlength=vocabulary_size) + 1.0
    log_p = np.log(counts / counts.sum())
    return float(-log_p[np.asarray(codes).reshape(-1)].mean())


@dataclasses.dataclass(frozen=True)
class SpeechQuality:
    """Quality of one reconstruction; NaN where a measure is not defined (too short, no speech found, not finite).

    Of silence PESQ is not defined, and STOI is 0.
    """

    pesq_wb: float
    pesq_nb: float
    stoi: float
    mel_distance: float


def speech_quality(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> SpeechQuality:
    """PESQ (ITU-T P.862.2 / P.862), STOI (Taal et al. 2011) and mel distance of two mono waves; the longer is cut."""
    n = min(len(reference), len(degraded))
    reference, degraded = np.asarray(reference[:n], np.float64), np.asarray(degraded[:n], np.float64)
    if n == 0 or not np.isfinite(degraded).all():
        return SpeechQuality(np.nan, np.nan, np.nan, np.nan)
    return SpeechQuality(
        _pesq(reference, degraded, sample_rate, "wb"),
        _pesq(reference, degraded, sample_rate, "nb"),
        _stoi(reference, degraded, sample_rate),
        mel_distance(reference, degraded, sample_rate),
    )


def _resample(wave: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    import soxr

    return wave if from_rate == to_rate else soxr.resample(wave, from_rate, to_rate)


def pesq_is_there() -> bool:
    """Whether PESQ can be computed: its package exists as source only, and may be missing without a C compiler."""
    return importlib.util.find_spec("pesq") is not None


def _pesq(reference: np.ndarray, degraded: np.ndarray, sample_rate: int, mode: str) -> float:
    if not pesq_is_there():
        return float("nan")
    import pesq

    reference, degraded = (_resample(wave, sample_rate, PESQ_RATE) for wave in (reference, degraded))
    try:
        return float(pesq.pesq(PESQ_RATE, reference, degraded, mode))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError, ValueError):  # ValueError: silence makes it NaN inside
        return float("nan")


def _stoi(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    import warnings

    import pystoi

    with warnings.catch_warnings():
        # Below 30 frames of speech the measure is undefined; the package then warns and returns 1e-5.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, degraded, sample_rate))
        except (RuntimeWarning, ValueError):
            return float("nan")


def log_mel_frames(wave: np.ndarray, sample_rate: int, num_mels: int = 80) -> np.ndarray:
    """Natural-log mel magnitudes float64 [frames, num_mels]; window 25 ms, hop 10 ms, floor 1e-5."""
    from mimo_jax.models.recogniser import mel_filters

    window, hop = int(0.025 * sample_rate), int(0.01 * sample_rate)
    n_fft = 1 << (window - 1).bit_length()
    padded = np.pad(np.asarray(wave, np.float64), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    return np.log(
        np.maximum(np.abs(np.fft.rfft(frames, n_fft)) @ mel_filters(num_mels, n_fft, sample_rate), _MEL_FLOOR)
    )


def mel_distance(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> float:
    """Mean absolute difference of `log_mel_frames`; the longer wave is cut."""
    n = min(len(reference), len(degraded))
    return float(np.abs(log_mel_frames(reference[:n], sample_rate) - log_mel_frames(degraded[:n], sample_rate)).mean())


def _quality_of(arguments: tuple[np.ndarray, np.ndarray, int]) -> SpeechQuality:
    return speech_quality(*arguments)


def speech_qualities(
    references: Sequence[np.ndarray], degraded: Sequence[np.ndarray], sample_rate: int, workers: int | None = None
) -> list[SpeechQuality]:
    """`speech_quality` of each pair, in order, over processes (PESQ takes about 0.1 s per second of audio)."""
    work = [(r, d, sample_rate) for r, d in zip(references, degraded, strict=True)]
    workers = min(workers or os.cpu_count() or 1, max(1, len(work) // 4))
    if workers <= 1:
        return [_quality_of(item) for item in work]
    return list(_processes(workers).map(_quality_of, work, chunksize=4))


@functools.cache
def _processes(workers: int) -> ProcessPoolExecutor:
    """A pool for the life of the process: starting one takes seconds, and an evaluation has several parts."""
    # spawn: forking a process that runs XLA's threads can deadlock
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def finite_mean(values: Sequence[float]) -> Estimate | None:
    """`mean_estimate` over the finite values, None if there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return mean_estimate(finite) if finite else None


def permutation_texts(texts: Sequence[str], seed: int) -> list[str]:
    """Texts in an order where each place holds another item's text: references for the chance level."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(texts))
    shuffled: list[str] = [""] * len(texts)
    for place, following in zip(order, np.roll(order, -1), strict=True):
        shuffled[place] = texts[following]
    return shuffled
