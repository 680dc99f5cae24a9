"""Log-mel front end against the reference numbers; framing and its adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.data.librosa_loading import load_librosa
from mimo_jax.models.tokenizer import TokenizerConfig, frontend

CONFIG = TokenizerConfig()
NAMES = ("chirp_noise", "tones_silence", "short", "decay_noise")


@pytest.fixture(scope="module")
def mel(golden):
    return dict(np.load(golden / "mel" / "inputs.npz")), dict(np.load(golden / "mel" / "outputs.npz"))


def compare(actual, expected):
    actual, expected = np.asarray(actual, np.float64), expected.astype(np.float64)
    assert actual.shape == expected.shape
    assert np.max(np.abs(np.exp(actual) - np.exp(expected))) <= 3e-5 * np.exp(expected).max()
    loud = expected > -5
    assert np.max(np.abs(actual - expected)[loud]) <= 0.01


def test_filterbank(mel):
    bank = frontend.mel_filterbank(24000, 960, 128, 0, None)
    np.testing.assert_allclose(bank, mel[1]["filterbank"], atol=3e-5)


@pytest.mark.parametrize("extra", [0, 1000])
def test_log_mel_of_a_padded_batch(mel, extra):
    waves = [mel[0][f"wav24k_{name}"] for name in NAMES]
    size = max(map(len, waves)) + extra
    batch = np.full((len(waves), size), 7.0, np.float32)  # garbage behind the ends must not be read
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    out, lengths = jax.jit(frontend.log_mel, static_argnums=2)(batch, jnp.array([len(w) for w in waves]), CONFIG)
    for row, length, name in zip(out, lengths, NAMES, strict=True):
        compare(row[: int(length)], mel[1][f"logmel_{name}"])
        assert not np.any(row[int(length) :])


@pytest.mark.parametrize("name", ["chirp_noise", "tones_silence", "decay_noise"])
def test_log_mel_is_librosa_s(mel, name):
    wave = mel[0][f"wav24k_{name}"]
    bands = {"n_mels": 128, "htk": True, "norm": None, "power": 1.0}
    expected = (
        load_librosa()
        .feature.melspectrogram(y=wave, sr=24000, n_fft=960, hop_length=240, center=True, pad_mode="reflect", **bands)
        .T
    )
    out, _ = frontend.log_mel(wave[None], jnp.array([len(wave)]), CONFIG)
    np.testing.assert_allclose(np.exp(out[0]), np.maximum(expected, 1e-7), rtol=0, atol=1e-6 * expected.max())


@pytest.mark.parametrize("rate", [22050, 16000, 44100])
def test_log_mel_of_resampled_files(mel, rate):
    wave = mel[1][f"resampled_from_{rate}"]
    out, _ = frontend.log_mel(wave[None], jnp.array([len(wave)]), CONFIG)
    compare(out[0], mel[1][f"logmel_rs{rate}"])


def test_very_short_and_empty_waveforms_are_finite():
    out, lengths = frontend.log_mel(jnp.ones((4, 600)), jnp.array([0, 1, 2, 300]), CONFIG)
    assert lengths.tolist() == [0, 1, 1, 2] and np.isfinite(out).all()
    padded = frontend.reflect_pad(jnp.arange(10.0)[None], jnp.array([4]), 7)
    np.testing.assert_array_equal(padded[0, : 4 + 14], np.pad(np.arange(4.0), 7, mode="reflect"))


@pytest.mark.parametrize(
    ("hop", "length", "extra", "channels"),
    [(1, 3, 9, (2,)), (2, 3, 7, ()), (3, 12, 10, ()), (5, 5, 11, (2,)), (4, 2, 9, ())],
)
def test_frames_and_overlap_add_are_adjoint(hop, length, extra, channels):
    rng = np.random.default_rng(hop * 1000 + length)
    x = rng.normal(size=(2, length + extra, *channels)).astype(np.float32)
    framed = frontend.frames(jnp.asarray(x), length, hop)
    count = 1 + extra // hop
    expected = np.stack([x[:, i * hop : i * hop + length] for i in range(count)], axis=1)
    np.testing.assert_array_equal(framed, expected)
    y = rng.normal(size=framed.shape).astype(np.float32)
    added = np.asarray(frontend.overlap_add(jnp.asarray(y), hop))
    assert added.shape[1] == (count - 1) * hop + length
    np.testing.assert_allclose(np.sum(framed * y), np.sum(x[:, : added.shape[1]] * added), rtol=1e-3, atol=1e-3)


def test_magnitude_has_a_finite_gradient_at_zero():
    gradient = jax.grad(lambda x: frontend.magnitude(*frontend.stft(x, 64, 16, frontend.hann_window(64))).sum())
    assert np.isfinite(gradient(jnp.zeros((1, 128)))).all()
