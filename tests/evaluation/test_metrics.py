"""Metrics against hand-computed values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.evaluation import metrics
from mimo_jax.objectives.transcripts import normalise_text


def test_normalisation():
    assert normalise_text("Don\u2019t  STOP, me-now!") == "don't stop me now"
    assert normalise_text("\u6253\u5f00door\u3002") == "\u6253 \u5f00 door"
    assert normalise_text("\uff11\uff12") == "12"


def test_word_error_rate_is_over_the_corpus():
    result = metrics.word_error_rate(["one two three four", "one"], ["one too three four five", ""])
    assert result.value == pytest.approx(3 / 5)
    assert result.n == 2 and result.low <= result.value <= result.high
    assert metrics.word_error_rate(["\u6253\u5f00\u95e8"], ["\u6253\u5173\u95e8"]).value == pytest.approx(1 / 3)


def test_errors_with_empty_sides():
    assert metrics.word_errors("", "a b") == (2, 0)
    assert metrics.word_errors("a b", "") == (2, 2)
    assert metrics.character_errors("ab c", "abd") == (1, 3)


def test_estimates_are_reproducible_and_cover():
    rng = np.random.default_rng(0)
    values = rng.random(200)
    first, second = metrics.mean_estimate(values), metrics.mean_estimate(values)
    assert first == second
    assert first.low < 0.5 < first.high and first.high - first.low < 0.12
    with pytest.raises(ValueError):
        metrics.mean_estimate([])


@given(st.integers(1, 50))
def test_entropy_of_uniform_codes(size):
    assert metrics.unigram_entropy(np.arange(size)) == pytest.approx(np.log(size))


def test_unigram_cross_entropy_is_never_below_entropy():
    rng = np.random.default_rng(1)
    train, held = rng.integers(0, 16, 1000), rng.integers(0, 8, 500)
    assert metrics.unigram_cross_entropy(held, train, 16) > metrics.unigram_entropy(held)


def _speech_like(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(2 * 24_000) / 24_000
    wave = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time + seed)
    return (0.1 * wave * envelope + 0.001 * rng.normal(size=time.shape)).astype(np.float32)


def test_speech_quality_falls_with_noise():
    clean = _speech_like(0)
    noise = np.random.default_rng(2).normal(size=clean.shape).astype(np.float32)
    same = metrics.speech_quality(clean, clean, 24_000)
    a_bit = metrics.speech_quality(clean, clean + 0.01 * noise, 24_000)
    much = metrics.speech_quality(clean, clean + 0.1 * noise, 24_000)
    assert same.mel_distance == 0 and same.stoi == pytest.approx(1, abs=1e-6) and same.pesq_wb > 4.5
    for name in ("pesq_wb", "pesq_nb", "stoi"):
        assert getattr(same, name) > getattr(a_bit, name) > getattr(much, name)
    assert a_bit.mel_distance < much.mel_distance


def test_undefined_quality_is_nan_not_an_error():
    short = _speech_like(0)[:2000]
    result = metrics.speech_quality(short, short, 24_000)
    assert np.isnan(result.pesq_wb) and np.isnan(result.stoi)
    for silence in (np.zeros(48_000), np.full(48_000, 1e-60)):
        silent = metrics.speech_quality(_speech_like(0), silence, 24_000)
        assert np.isnan(silent.pesq_wb) and np.isnan(silent.pesq_nb) and silent.mel_distance > 0
        assert silent.stoi == pytest.approx(0, abs=1e-6)
    broken = metrics.speech_quality(_speech_like(0), np.full(48_000, np.nan, np.float32), 24_000)
    assert all(np.isnan(value) for value in vars(broken).values())
    assert metrics.finite_mean([np.nan]) is None


def test_workers_do_not_change_results():
    waves = [_speech_like(i) for i in range(8)]
    noisy = [wave + np.float32(0.01) * np.roll(wave, 100) for wave in waves]
    assert metrics.speech_qualities(waves, noisy, 24_000, 1) == metrics.speech_qualities(waves, noisy, 24_000, 2)


@given(st.integers(2, 30), st.integers(0, 5))
def test_shuffled_texts_never_stay_in_place(n, seed):
    texts = [str(i) for i in range(n)]
    shuffled = metrics.permutation_texts(texts, seed)
    assert sorted(shuffled) == sorted(texts) and all(a != b for a, b in zip(texts, shuffled, strict=True))


def test_the_end_of_an_answer():
    assert metrics.ends_with("Three plus four is seven.", "seven") and metrics.ends_with("the pink noise", "pink noise")
    assert not metrics.ends_with("seven it is", "seven") and not metrics.ends_with("seventy seven", "y seven")
    assert not metrics.ends_with("anything", "") and not metrics.ends_with("", "seven")


def test_paired_difference_of_systems_that_err_on_the_same_items():
    errors = [(i % 7, 10) for i in range(40)]
    worse = [(e + 1, n) for e, n in errors]
    difference = metrics.paired_difference(worse, errors)
    assert [difference.value, difference.low, difference.high] == pytest.approx([0.1] * 3)
    assert (
        metrics.ratio_estimate(*zip(*worse, strict=True)).low < metrics.ratio_estimate(*zip(*errors, strict=True)).high
    )
    with pytest.raises(ValueError, match="must be the same"):
        metrics.paired_difference(worse, errors[1:])
