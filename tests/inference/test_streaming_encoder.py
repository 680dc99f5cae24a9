"""Streaming encode: the codes of the whole in the released pieces, context, bounded memory, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.inference import codec as codec_module
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.streaming_encoder import StreamingEncoder
from mimo_jax.interop import hf
from tests.inference.streams import streamed

HOP, HALF = 16, 32  # of the tiny tokenizer; 4 mel frames are a code frame


@pytest.fixture(scope="module")
def tokenizer(tokenizer_tiny):
    return hf.load_tokenizer(tokenizer_tiny)


@pytest.fixture(scope="module")
def codec(tokenizer):
    return AudioCodec(*tokenizer, batch_frames=2048)


@pytest.fixture(scope="module")
def pieces(tokenizer):
    return StreamingEncoder(*tokenizer, segment=64)


def noise(seed, samples):
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32) * 0.3


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_pieces_are_those_of_the_whole(codec, pieces, data):
    # Lengths round the borders of pieces (1024 samples, 65 mel frames) and of mel frames, and any.
    near = st.builds(lambda piece, more: piece * 1024 + more, st.integers(1, 3), st.integers(-17, 17))
    samples = data.draw(st.one_of(near, st.integers(40, 3500)))
    wave = noise(samples, samples)
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "ENCODE_PIECE", 64)
        (whole,) = codec.encode([wave])
    codes = streamed(pieces, wave, cuts, last_alone=data.draw(st.booleans()))
    np.testing.assert_array_equal(codes, whole)


def test_context_as_long_as_the_stream_gives_the_codes_of_the_whole(tokenizer, codec):
    wave = noise(1, 1500)  # 94 mel frames
    (whole,) = codec.encode([wave])
    encoder = StreamingEncoder(*tokenizer, segment=8, left=96, right=96)
    np.testing.assert_array_equal(streamed(encoder, wave, (100, 700)), whole)
    alone = streamed(StreamingEncoder(*tokenizer, segment=8), wave)
    assert alone.shape == whole.shape and (alone != whole).any()


def test_codes_come_within_the_latency_and_samples_are_dropped(tokenizer):
    encoder = StreamingEncoder(*tokenizer, segment=8, left=16, right=4, num_quantizers=2)
    assert encoder.latency == 11 * HOP + HALF
    assert encoder(noise(2, encoder.latency - 1)).shape == (0, 2)
    assert encoder(noise(3, 1)).shape == (2, 2)
    for seed in range(200):
        assert len(encoder(noise(seed, 8 * HOP))) == 2
        assert len(encoder._samples) + sum(map(len, encoder._new)) < 40 * HOP
    assert len(encoder(last=True)) == 2  # 4 frames of context and the centred one at the end


def test_an_object_serves_one_stream_after_another(tokenizer, pieces):
    first = streamed(pieces, noise(4, 3000), (10,))
    np.testing.assert_array_equal(streamed(pieces, noise(4, 3000), (2000,)), first)
    assert pieces(last=True).shape == (0, 4) and pieces().shape == (0, 4)


def test_bad_input(tokenizer, pieces):
    for sizes in ({"segment": 6}, {"segment": 0}, {"left": 2}, {"right": -4}):
        with pytest.raises(ValueError, match="multiples of 4 mel frames"):
            StreamingEncoder(*tokenizer, **sizes)
    with pytest.raises(ValueError, match=r"5 codebooks asked for: this tokenizer has 1\.\.4"):
        StreamingEncoder(*tokenizer, num_quantizers=5)
    for bad in (np.zeros((2, 3)), np.array([0.0, np.nan])):
        with pytest.raises(ValueError, match="finite values"):
            pieces(bad)
