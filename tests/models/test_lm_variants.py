"""Language models that the released layout allows and the golden folders do not hold, against the NumPy reference.

Random weights in the official layout, loaded as any folder is; what the reference gives for each sequence alone. A head
dimension that is odd is refused by name.
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
from mimo_jax.models.transformer import Compute
from tests.reference import weights
from tests.reference.closeness import assert_close, assert_rounded
from tests.reference.lm import LanguageModel

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
