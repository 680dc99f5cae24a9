"""Configurations that the released layout allows and the golden folders do not hold, against the NumPy reference.

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

from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request
from mimo_jax.interop import configs, hf
from mimo_jax.models import transformer
from mimo_jax.models.mimo_audio import MimoAudio
from mimo_jax.models.tokenizer import MimoAudioTokenizer, blocks, extents, frontend
from mimo_jax.models.transformer import Compute
from tests.reference import ops, weights
from tests.reference.lm import LanguageModel
from tests.reference.tokenizer import Tokenizer, log_mel

# Share of the array's maximum, as the golden folders grant. Float32 against float64, measured: up to 3.0e-6 (waves).
TOLERANCE = 1e-5


def assert_close(name, found, expected, tolerance=TOLERANCE):
    found = np.asarray(found, np.float64)
    assert found.shape == np.shape(expected), name
    if found.size:
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error <= tolerance, f"{name}: error {error:.2e} of the maximum"


def padded(arrays, size, rng):
    """[B, size, ...] with garbage behind the ends, lengths [B]."""
    batch = 10 * rng.normal(size=(len(arrays), size, *arrays[0].shape[1:]))
    batch = batch.astype(arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch, np.array([len(array) for array in arrays], np.int32)


# --- audio tokenizer ------------------------------------------------------------------------------------------------

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


def assert_rounded(found, exact):
    """Measured 0.6 to 2.5 % of the norm, in layers of 8 bits of mantissa one after the other."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    share = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-3 < share < 0.06


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


# --- language model ---------------------------------------------------------------------------------------------------

LM_VARIANTS = {
    "as released": {},
    "one frame, one channel": {
        "group_size": 1,
        "audio_channels": 1,
        "delay_pattern": "0",
        "speech_vocab_size": "12",
        "speech_zeroemb_idx": "11",
        "num_key_value_heads": 4,
        "local_attn_heads": 1,
    },
    "two frames, delays 0-3-1": {
        "group_size": 2,
        "delay_pattern": "0-3-1",
        "speech_vocab_size": "9-17-5",
        "speech_zeroemb_idx": "8-16-4",
        "input_local_dim": 24,
        "num_key_value_heads": 1,
        "head_dim": 4,
    },
    "six frames, eight channels, no delay": {
        "group_size": 6,
        "audio_channels": 8,
        "delay_pattern": "0-0-0-0-0-0-0-0",
        "speech_vocab_size": "17-17-9-9-9-9-9-9",
        "speech_zeroemb_idx": "16-16-8-8-8-8-8-8",
        "head_dim": 16,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "delays repeated, causal frames": {
        "audio_channels": 4,
        "delay_pattern": "0-1-1-0",
        "speech_vocab_size": "6-7-8-9",
        "speech_zeroemb_idx": "5-6-7-8",
        "input_full_attention": False,
        "rope_theta": 30,
    },
    "late first step, causal frames by default": {
        "delay_pattern": "2-1-3",
        "input_full_attention": None,
        "input_local_dim": 8,
        "local_attn_heads": 2,
        "rms_norm_eps": 1e-2,
    },
    "empty code anywhere": {
        "delay_pattern": "1-0-1",
        "speech_zeroemb_idx": "0-8-3",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "local_attn_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e6,
    },
}


def run_lm(module, text, audio, targets):
    embedded = module.embed(text, audio)
    hidden, _ = module.backbone(embedded, jnp.arange(text.shape[1])[None])
    local = module.local_hidden(hidden)
    patches = module.patch_logits(local[:, : targets.shape[1]].reshape(-1, local.shape[-1]), flat(targets))
    return embedded, hidden, module.text_logits(hidden), local, patches


def flat(x):
    return x.reshape(-1, *x.shape[2:])


def random_lm(folder, change):
    config = weights.LM | change
    tensors = weights.lm(config, seed=zlib.crc32(repr(change).encode()))
    loaded = hf.load_lm(weights.write(folder, config, tensors), empty_token_id=weights.EMPTY_ID)
    return loaded, LanguageModel(config, tensors, weights.EMPTY_ID)


def lm_inputs(config, rng, shape=(2, 7)):
    """Text ids, about half of them `<|empty|>`; codes everywhere, some of them empty."""
    text = rng.integers(0, config.vocab_size, shape)
    text = np.where(rng.random(shape) < 0.5, config.empty_token_id, text).astype(np.int32)
    codes = random_codes(config, rng, shape)
    text[0, 1], codes[0, 1, 0], codes[0, 1, -1, 0] = config.empty_token_id, config.speech_zeroemb_idx, 1
    return text, codes


def random_codes(config, rng, shape):
    shape = (*shape, config.group_size)
    codes = np.stack([rng.integers(0, size, shape) for size in config.speech_vocab_size], -1)
    return np.where(rng.random(codes.shape) < 0.1, config.speech_zeroemb_idx, codes).astype(np.int32)


def greedy(config, params, local):
    """Greedy patches [N, G, C] through the cache, one step after the other."""
    module, delays, empty = MimoAudio(config), np.array(config.delay_pattern), config.speech_zeroemb_idx

    @jax.jit
    def advance(x, step, cache):
        def run(module):
            logits, new = module.patch_step(x, step, cache)
            best = [jnp.argmax(z.at[:, e].set(-jnp.inf), -1) for z, e in zip(logits, empty, strict=True)]
            codes, frame = jnp.stack(best, -1), step - delays
            return codes, module.step_input_from_codes(codes, (frame >= 0) & (frame < config.group_size)), new

        return module.apply({"params": params}, method=run)

    x, cache = local, transformer.init_cache(config.patch_decoder, len(local), config.patch_steps)
    made = []
    for step in range(config.patch_steps):
        codes, x, cache = advance(x, jnp.int32(step), cache)
        made.append(codes)
    made = np.stack(made, 1)
    return np.stack([made[:, d : d + config.group_size, c] for c, d in enumerate(delays)], -1)


@pytest.mark.parametrize("variant", LM_VARIANTS)
def test_language_model(tmp_path, variant):
    (config, params), reference = random_lm(tmp_path, LM_VARIANTS[variant])
    rng = np.random.default_rng(2)
    text, audio = lm_inputs(config, rng)
    targets = random_codes(config, rng, (2, 3))
    run = jax.jit(functools.partial(MimoAudio(config).apply, method=run_lm))
    *found, logits = jax.device_get(run({"params": params}, text, audio, targets))
    local = []
    for b in range(len(text)):
        expected = reference.forward(text[b], audio[b])
        whole = expected.embedded, expected.hidden, expected.text_logits, expected.local_hidden
        for name, array, truth in zip(("embedded", "hidden", "text logits", "local"), found, whole, strict=True):
            assert_close(f"{variant}: {name}", array[b], truth)
        for t, forced in enumerate(targets[b]):
            patch = reference.patch(expected.local_hidden[t], forced)
            for c, truth in enumerate(patch.logits):
                assert_close(f"{variant}: codes", logits[c][b * targets.shape[1] + t], truth)
        local.append(expected.local_hidden)
    local = np.concatenate(local)
    patches = [reference.patch(x) for x in local]
    assert min(patch.margin.min() for patch in patches) > 1e-5  # else a tie decides
    np.testing.assert_array_equal(greedy(config, params, local.astype(np.float32)), [p.tokens for p in patches])


@pytest.mark.parametrize("value", ["9-9-9", [9, 9, 9], 9, "9"])
def test_spellings_of_a_list(value):
    values = weights.LM | {"speech_vocab_size": value, "speech_zeroemb_idx": "8-8-8", "delay_pattern": [0, 2, 1]}
    config = configs.lm_config(values, "a folder", weights.EMPTY_ID)
    assert config.speech_vocab_size == (9, 9, 9) and config.delay_pattern == (0, 2, 1)


@pytest.mark.parametrize(
    "change", [{"head_dim": 5}, {"local_dim": 12}, {"input_local_dim": 20}, {"delay_pattern": "0-1"}]
)
def test_impossible_language_model_is_refused(change):
    with pytest.raises(hf.UserError, match=next(iter(change))):
        configs.lm_config(weights.LM | change, "a folder", weights.EMPTY_ID)


def test_language_model_in_bfloat16(tmp_path):
    (config, params), _ = random_lm(tmp_path, {})
    rng = np.random.default_rng(2)
    inputs = *lm_inputs(config, rng), random_codes(config, rng, (2, 3))

    def run(dtype):
        model = MimoAudio(config, Compute(dtype=dtype))
        return jax.tree.leaves(jax.jit(functools.partial(model.apply, method=run_lm))({"params": params}, *inputs))

    for rounded, exact in zip(run("bfloat16"), run("float32"), strict=True):
        assert_rounded(rounded, exact)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["two frames, delays 0-3-1", "late first step, causal frames by default"])
def test_generation(tmp_path, monkeypatch, variant):
    def likely_audio(config, seed, make=weights.lm):
        tensors = make(config, seed)
        tensors["lm_head.weight"][weights.EMPTY_ID] *= 4
        return tensors

    monkeypatch.setattr(weights, "lm", likely_audio)
    (config, params), reference = random_lm(tmp_path, LM_VARIANTS[variant])
    text, audio = (x[0] for x in lm_inputs(config, np.random.default_rng(3), (1, 6)))
    is_audio = (text == config.empty_token_id)[:, None, None]
    audio = np.where(is_audio, audio, config.speech_zeroemb_idx).astype(np.int32)
    expected_text, expected_audio = reference.generate(text, audio, 6)
    answer = Engine(config, params).generate([Request(text, audio, max_new=6)])[0]
    np.testing.assert_array_equal(answer.text, expected_text)
    is_audio = expected_text == config.empty_token_id
    assert is_audio.any() and not is_audio.all()
    np.testing.assert_array_equal(answer.codes, expected_audio[is_audio])
