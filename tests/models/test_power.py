"""The comparison with the published numbers has power: each of these small mistakes leaves the tolerance.

Through `verify`, on golden folders with one output array each, so that only the part in question is compiled.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mimo_jax.interop import configs, verify, verify_lm
from mimo_jax.models import layers
from mimo_jax.models.mimo_audio import MimoAudio
from mimo_jax.models.tokenizer import blocks, encoder, vocoder

ENCODE, DECODE = "enc_single_0.features_packed", "dec_single_0.wav"
FORWARD, ODD, PATCH = "batch.text_logits", "odd.text_logits", "tf_random.logits_c5"


@pytest.fixture(scope="module")
def part_of(golden, tmp_path_factory):
    """The golden folder of an output array, with nothing but that array to compare."""

    @functools.cache
    def make(name):
        source = golden / ("tokenizer_tiny" if name in (ENCODE, DECODE) else "lm_tiny")
        target = tmp_path_factory.mktemp("part") / "golden"
        shutil.copytree(source, target)
        np.savez(target / "outputs.npz", **{name: np.load(source / "outputs.npz")[name]})
        return target

    return make


def share_of_tolerance(weights, part):
    """Error in units of the tolerance, after checking what `verify` said about it."""
    lines = []
    passed = verify.verify(weights, part, lines.append)
    verdict, share = lines[1].split()[0], float(lines[1].split(" = ")[1])
    assert passed == (verdict == "ok") == (share <= 1) == lines[-1].startswith("PASSED: 1 ok")
    assert passed or lines[-1].startswith("FAILED: 0 ok, 1 OFF")
    return share


@pytest.mark.parametrize("array", [ENCODE, DECODE, FORWARD, ODD, PATCH])
def test_the_right_model_passes(part_of, array):
    assert share_of_tolerance(part_of(array), part_of(array)) < 0.3


# --- other weights and other configurations ---------------------------------------------------------------------------


def scaled(tensor):
    return tensor * np.float32(1.001)


def symmetric(window):
    return np.hanning(len(window)).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "config", "tensors"),
    [
        (ENCODE, {"encoder_skip_layer_id": 2}, {}),
        (ENCODE, {"encoder_skip_layer_id": None}, {}),
        (ENCODE, {"encoder_causal": True}, {}),
        (ENCODE, {"encoder_attn_window_size": [17, -1]}, {}),
        (ENCODE, {"rope_theta": 10500}, {}),
        (ENCODE, {}, {"encoder.conv1.bias": np.zeros_like}),
        (ENCODE, {}, {"encoder.layers.1.self_attn.q_proj.bias": np.zeros_like}),
        (ENCODE, {}, {"encoder.layers.3.self_attn.v_proj.bias": np.zeros_like}),
        (ENCODE, {}, {"encoder.layers.0.self_attn.out_proj.bias": np.zeros_like}),
        (DECODE, {"decoder_causal": False}, {}),
        (DECODE, {"decoder_attn_window_size": [18, 0]}, {}),
        (DECODE, {"vocoder_attn_window_size": [3, 1]}, {}),
        (DECODE, {"vocoder_attn_window_size": [4, 2]}, {}),
        (DECODE, {}, {"decoder.vocoder.layers.0.fc1.weight": scaled}),
        (DECODE, {}, {"decoder.vocoder.head.istft.window": symmetric}),
        (FORWARD, {"input_full_attention": False}, {}),
        (FORWARD, {"rms_norm_eps": 1e-5}, {}),
        (FORWARD, {}, {"model.layers.1.self_attn.q_proj.bias": np.zeros_like}),
        (FORWARD, {}, {"model.layers.0.self_attn.k_proj.bias": np.zeros_like}),
        (FORWARD, {}, {"input_local_transformer.layers.1.self_attn.v_proj.bias": np.zeros_like}),
        (FORWARD, {}, {"lm_head.weight": scaled}),
        (PATCH, {"rms_norm_eps": 1e-5}, {}),
        (PATCH, {"delay_pattern": "0-1-2-3-4-6-5-7"}, {}),
        (PATCH, {}, {"local_transformer.layers.0.self_attn.k_proj.bias": np.zeros_like}),
        (PATCH, {}, {"local_transformer.layers.1.self_attn.v_proj.bias": np.zeros_like}),
    ],
)
def test_a_wrong_folder_is_seen(part_of, tmp_path, array, config, tensors):
    source, wrong = part_of(array), tmp_path / "wrong"
    shutil.copytree(source, wrong)
    (wrong / "config.json").write_text(json.dumps(configs.read_config(source) | config))
    stored = load_file(source / "model.safetensors")
    for name, change in tensors.items():
        stored[name] = change(stored[name])
    save_file(stored, wrong / "model.safetensors")
    assert share_of_tolerance(wrong, source) > 5


# --- other computations ---------------------------------------------------------------------------------------------


def interleaved_rope(x, positions, theta):
    """Neighbours turn together, instead of entry i with entry i + head_dim / 2."""
    frequency = theta ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    angle = (positions[..., None] * frequency)[..., None, :]
    first, second = x[..., ::2], x[..., 1::2]
    turned = first * jnp.cos(angle) - second * jnp.sin(angle), second * jnp.cos(angle) + first * jnp.sin(angle)
    return jnp.stack(turned, axis=-1).reshape(x.shape)


def tanh_gelu(x):
    return jax.nn.gelu(x, approximate=True)


class EmptyCodesCount(MimoAudio):
    def patch_encoder_input(self, codes):
        return sum(table(codes[..., c], zero_empty=False) for c, table in enumerate(self.speech_embeddings))


MISTAKES = {
    "rope of interleaved pairs": [(layers, "apply_rope", interleaved_rope)],
    "tanh in GELU": [(blocks, "gelu", tanh_gelu), (encoder, "gelu", tanh_gelu)],
    "LayerNorm's epsilon": [(blocks, "NORM_EPS", {"LayerNorm": 1e-6})],
    "GroupNorm's epsilon": [(blocks, "GROUP_NORM_EPS", 1e-6)],
    "magnitudes without a limit": [(vocoder, "MAX_MAGNITUDE", np.inf)],
    "empty codes embedded": [(verify_lm, "MimoAudio", EmptyCodesCount)],
}


@pytest.mark.parametrize(
    ("mistake", "array"),
    [
        ("rope of interleaved pairs", ENCODE),
        ("rope of interleaved pairs", DECODE),
        ("rope of interleaved pairs", FORWARD),
        ("rope of interleaved pairs", PATCH),
        ("tanh in GELU", ENCODE),
        ("LayerNorm's epsilon", ENCODE),
        ("GroupNorm's epsilon", DECODE),
        ("magnitudes without a limit", DECODE),
        ("empty codes embedded", ODD),
    ],
)
def test_a_wrong_computation_is_seen(part_of, monkeypatch, mistake, array):
    for module, name, value in MISTAKES[mistake]:
        monkeypatch.setattr(module, name, value)  # `verify` compiles anew, so no cached program hides it
    assert share_of_tolerance(part_of(array), part_of(array)) > 5
