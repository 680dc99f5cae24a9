"""Measures against recordings whose faults are known."""

import numpy as np
import pytest

from mimo_jax.data.audio import resample
from mimo_jax.data.corpus import noise
from mimo_jax.preparation.stages.loudness import Normalise, integrated_loudness
from mimo_jax.preparation.stages.quality import AudioQuality, Dnsmos, clipping_share
from tests.preparation.stages.speech_fixture import RATE, SENTENCES, element, joined, only, silence, speech

VOICES = ("en-us", "en-us+f3", "en+m1")


def _talk(voice: str = "en-us") -> np.ndarray:
    return joined(silence(0.2), speech(SENTENCES[0], voice), silence(0.4), speech(SENTENCES[1], voice), silence(0.2))


def _scores(wave: np.ndarray, **settings) -> dict[str, float]:
    return only(AudioQuality(**settings).process(element(wave))).record.scores


def _sixteen_bit(wave: np.ndarray) -> np.ndarray:
    return np.round(wave * 32767.0).astype(np.int16).astype(np.float32) / 32768.0


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("kind", ["white", "pink", "hum"])
def test_snr_is_near_the_truth_and_rises_with_it(voice, kind):
    wave = _talk(voice)
    rng = np.random.default_rng(0)
    made = {
        "white": lambda: noise.white(rng, len(wave)),
        "pink": lambda: noise.pink(rng, len(wave), RATE),
        "hum": lambda: noise.hum(rng, len(wave), RATE),
    }[kind]()
    truth = [0, 5, 10, 15, 20, 30]
    found = [_scores(noise.mix(wave, made, snr))["snr_db"] for snr in truth]
    np.testing.assert_allclose(found, truth, atol=3.5 if kind == "pink" else 2.0)
    assert found == sorted(found)


def test_snr_of_the_extremes():
    assert _scores(_talk())["snr_db"] > 40
    padded = joined(
        silence(2.0), noise.mix(_talk(), noise.white(np.random.default_rng(0), len(_talk())), 10), silence(2.0)
    )
    assert _scores(padded)["snr_db"] == pytest.approx(10, abs=1.5)
    assert _scores(0.1 * noise.white(np.random.default_rng(0), RATE))["snr_db"] < -5
    assert _scores(silence(1.0))["snr_db"] == -20.0
    babble = noise.babble(
        np.random.default_rng(0), len(_talk()), [speech(SENTENCES[2], v) for v in ("en+f1", "en-us+m4", "en+m3")]
    )
    found = [_scores(noise.mix(_talk(), babble, snr))["snr_db"] for snr in (0, 10, 20, 30)]
    assert found == sorted(found) and found[0] < 15


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize(("rate", "highest"), [(8_000, 4_000), (16_000, 8_000), (22_050, 11_025)])
def test_bandwidth_is_that_of_the_source(voice, rate, highest):
    for gain in (1.0, 0.05):
        narrow = _sixteen_bit(gain * resample(_talk(voice), RATE, rate))
        stored = _sixteen_bit(resample(narrow, rate, RATE))
        assert 0.9 * highest < _scores(stored)["bandwidth_hz"] <= highest


def test_clipping_counts_what_was_cut_off():
    for voice in VOICES:
        wave = _talk(voice) / np.abs(_talk(voice)).max()
        assert _scores(0.9 * wave)["clipping_share"] < 5e-4
        for drive in (2.0, 4.0):
            cut = float(np.mean(np.abs(drive * wave) > 1.0))
            at_44 = np.clip(resample(drive * wave, RATE, 44_100), -1.0, 1.0)
            for clipped in (np.clip(drive * wave, -1.0, 1.0), resample(at_44, 44_100, RATE)):
                assert clipping_share(clipped) == pytest.approx(cut, rel=0.15)
            assert clipping_share(0.5 * np.clip(drive * wave, -1.0, 1.0)) == pytest.approx(cut, rel=0.15)


def test_the_simple_measures():
    wave = joined(silence(3.0), speech(), silence(3.0))
    scores = _scores(wave + np.float32(0.01))
    assert scores["snr_db"] > 40
    assert scores["dc_offset"] == pytest.approx(0.01, abs=1e-3)
    assert scores["peak_dbfs"] == pytest.approx(20 * np.log10(0.51), abs=0.2)
    ratio = _scores(wave)["silence_ratio"]
    assert 6.0 / (6.0 + len(speech()) / RATE) <= ratio < 0.8 and _scores(speech())["silence_ratio"] < 0.15
    assert _scores(speech())["loudness_lufs"] == pytest.approx(integrated_loudness(speech(), RATE), abs=1e-5)


def test_levels_are_those_before_normalisation():
    wave = 0.05 * _talk()
    normalised = only(Normalise().process(element(wave)))
    after = only(AudioQuality().process(normalised)).record.scores
    for name, value in _scores(wave).items():
        assert after[name] == pytest.approx(value, abs=1e-3), name


@pytest.mark.parametrize("samples", [1, 100, 2000])
def test_very_short_recordings_have_finite_scores(samples):
    assert all(np.isfinite(v) for v in _scores(speech()[5000 : 5000 + samples]).values())


def test_a_plug_in_adds_its_scores():
    assert _scores(_talk(), learned=lambda wave, rate: {"mos": len(wave) / rate})["mos"] == pytest.approx(
        len(_talk()) / RATE, abs=1e-5
    )


def test_dnsmos_hears_noise():
    pytest.importorskip("speechmos")
    pytest.importorskip("onnxruntime")
    wave = _talk()
    noisy = noise.mix(wave, noise.white(np.random.default_rng(0), len(wave)), 5)
    clean, bad = (_scores(w, learned=Dnsmos()) for w in (wave, noisy))
    for name in ("mos", "mos_background", "mos_p808"):
        assert 1.0 < bad[name] + 0.2 < clean[name] < 5.0
    again = _scores(wave, learned=Dnsmos())
    assert again == clean
    with pytest.raises(ValueError, match="excerpts"):
        Dnsmos(excerpts=0)
