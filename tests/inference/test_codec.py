"""The codec on lists of utterances: reference numbers, independence of neighbours, pieces, bad input."""

import numpy as np
import pytest

from mimo_jax.inference import codec as codec_module
from mimo_jax.inference.codec import AudioCodec


@pytest.fixture(scope="module")
def codec(tokenizer_tiny):
    return AudioCodec.load(tokenizer_tiny, batch_frames=2048)


@pytest.fixture(scope="module")
def outputs(tokenizer_tiny):
    return dict(np.load(tokenizer_tiny / "outputs.npz"))


@pytest.fixture(scope="module")
def inputs(tokenizer_tiny):
    return dict(np.load(tokenizer_tiny / "inputs.npz"))


def noise(seed, samples):
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32) * 0.3


def test_reference_numbers_among_neighbours(codec, inputs, outputs):
    waves = [noise(0, 900), inputs["e2e_wav"], noise(1, 3000)]
    codes = codec.encode(waves)
    np.testing.assert_array_equal(codes[1], outputs["e2e.codes"].T)
    assert codes[1].dtype == np.int32
    made = codec.decode(codes)
    np.testing.assert_allclose(made[1], outputs["e2e.wav_out"].reshape(-1), atol=7e-5)
    assert [len(w) for w in made] == [64 * len(c) for c in codes]


def test_decode_with_leading_codebooks(codec, inputs, outputs):
    codes = inputs["dec_codes_0"].T
    (wave,) = codec.decode([codes[:, :2]])
    np.testing.assert_allclose(wave, outputs["dec_partial.wav"].reshape(-1), atol=7.3e-5)
    np.testing.assert_array_equal(codec.decode([codes], num_quantizers=2)[0], wave)


def test_long_audio_is_cut_into_pieces_of_its_mel(codec, monkeypatch):
    monkeypatch.setattr(codec_module, "ENCODE_PIECE", 64)
    monkeypatch.setattr(codec_module, "DECODE_PIECE", 10)
    wave = noise(2, 128 * 16)  # 129 mel frames: 64 + 64 + 1
    (codes,) = codec.encode([wave])
    assert len(codes) == 16 + 16 + 1
    hop, nfft = 16, 64
    padded = np.pad(wave, nfft // 2, mode="reflect")
    second = codec_module._stack([padded[64 * hop : 127 * hop + nfft]], 63 * hop + nfft)
    expected, frames = codec_module._encode(codec._model, codec.variables, second, np.array([64]), 4)
    np.testing.assert_array_equal(codes[16:32], expected[0, : int(frames[0])])
    (made,) = codec.decode([codes])
    np.testing.assert_allclose(made[10 * 64 : 20 * 64], codec.decode([codes[10:20]])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("wave", "message"),
    [(np.zeros(0), "shape"), (np.zeros((2, 4)), "shape"), (np.array([0.0, np.nan]), "not finite")],
)
def test_bad_waveforms_are_named(codec, wave, message):
    with pytest.raises(ValueError, match=f"waveform 1 .*{message}"):
        codec.encode([noise(0, 100), wave])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 4), np.int32), "at least one"),
        (np.zeros((3, 4)), "integers"),
        (np.zeros((3, 5), np.int32), "5 codebooks"),
        (np.array([[0, 16, 0, 0]]), "frame 0 of codebook 2 is 16, not in 0..15"),
    ],
)
def test_bad_codes_are_named(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode([codes])


def test_nothing_in_nothing_out(codec):
    assert codec.encode([]) == [] and codec.decode([]) == []


def test_few_batch_shapes_however_many_utterances(codec, monkeypatch):
    """Each shape is a compilation: one batch size for one utterance, one for a few, one for many."""
    shapes = []

    def decode(model, variables, codes, lengths, count):
        assert count == 2
        shapes.append(codes.shape)
        return np.zeros((len(codes), 1920 * codes.shape[1]), np.float32), np.asarray(lengths)

    monkeypatch.setattr(codec_module, "_decode", decode)
    for count in range(1, 40):
        assert len(codec.decode([np.zeros((5 + i % 9, 2), int) for i in range(count)])) == count
    assert len(set(shapes)) <= 3
