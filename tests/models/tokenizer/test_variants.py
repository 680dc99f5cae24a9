"""Audio tokenizers that the released layout allows and the golden folders do not hold, against the NumPy reference.

Random weights in the official layout, loaded as any folder is; all sequences in one padded batch, each compared with
what the reference gives for it alone. Where the published facts do not define a case, our choice is:

* A mel sequence too short for a kernel (kernel_size 4 and 5) has no code frames; the official convolution raises.
* decoder_kernel_size < decoder_stride_size, a head dimension or an nfft that is odd, and frames that do not overlap
  are refused by name: lengths, pairs of RoPE, halves of the head or the envelope of the windows would not come out.
* A waveform shorter than the reflect padding is reflected again and again; torch raises.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.interop import hf
from mimo_jax.models.tokenizer import MimoAudioTokenizer, blocks, extents, frontend
from mimo_jax.models.transformer import Compute
from tests.reference import ops, weights
from tests.reference.closeness import assert_close, assert_rounded
from tests.reference.tokenizer import Tokenizer, log_mel

# Each changes something of encoder, quantiser, decoder and vocoder at once: what fails says which.
TOKENIZER_VARIANTS = {
    "layer norm": {},
    "RMS norm": {"ln_type": "RMSNorm", "codebook_size": 10, "encoder_attention_heads": 1, "nfft": 40},
    "windows": {
        "stride_size": 1,
        "encoder_attn_window_size": [5, 3],
        "decoder_attn_window_size": [6, -1],
        "vocoder_attn_window_size": [20, 3],
        "codebook_size": [9],
    },
    "long windows": {
        "stride_size": 1,
        "encoder_attn_window_size": [3, 17],
        "decoder_causal": False,
        "decoder_attn_window_size": [19, 2],
        "vocoder_attn_window_size": [-1, -1],
        "vocoder_attention_heads": 1,
    },
    "causal encoder, free decoder": {
        "encoder_causal": True,
        "encoder_attn_window_size": [7, 2],
        "decoder_causal": False,
        "rope_theta": 300,
        "ln_type": "RMSNorm",
        "hop_length": 12,
        "codebook_size": [5, 7, 9, 8, 6, 4],
    },
    "no skip, no pooling": {
        "encoder_causal": True,
        "encoder_skip_layer_id": None,
        "avg_pooler": 1,
        "decoder_kernel_size": 4,
        "codebook_size": [11, 6],
    },
    "skip of all, pooling by three": {
        "encoder_skip_layer_id": 3,
        "avg_pooler": 3,
        "decoder_attn_window_size": [0, 7],
        "decoder_kernel_size": 5,
        "vocoder_attn_window_size": [0, 0],
        "ln_type": "RMSNorm",
    },
    "kernel 5, stride 3": {
        "kernel_size": 5,
        "stride_size": 3,
        "decoder_kernel_size": 5,
        "decoder_stride_size": 3,
        "vocoder_attn_window_size": [0, -1],
    },
    "kernel 5, stride 1": {
        "kernel_size": 5,
        "stride_size": 1,
        "encoder_attn_window_size": [0, 0],
        "encoder_skip_layer_id": 1,
        "decoder_kernel_size": 3,
        "decoder_stride_size": 3,
    },
    "kernel 4": {
        "kernel_size": 4,
        "encoder_attn_window_size": [4, -1],
        "decoder_kernel_size": 4,
        "decoder_stride_size": 3,
        "num_quantizers": 1,
    },
    "kernel 1": {
        "kernel_size": 1,
        "stride_size": 3,
        "decoder_causal": False,
        "decoder_attn_window_size": [-1, 5],
        "decoder_kernel_size": 2,
        "decoder_stride_size": 1,
    },
}
MEL_LENGTHS, MEL_SIZE = (64, 1, 2, 3, 4, 5, 37), 65
CODE_LENGTHS, CODE_SIZE = (26, 1, 2, 7), 28


def padded(arrays, size, rng):
    """[B, size, ...] with garbage behind the ends, lengths [B]."""
    batch = 10 * rng.normal(size=(len(arrays), size, *arrays[0].shape[1:]))
    batch = batch.astype(arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch, np.array([len(array) for array in arrays], np.int32)


def run_tokenizer(module, mel, lengths, codes, code_lengths):
    features, frames = module.encode_features(mel, lengths)
    found = module.quantizer.encode(features, frames)
    hidden = module.quantizer.decode(codes, code_lengths)
    coarse, coarse_lengths = module.decode_features(hidden, code_lengths)
    return features, found, frames, hidden, coarse, coarse_lengths, module.vocode(coarse, coarse_lengths)


def random_tokenizer(folder, change):
    config = weights.TOKENIZER | change
    tensors = weights.tokenizer(config, seed=zlib.crc32(repr(change).encode()))
    return hf.load_tokenizer(weights.write(folder, config, tensors)), Tokenizer(config, tensors)


def tokenizer_inputs(reference, rng):
    mels = [rng.normal(size=(length, reference.config["n_mels"])).astype(np.float32) for length in MEL_LENGTHS]
    sizes = weights.codebook_sizes(reference.config)
    codes = [np.stack([rng.integers(0, s, n) for s in sizes], -1).astype(np.int32) for n in CODE_LENGTHS]
    return mels, codes


@pytest.mark.parametrize("variant", TOKENIZER_VARIANTS)
def test_tokenizer(tmp_path, variant):
    rng = np.random.default_rng(1)
    (config, variables), reference = random_tokenizer(tmp_path, TOKENIZER_VARIANTS[variant])
    mels, codes = tokenizer_inputs(reference, rng)
    inputs = *padded(mels, MEL_SIZE, rng), *padded(codes, CODE_SIZE, rng)
    model = MimoAudioTokenizer(config)
    run = jax.jit(functools.partial(model.apply, method=run_tokenizer))
    features, found, frames, hidden, coarse, coarse_lengths, waves = jax.device_get(run(variables, *inputs))

    compared = 0
    for b, mel in enumerate(mels):
        expected = reference.features(mel)
        assert frames[b] == len(expected)
        assert not np.any(features[b, len(expected) :]) and not np.any(found[b, len(expected) :])
        assert_close(f"{variant}: features", features[b, : frames[b]], expected)
        if len(expected):
            best, margin = reference.codes(expected)
            sure = margin.min(axis=0) > 1e-3  # a nearer tie can go either way
            np.testing.assert_array_equal(found[b, : frames[b]][sure], best.T[sure])
            compared += sure.sum() / frames.sum()
    assert compared > 0.8
    for b, sequence in enumerate(codes):
        expected = reference.hidden(sequence.T)
        assert_close(f"{variant}: hidden", hidden[b, : len(sequence)], expected)
        expected = reference.coarse_mel(expected)
        assert coarse_lengths[b] == len(expected)
        assert_close(f"{variant}: coarse mel", coarse[b, : coarse_lengths[b]], expected)
        expected = reference.wave(expected)
        assert_close(f"{variant}: wave", waves[b, : len(expected)], expected)
        assert not np.any(waves[b, len(expected) :])


@pytest.mark.parametrize(
    ("window", "length"), [((4, 1), 49), ((0, 0), 64), ((17, 3), 52), ((2, 20), 80), ((40, 10), 121)]
)
def test_attention_in_blocks(window, length):
    """At the length from which `SelfAttention` goes in blocks, and where the last block is whole."""
    size, heads, dim = max(*window, 16), 2, 4
    query, key, value = np.random.default_rng(0).normal(size=(3, 4, length, heads, dim)).astype(np.float32)
    lengths = np.array([length, length - 1, length - size - 3, 1])
    attend = jax.jit(lambda *x: blocks.windowed_attention(*x, window, "xla"))
    found = attend(query, key, value, extents.segment_ids(lengths, length))
    for b, n in enumerate(lengths):
        flattened = [x[b, :n].reshape(n, -1).astype(np.float64) for x in (query, key, value)]
        assert_close(f"{n} of {length}", found[b, :n].reshape(n, -1), ops.attend(*flattened, heads, heads, window))


@pytest.mark.parametrize(
    "change", [{}, {"window_size": 20}, {"window_size": 19, "fmin": 300, "fmax": 9000}, {"nfft": 64, "hop_length": 10}]
)
def test_log_mel(change):
    values = weights.TOKENIZER | change
    config = hf.TokenizerConfig.from_dict(values)
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=n).astype(np.float32) for n in (200, 33, 87)]
    mel, lengths = jax.jit(frontend.log_mel, static_argnums=2)(*padded(waves, 210, rng), config)
    for b, wave in enumerate(waves):
        expected = np.exp(log_mel(wave, values))
        assert lengths[b] == len(expected)
        # What the front end's golden arrays grant: its filter bank is float32.
        assert_close(f"log-mel {change}", np.exp(mel[b, : int(lengths[b])]), expected, 3e-5)


def test_tokenizer_in_bfloat16(tmp_path):
    """The Transformer's products are rounded, the search for codes is not."""
    (config, variables), reference = random_tokenizer(tmp_path, {})
    rng = np.random.default_rng(1)
    mels, codes = tokenizer_inputs(reference, rng)
    inputs = *padded(mels, MEL_SIZE, rng), *padded(codes, CODE_SIZE, rng)

    def run(dtype):
        model = MimoAudioTokenizer(config, Compute(dtype=dtype))
        return jax.device_get(jax.jit(functools.partial(model.apply, method=run_tokenizer))(variables, *inputs))

    exact, rounded = run("float32"), run("bfloat16")
    np.testing.assert_array_equal(exact[2], rounded[2])
    for i in (0, 4, 6):  # features, coarse mel, waves
        assert_rounded(rounded[i], exact[i])
    model = MimoAudioTokenizer(config, Compute(dtype="bfloat16"))
    features = np.asarray(jnp.asarray(rng.normal(size=(1, 500, config.d_model)), "bfloat16"))
    search = functools.partial(model.apply, method=lambda m, x, n: m.quantizer.encode(x, n))
    found = jax.jit(search)(variables, features, jnp.array([500]))[0]
    best, margin = reference.codes(features[0])
    sure = margin.min(axis=0) > 1e-4
    np.testing.assert_array_equal(found[sure], best.T[sure])
    reference.books = [np.asarray(jnp.asarray(book, "bfloat16"), np.float64) for book in reference.books]
    assert np.any(reference.codes(features[0])[0].T[sure] != best.T[sure])  # rounded codebooks would be seen


@pytest.mark.parametrize(
    "change",
    [
        {"decoder_kernel_size": 1},
        {"d_model": 18},
        {"window_size": 33},
        {"hop_length": 7},
        {"hop_length": 32},
        {"nfft": 31, "hop_length": 9, "window_size": 31},
    ],
)
def test_impossible_tokenizer_is_refused(tmp_path, change):
    config = weights.TOKENIZER | change
    with pytest.raises(hf.UserError, match=next(iter(change))):
        hf.load_tokenizer(weights.write(tmp_path, config, {"x": np.zeros(1, np.float32)}))
