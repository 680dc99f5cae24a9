"""The language model against the reference's numbers (every array of golden/lm_tiny but the generations)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.models import transformer
from mimo_jax.models.mimo_audio import MimoAudio
from tests.models.released import grid_arrays, load


class Fixture:
    def __init__(self, folder):
        self.config, params = load(folder)
        self.variables = {"params": params}
        self.inputs = dict(np.load(folder / "inputs.npz"))
        self.outputs = dict(np.load(folder / "outputs.npz"))
        self.atol = json.loads((folder / "tolerances.json").read_text())["atol"]

    def apply(self, method, *args, config=None, **kwargs):
        module = MimoAudio(config or self.config)
        return jax.jit(lambda v, a: module.apply(v, *a, method=method, **kwargs))(self.variables, args)

    def check(self, name, actual):
        expected = self.outputs[name]
        assert actual.shape == expected.shape, name
        np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=self.atol[name], err_msg=name)


def patch_frames(model, encoder_in):
    return model.patch_encoder(encoder_in, jnp.arange(encoder_in.shape[1])[None])[0]


@pytest.fixture(scope="module")
def tiny(lm_tiny):
    return Fixture(lm_tiny)


@pytest.mark.parametrize("case, grid", [("batch", "input_ids"), ("odd", "input_ids_odd")])
def test_forward(tiny, case, grid):
    text, audio = grid_arrays(tiny.inputs[grid], tiny.config.group_size)
    batch, length, group, _ = audio.shape
    is_audio = text == tiny.config.empty_token_id
    # The reference blanks text positions before the sum, so that what codes they carry does not show here either.
    blanked = np.where(is_audio[..., None, None], audio, tiny.config.speech_zeroemb_idx)
    encoder_in = tiny.apply("patch_encoder_input", blanked.reshape(-1, *audio.shape[2:]))
    tiny.check(f"{case}.patch_encoder_in", encoder_in.reshape(batch, length, group, -1))

    # Text positions are compared where the reference still holds them, before it zeroes them.
    frames = tiny.apply(patch_frames, encoder_in)
    tiny.check(f"{case}.patch_encoder_out", frames.reshape(batch, length, group, -1))
    grouped = tiny.apply("encode_patches", audio.reshape(-1, *audio.shape[2:])).reshape(batch, length, -1)
    tiny.check(f"{case}.speech_grouped", np.where(is_audio[..., None], grouped, 0.0))

    embedded = tiny.apply("embed", text, audio)
    tiny.check(f"{case}.inputs_embeds", embedded)
    hidden, outputs = tiny.apply("backbone", embedded, np.arange(length)[None], return_layers=True)
    for layer in range(tiny.config.num_hidden_layers - 1):
        if f"{case}.dbg_layer{layer}" in tiny.outputs:
            tiny.check(f"{case}.dbg_layer{layer}", outputs[layer])
    tiny.check(f"{case}.hidden", hidden)
    tiny.check(f"{case}.text_logits", tiny.apply("text_logits", hidden))
    tiny.check(f"{case}.local_hidden", tiny.apply("local_hidden", hidden))


def test_causal_patch_encoder(tiny):
    config = dataclasses.replace(tiny.config, input_full_attention=False)
    text, audio = grid_arrays(tiny.inputs["input_ids"], config.group_size)
    codes = audio.reshape(-1, *audio.shape[2:])
    frames = tiny.apply(patch_frames, tiny.apply("patch_encoder_input", codes), config=config)
    tiny.check("causal_variant.patch_encoder_out", frames.reshape(*audio.shape[:3], -1))
    tiny.check("causal_variant.inputs_embeds", tiny.apply("embed", text, audio, config=config))


def test_gathered_patches_embed_alike(tiny):
    text, audio = grid_arrays(tiny.inputs["input_ids"], tiny.config.group_size)
    is_audio = text == tiny.config.empty_token_id
    slot = np.where(is_audio, np.cumsum(is_audio).reshape(text.shape) - 1, is_audio.sum())
    gathered = tiny.apply("embed_gathered", text, audio[is_audio], slot)
    np.testing.assert_allclose(gathered, tiny.outputs["batch.inputs_embeds"], rtol=0, atol=1.6e-6)


@pytest.mark.parametrize("case", ["tf", "tf_random"])
def test_teacher_forced_patch_decoder(tiny, case):
    if case == "tf":
        local = tiny.outputs["batch.local_hidden"][tuple(tiny.inputs["tf_index"].T)]
    else:
        local = tiny.inputs["tf_random_local_hidden"]
    codes = tiny.inputs[f"{case}_targets"]
    tiny.check(f"{case}.step_in", tiny.apply("patch_step_inputs", local, codes))
    tiny.check(f"{case}.step_hidden", tiny.apply("patch_hidden", local, codes))
    logits = tiny.apply("patch_logits", local, codes)
    for c, values in enumerate(logits):
        tiny.check(f"{case}.logits_c{c}", values)
    nll = [
        -np.take_along_axis(np.asarray(jax.nn.log_softmax(values)), codes[..., c : c + 1], -1)[..., 0]
        for c, values in enumerate(logits)
    ]
    tiny.check(f"{case}.nll", np.stack(nll, -1))

    steps, delays = tiny.config.patch_steps, np.asarray(tiny.config.delay_pattern)
    frame = np.arange(steps)[:, None] - delays
    np.testing.assert_array_equal((frame >= 0) & (frame < tiny.config.group_size), tiny.outputs[f"{case}.step_active"])


def test_stepwise_patch_decoder_equals_teacher_forcing(tiny):
    local, codes = tiny.inputs["tf_random_local_hidden"], tiny.inputs["tf_random_targets"]
    expected = tiny.apply("patch_logits", local, codes)
    delays, group = tiny.config.delay_pattern, tiny.config.group_size
    cache = transformer.init_cache(tiny.config.patch_decoder, len(local), tiny.config.patch_steps)
    x = local
    for step in range(tiny.config.patch_steps):
        logits, cache = tiny.apply("patch_step", x, jnp.int32(step), cache)
        frame = step - np.asarray(delays)
        active = (frame >= 0) & (frame < group)
        for c in np.flatnonzero(active):
            np.testing.assert_allclose(logits[c], expected[c][:, frame[c]], rtol=0, atol=2e-4)
        now = codes[:, np.clip(frame, 0, group - 1), np.arange(len(delays))]
        x = tiny.apply("step_input_from_codes", now, active)


def test_greedy_local(tiny):
    """Reference's greedy patch from every position: fed back, each code must win its own logits by the margin."""
    codes = tiny.outputs["greedy_local.tokens"]
    local = tiny.outputs["batch.local_hidden"].reshape(-1, tiny.config.local_dim)
    logits = tiny.apply("patch_logits", local, codes.reshape(-1, *codes.shape[2:]))
    margin = np.empty(codes.shape, np.float32)
    for c, values in enumerate(logits):
        values = np.array(values).reshape(*codes.shape[:3], -1)
        values[..., tiny.config.speech_zeroemb_idx[c]] = -np.inf
        np.testing.assert_array_equal(values.argmax(-1), codes[..., c])
        best = np.sort(values, axis=-1)
        margin[..., c] = best[..., -1] - best[..., -2]
    tiny.check("greedy_local.margin", margin)


def test_codes_at_text_positions_do_not_matter(tiny):
    text, audio = grid_arrays(tiny.inputs["input_ids"], tiny.config.group_size)
    other = np.where((text == tiny.config.empty_token_id)[..., None, None], audio, 1)
    np.testing.assert_array_equal(tiny.apply("embed", text, audio), tiny.apply("embed", text, other))
