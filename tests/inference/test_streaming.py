"""Streaming decode: equal to offline decode, the released code's windows, cuts at any place, bad input."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.inference import codec as codec_module
from mimo_jax.inference import streaming
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.streaming import OverlapDecoder, StreamingDecoder, offline_statistics
from mimo_jax.interop import hf
from mimo_jax.models.tokenizer import MimoAudioTokenizer
from tests.inference.streams import streamed

# Rounding: windows and caches change the order of sums. Waveforms here reach 4; the golden tolerance is 7e-5.
ATOL = 7e-5


@pytest.fixture(scope="module")
def tokenizer(tokenizer_tiny):
    return hf.load_tokenizer(tokenizer_tiny)


@pytest.fixture(scope="module")
def codec(tokenizer):
    return AudioCodec(*tokenizer, batch_frames=2048)


def random_codes(config, frames, seed=0, books=None):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, frames) for size in config.codebook_sizes[:books]], axis=1)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_a_stream_with_the_statistics_of_the_whole_is_the_whole(tokenizer, codec, data):
    config, variables = tokenizer
    frames = data.draw(st.integers(1, 40))
    cuts = data.draw(st.lists(st.integers(0, frames), max_size=6))
    codes = random_codes(config, frames, seed=frames)
    statistics = offline_statistics(config, variables, codes)
    decoder = StreamingDecoder(config, variables, statistics=statistics, chunk=4)
    wave = streamed(decoder, codes, cuts, last_alone=data.draw(st.booleans()))
    np.testing.assert_allclose(wave, codec.decode([codes])[0], rtol=0, atol=ATOL)


def test_sound_comes_as_soon_as_it_is_certain(tokenizer):
    config, variables = tokenizer
    decoder = StreamingDecoder(config, variables, chunk=4)
    # Two vocoder layers that see one frame ahead each, and two frames that the inverse STFT overlaps.
    assert decoder.latency == (2 * 1 + 2) * config.hop_length
    given = [decoder(random_codes(config, 4)).size for _ in range(3)]
    unit = 4 * config.samples_per_frame
    assert given == [unit - decoder.latency, unit, unit]
    assert decoder(last=True).size == decoder.latency
    assert decoder(last=True).size == 0 and decoder().size == 0


VARIANTS = {
    "no pooling": {"avg_pooler": 1},
    "RMSNorm, windowed decoder": {"ln_type": "RMSNorm", "decoder_attn_window_size": (5, -1)},
    "wide upsampling": {"decoder_kernel_size": 7, "decoder_stride_size": 3, "avg_pooler": 3},
    "narrow upsampling": {"decoder_kernel_size": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_streams(tokenizer, variant):
    config = dataclasses.replace(tokenizer[0], **VARIANTS[variant])
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2, hf.tokenizer_shapes(config)
    ) | {"constants": tokenizer[1]["constants"]}
    codes = random_codes(config, 30)
    statistics = offline_statistics(config, variables, codes)
    decoder = StreamingDecoder(config, variables, statistics=statistics, chunk=8)
    wave = streamed(decoder, codes, (3, 20))
    (whole,) = AudioCodec(config, variables).decode([codes])
    np.testing.assert_allclose(wave, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_statistics_so_far(tokenizer):
    """In one chunk they are those of the whole; the frames before a part do not depend on the part."""
    config = dataclasses.replace(tokenizer[0], decoder_kernel_size=2)  # no frame is cut after the norm has seen it
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2, hf.tokenizer_shapes(config)
    ) | {"constants": tokenizer[1]["constants"]}
    codes = random_codes(config, 24)
    (whole,) = AudioCodec(config, variables).decode([codes])
    wave = streamed(StreamingDecoder(config, variables, chunk=24), codes)
    np.testing.assert_allclose(wave, whole, rtol=0, atol=1e-5 * np.abs(whole).max())

    decoder = StreamingDecoder(config, variables, chunk=8)
    wave = streamed(decoder, codes, (8, 16))
    assert np.abs(wave - whole).max() > 1e-3 * np.abs(whole).max()
    other = np.concatenate([codes[:16], random_codes(config, 8, seed=9)])
    known = 16 * config.samples_per_frame - decoder.latency
    np.testing.assert_array_equal(streamed(decoder, other, (8, 16))[:known], wave[:known])


def test_long_streams_are_cut_where_offline_decoding_cuts(tokenizer, codec, monkeypatch):
    config, variables = tokenizer
    monkeypatch.setattr(codec_module, "DECODE_PIECE", 10)
    monkeypatch.setattr(streaming, "DECODE_PIECE", 10)
    codes = random_codes(config, 10)
    statistics = offline_statistics(config, variables, codes)
    decoder = StreamingDecoder(config, variables, statistics=statistics, chunk=4)
    wave = streamed(decoder, np.concatenate([codes, codes]), (3,))
    np.testing.assert_allclose(wave, codec.decode([np.concatenate([codes, codes])])[0], rtol=0, atol=ATOL)
    with pytest.raises(ValueError, match="11 frames: give 1 to 10"):
        offline_statistics(config, variables, random_codes(config, 11))


def test_a_shorter_lookahead_answers_sooner_and_differs_only_near_the_cuts(tokenizer, codec):
    config, variables = tokenizer
    codes = random_codes(config, 24)
    statistics = offline_statistics(config, variables, codes)
    decoder = StreamingDecoder(config, variables, statistics=statistics, chunk=8, lookahead=1)
    assert decoder.latency == config.hop_length
    whole, wave = codec.decode([codes])[0], streamed(decoder, codes, (8, 16))
    wrong = np.flatnonzero(np.abs(wave - whole) > ATOL)
    cuts = np.array([8, 16]) * config.samples_per_frame
    assert wrong.size
    assert all((cuts - at >= 0).any() and min(abs(cuts - at)) <= 5 * config.hop_length for at in wrong)


# --- the released code's windows ----------------------------------------------------------------------------------


def test_overlap_decoder_keeps_everything_and_holds_nothing_back(tokenizer, codec):
    config, variables = tokenizer
    codes = random_codes(config, 20)
    decoder = OverlapDecoder(config, variables, left_overlap=None, right_overlap=0)
    (whole,) = codec.decode([codes[:12]])
    np.testing.assert_allclose(decoder(codes[:12]), whole, rtol=0, atol=ATOL)
    unit = config.samples_per_frame
    np.testing.assert_allclose(decoder(codes[12:]), codec.decode([codes])[0][12 * unit :], rtol=0, atol=ATOL)
    assert decoder.kept.shape == (20, 4) and decoder.processed == 20
    assert decoder(last=True).size == 0 and not decoder.kept.size


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(0, 4), st.integers(1, 6))
def test_overlap_decoder_gives_every_frame_once(tokenizer, sizes, right, more):
    config, variables = tokenizer
    decoder = OverlapDecoder(config, variables, left_overlap=right + more, right_overlap=right)
    given = [decoder(random_codes(config, size, seed=i), last=i == len(sizes) - 1).size for i, size in enumerate(sizes)]
    assert sum(given) == sum(sizes) * config.samples_per_frame
    for known, seen in zip(np.cumsum(given[:-1]), np.cumsum(sizes[:-1]), strict=True):
        assert known == max(0, seen - right) * config.samples_per_frame


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StreamingDecoder, OverlapDecoder])
def test_bad_codes_are_named_and_cost_nothing(tokenizer, kind):
    config, variables = tokenizer
    decoder = kind(config, variables)
    codes = random_codes(config, 6)
    decoder(codes[:3])
    wrong = codes[3:].copy()
    wrong[1, 2] = 8
    with pytest.raises(ValueError, match=r"frame 1 of codebook 3 is 8, not in 0..7"):
        decoder(wrong)
    with pytest.raises(ValueError, match="2 codebooks, this stream has 4"):
        decoder(codes[3:, :2])
    with pytest.raises(ValueError, match="give integers"):
        decoder(np.zeros((3, 4)))
    other = kind(config, variables)
    np.testing.assert_array_equal(decoder(codes[3:], last=True), (other(codes[:3]), other(codes[3:], last=True))[1])
    assert decoder(codes[:, :2], last=True).size  # the next stream may have fewer codebooks


def test_decoders_that_cannot_stream(tokenizer):
    config, variables = tokenizer
    with pytest.raises(ValueError, match="decoder_causal is false"):
        StreamingDecoder(dataclasses.replace(config, decoder_causal=False), variables)
    unlimited = dataclasses.replace(config, vocoder_attn_window_size=(-1, 1))
    with pytest.raises(ValueError, match="give history and lookahead"):
        StreamingDecoder(unlimited, variables)
    StreamingDecoder(unlimited, variables, history=8, lookahead=4)
    with pytest.raises(ValueError, match="left_overlap = 3, right_overlap = 3"):
        OverlapDecoder(config, variables, left_overlap=3, right_overlap=3)
    with pytest.raises(ValueError, match="lookahead = -1, history = None: give 0 or more mel frames"):
        StreamingDecoder(config, variables, lookahead=-1)
    with pytest.raises(ValueError, match="chunk is 0"):
        StreamingDecoder(config, variables, chunk=0)


def test_statistics_are_those_of_the_decoder(tokenizer):
    config, variables = tokenizer
    codes = random_codes(config, 5)
    statistics = offline_statistics(config, variables, codes)
    assert statistics.mean.shape == (1, 2) and statistics.frames is None
    model = MimoAudioTokenizer(config)

    def first_convolution(module):
        hidden = module.quantizer.decode(codes[None], np.array([5]))
        return module.decoder.dconv1.conv(hidden)

    frames = np.asarray(model.apply(variables, method=first_convolution))
    np.testing.assert_allclose(statistics.mean[0, 0], frames.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.variance[0, 0], frames.var(), rtol=1e-5)
