"""Loudness against the standard's own test signals, and the limits of the gain."""

import numpy as np
import pytest

from mimo_jax.preparation.stages.loudness import FLOOR_LUFS, Normalise, integrated_loudness
from tests.preparation.stages.speech_fixture import RATE, element, joined, only, silence, speech


def _sine(frequency: float, dbfs: float, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (10 ** (dbfs / 20) * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def test_a_sine_at_1_khz_reads_its_level_less_three_decibels():
    # ITU-R BS.1770-4: 997 Hz at 0 dBFS in one front channel reads -3.01 LKFS.
    assert integrated_loudness(_sine(997, 0.0, 5.0), RATE) == pytest.approx(-3.01, abs=0.1)
    assert integrated_loudness(_sine(997, -20.0, 5.0), RATE) == pytest.approx(-23.01, abs=0.1)


def test_silence_is_gated_and_pauses_do_not_count():
    assert integrated_loudness(silence(2.0), RATE) == FLOOR_LUFS
    gapped = joined(speech(), silence(10.0), speech())
    assert integrated_loudness(gapped, RATE) == pytest.approx(integrated_loudness(speech(), RATE), abs=1.0)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.39, 0.4, 0.41])
def test_less_than_a_block_has_a_loudness(seconds):
    assert integrated_loudness(_sine(997, -20.0, seconds), RATE) == pytest.approx(-23.0, abs=0.7)


@pytest.mark.parametrize("gain", [0.2, 0.5, 1.9])
def test_loudness_and_what_was_done_are_known(gain):
    wave = speech() * np.float32(gain)
    out = only(Normalise(target_lufs=-23.0).process(element(wave)))
    assert integrated_loudness(out.wave, RATE) == pytest.approx(-23.0, abs=0.05)
    assert out.record.scores["loudness_lufs"] == pytest.approx(integrated_loudness(wave, RATE), abs=1e-5)
    np.testing.assert_allclose(out.wave, wave * 10 ** (out.record.scores["gain_db"] / 20), atol=1e-6)


def test_the_peak_is_never_passed():
    click = joined(speech() * np.float32(0.1), np.ones(1, np.float32), silence(0.2))
    out = only(Normalise(target_lufs=-10.0, peak_dbfs=-3.0).process(element(click)))
    assert np.abs(out.wave).max() == pytest.approx(10 ** (-3 / 20), rel=1e-5)


def test_noise_alone_does_not_become_loud():
    noise = (1e-4 * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)
    for wave in (noise, silence(1.0)):
        out = only(Normalise(max_gain_db=12.0).process(element(wave)))
        assert out.record.scores["gain_db"] == 12.0
        assert np.abs(out.wave).max() < 0.003


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="peak_dbfs"):
        Normalise(peak_dbfs=3.0)
