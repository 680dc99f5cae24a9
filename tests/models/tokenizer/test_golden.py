"""Parity of encoder, quantiser, decoder and vocoder with the reference numbers, alone and in padded batches."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.interop import hf
from mimo_jax.models.tokenizer import MimoAudioTokenizer
from mimo_jax.models.tokenizer.frontend import log_mel


class Golden:
    def __init__(self, folder):
        self.inputs = dict(np.load(folder / "inputs.npz"))
        self.outputs = dict(np.load(folder / "outputs.npz"))
        self.atol = json.loads((folder / "tolerances.json").read_text())["atol"]
        self.config, self.variables = hf.load_tokenizer(folder)

    def check(self, name, value):
        expected = self.outputs[name].reshape(np.shape(value))
        error = np.max(np.abs(np.asarray(value, np.float64) - expected))
        assert error <= self.atol[name], f"{name}: error {error:.2e}, tolerance {self.atol[name]:.2e}"

    def run(self, method, *args, **kwargs):
        model = MimoAudioTokenizer(self.config)
        return jax.jit(partial(model.apply, method=method, **kwargs))(self.variables, *args)


@pytest.fixture(scope="module")
def golden(request):
    return Golden(request.config.rootpath / "tests" / "golden" / "tokenizer_tiny")


def padded(arrays, length, noise=0.0):
    out = np.random.default_rng(0).normal(size=(len(arrays), length, *arrays[0].shape[1:])) * noise
    out = out.astype(arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return jnp.asarray(out), jnp.asarray([len(a) for a in arrays])


def check_encode(golden, names, mels, length):
    mel, lengths = padded(mels, length, noise=1.0)  # garbage behind the ends must not matter
    features, frames = golden.run("encode_features", mel, lengths)
    codes, _ = golden.run("encode", mel, lengths)
    for b, name in enumerate(names):
        count = int(frames[b])
        assert count == golden.outputs[f"{name}.lengths"][0]
        golden.check(f"{name}.features_packed", features[b, :count])
        golden.check(f"{name}.codes", codes[b, :count].T)
        assert not np.any(features[b, count:]) and not np.any(codes[b, count:])


@pytest.mark.parametrize("extra", [0, 1, 14])
def test_encode_alone(golden, extra):
    for i in range(3):
        mel = golden.inputs[f"mel_{i}"]
        check_encode(golden, [f"enc_single_{i}"], [mel], len(mel) + extra)


@pytest.mark.parametrize("length", [50, 51, 61])
def test_encode_in_a_batch(golden, length):
    check_encode(golden, [f"enc_single_{i}" for i in range(3)], [golden.inputs[f"mel_{i}"] for i in range(3)], length)
    edge = [golden.inputs[f"edge_mel_{i}"] for i in range(5)]
    check_encode(golden, [f"enc_edge_single_{i}" for i in range(5)], edge, length)


def test_encode_with_fewer_codebooks(golden):
    mel, lengths = padded([golden.inputs["mel_0"]], 40)
    codes, frames = golden.run("encode", mel, lengths, num_quantizers=2)
    golden.check("enc_partial.codes", codes[0, : int(frames[0])].T)


def test_quantized_features(golden):
    codes = golden.outputs["enc_single_1.codes"].T[None]
    model = MimoAudioTokenizer(golden.config)
    hidden = model.apply(golden.variables, codes, np.array([13]), method=lambda m, c, n: m.quantizer.decode(c, n))
    golden.check("enc_single_1.quantized_packed", hidden)


def decode_inputs(golden, indices, length):
    return padded([golden.inputs[f"dec_codes_{i}"].T.astype(np.int32) for i in indices], length)


@pytest.mark.parametrize(("indices", "length"), [([0], 10), ([1], 13), ([2], 9), ([0, 1, 2], 13), ([2, 0, 1], 17)])
def test_decode(golden, indices, length):
    codes, lengths = decode_inputs(golden, indices, length)
    waves, samples = golden.run("decode", codes, lengths)
    for b, i in enumerate(indices):
        assert samples[b] == golden.outputs[f"dec_single_{i}.valid_samples"][0]
        golden.check(f"dec_single_{i}.wav", waves[b, : int(samples[b])])
        assert not np.any(waves[b, int(samples[b]) :])


def test_decode_with_fewer_codebooks(golden):
    codes, lengths = decode_inputs(golden, [0, 1], 13)
    waves, samples = golden.run("decode", codes[..., :2], lengths)
    golden.check("dec_partial.wav", waves[0, : int(samples[0])])


def test_intermediate_arrays(golden):
    model = MimoAudioTokenizer(golden.config)
    mel, lengths = padded([golden.inputs["mel_0"]], 37)
    apply = jax.jit(model.apply, static_argnames=("method", "mutable"))
    _, state = apply(golden.variables, mel, lengths, method="encode", mutable="intermediates")
    inner = state["intermediates"]["encoder"]
    for name in ("conv1", "conv2", "down_sample"):
        golden.check(f"enc_single_0.dbg_{name}", np.swapaxes(inner[f"{name}_output"][0], 1, 2))
    for i, x in enumerate(inner["transformer"]["layers"]["output"][0]):
        golden.check(f"enc_single_0.dbg_layer{i}", x[0])
    golden.check("enc_single_0.dbg_layer_norm", inner["layer_norm_output"][0][0])

    codes, lengths = decode_inputs(golden, [0], 10)
    _, state = apply(golden.variables, codes, lengths, method="decode", mutable="intermediates")
    decoder, vocoder = state["intermediates"]["decoder"], state["intermediates"]["vocoder"]
    golden.check("dec_single_0.dbg_dconv1", decoder["dconv1_output"][0])
    golden.check("dec_single_0.dbg_layer_norm", decoder["layer_norm_output"][0][0])
    golden.check("dec_single_0.dbg_voc_embeddings", vocoder["embeddings_output"][0][0])
    for i, x in enumerate(vocoder["transformer"]["layers"]["output"][0]):
        golden.check(f"dec_single_0.dbg_voc_layer{i}", x[0])
    golden.check("dec_single_0.dbg_voc_layer_norm", vocoder["layer_norm_output"][0][0])
    golden.check("dec_single_0.dbg_head_out", vocoder["head_out_output"][0])


def test_waveform_to_waveform(golden):
    wave = golden.inputs["e2e_wav"]
    padded_wave = np.pad(wave, (0, 89))[None]
    mel, lengths = jax.jit(log_mel, static_argnums=2)(padded_wave, np.array([len(wave)]), golden.config)
    error = np.abs(np.exp(mel[0, : int(lengths[0])]) - np.exp(golden.inputs["e2e_mel"]))
    assert error.max() <= 3e-5 * np.exp(golden.inputs["e2e_mel"]).max()
    codes, frames = golden.run("encode", mel, lengths)
    golden.check("e2e.codes", codes[0, : int(frames[0])].T)
    waves, samples = golden.run("decode", codes, frames)
    golden.check("e2e.wav_out", waves[0, : int(samples[0])])


def test_initialised_tree_is_the_released_one(golden):
    model = MimoAudioTokenizer(golden.config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 40, 16)), jnp.array([40]))
    assert jax.tree.map(jnp.shape, nn.unbox(shapes)) == jax.tree.map(np.shape, golden.variables)
