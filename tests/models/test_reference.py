"""The NumPy reference itself, against the published models' numbers: what it is compared with later rests on this."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models.released import grid_arrays
from tests.reference.lm import LanguageModel
from tests.reference.tokenizer import Tokenizer, log_mel


class Numbers:
    """A golden folder; counts what was compared."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")
        self.inputs = dict(np.load(folder / "inputs.npz"))
        self.outputs = dict(np.load(folder / "outputs.npz"))
        self.atol = json.loads((folder / "tolerances.json").read_text())["atol"]

    def check(self, name, value):
        expected = self.outputs[name]
        error = np.abs(np.asarray(value).reshape(expected.shape) - expected).max()
        assert error <= self.atol[name], f"{name}: error {error:.2e}, tolerance {self.atol[name]:.2e}"


@pytest.fixture(scope="module")
def codec(tokenizer_tiny):
    numbers = Numbers(tokenizer_tiny)
    numbers.model = Tokenizer(numbers.config, numbers.tensors)
    return numbers


@pytest.fixture(scope="module")
def lm(lm_tiny):
    numbers = Numbers(lm_tiny)
    empty = json.loads((lm_tiny / "special_tokens.json").read_text())["empty_idx"]
    numbers.model = LanguageModel(numbers.config, numbers.tensors, empty)
    return numbers


@pytest.mark.parametrize(
    ("prefix", "source"),
    [(f"enc_single_{i}", f"mel_{i}") for i in range(3)]
    + [(f"enc_edge_single_{i}", f"edge_mel_{i}") for i in range(5)]
    + [("e2e", "e2e_mel")],
)
def test_encode(codec, prefix, source):
    features = codec.model.features(codec.inputs[source])
    codes, margin = codec.model.codes(features)
    codec.check(f"{prefix}.lengths", [len(features)])
    codec.check(f"{prefix}.features_packed", features)
    codec.check(f"{prefix}.codes", codes)
    codec.check(f"{prefix}.margin", margin)
    codec.check(f"{prefix}.quantized_packed", codec.model.hidden(codes))


@pytest.mark.parametrize("prefix", ["dec_single_0", "dec_single_1", "dec_single_2", "dec_partial", "e2e"])
def test_decode(codec, prefix):
    if prefix == "e2e":
        codes = codec.outputs["e2e.codes"]
    else:
        codes = codec.inputs[f"dec_codes_{prefix[-1] if prefix[-1].isdigit() else 0}"]
    hidden = codec.model.hidden(codes[:2] if prefix == "dec_partial" else codes)
    mel = codec.model.coarse_mel(hidden)
    wave = codec.model.wave(mel)
    codec.check("e2e.wav_out" if prefix == "e2e" else f"{prefix}.wav", wave)
    if prefix.startswith("dec_single"):
        codec.check(f"{prefix}.hidden", hidden)
        codec.check(f"{prefix}.coarse_mel", mel)
        codec.check(f"{prefix}.valid_samples", [len(wave)])
    if prefix == "dec_single_0":
        codec.check("dec_single_0.dbg_head_out", codec.model.head(mel))


def test_fewer_codebooks(codec):
    codec.check("enc_partial.codes", codec.model.codes(codec.model.features(codec.inputs["mel_0"]), 2)[0])


def test_log_mel(codec):
    found, expected = np.exp(log_mel(codec.inputs["e2e_wav"], codec.config)), np.exp(codec.inputs["e2e_mel"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * expected.max())


@pytest.mark.parametrize(("prefix", "source"), [("batch", "input_ids"), ("odd", "input_ids_odd")])
def test_forward(lm, prefix, source):
    text, audio = grid_arrays(lm.inputs[source], lm.config["group_size"])
    is_audio = text == lm.model.empty_id
    results = [lm.model.forward(*row) for row in zip(text, audio, strict=True)]
    found = {
        "inputs_embeds": np.stack([r.embedded for r in results]),
        "hidden": np.stack([r.hidden for r in results]),
        "text_logits": np.stack([r.text_logits for r in results]),
        "local_hidden": np.stack([r.local_hidden for r in results]),
    }
    if prefix == "batch":
        found |= {f"dbg_layer{n}": np.stack([r.layers[n] for r in results]) for n in range(2)}
    # The frames of text positions, which the reference runs through the patch encoder as zeros, count for nothing.
    frames = np.stack([[lm.model.frames(codes) for codes in row] for row in audio])
    frames[~is_audio] = 0
    found["patch_encoder_in"] = frames
    found["patch_encoder_out"] = np.stack([[lm.model.encoded(patch) for patch in row] for row in frames])
    found["speech_grouped"] = np.where(is_audio[..., None], found["inputs_embeds"], 0)
    for name, value in found.items():
        lm.check(f"{prefix}.{name}", value)


def test_causal_patch_encoder(lm):
    model = LanguageModel(lm.config | {"input_full_attention": False}, lm.tensors, lm.model.empty_id)
    text, audio = grid_arrays(lm.inputs["input_ids"], lm.config["group_size"])
    embedded = [[model.embed(t, codes) for t, codes in zip(*row, strict=True)] for row in zip(text, audio, strict=True)]
    lm.check("causal_variant.inputs_embeds", embedded)
    audio[text != model.empty_id] = lm.model.empty_codes
    encoded = [[model.encoded(model.frames(codes)) for codes in row] for row in audio]
    lm.check("causal_variant.patch_encoder_out", encoded)


@pytest.mark.parametrize("prefix", ["tf", "tf_random"])
def test_forced_patches(lm, prefix):
    local = lm.inputs.get(f"{prefix}_local_hidden")
    if local is None:
        local = lm.outputs["batch.local_hidden"][tuple(lm.inputs["tf_index"].T)]
    targets = lm.inputs[f"{prefix}_targets"]
    patches = [lm.model.patch(*pair) for pair in zip(local, targets, strict=True)]
    lm.check(f"{prefix}.step_in", [p.step_in for p in patches])
    lm.check(f"{prefix}.step_hidden", [p.step_hidden for p in patches])
    for c in range(lm.config["audio_channels"]):
        lm.check(f"{prefix}.logits_c{c}", [p.logits[c] for p in patches])


def test_greedy_patches(lm):
    local = lm.outputs["batch.local_hidden"]
    patches = [[lm.model.patch(x) for x in row] for row in local]
    lm.check("greedy_local.tokens", [[p.tokens for p in row] for row in patches])
    lm.check("greedy_local.margin", [[p.margin for p in row] for row in patches])


@pytest.mark.parametrize("prefix", ["text", "audio"])
def test_generation(lm, prefix):
    text, audio = grid_arrays(lm.inputs[f"prompt_{prefix}"], lm.config["group_size"])
    expected = grid_arrays(lm.outputs[f"gen_{prefix}.new"], lm.config["group_size"])
    found = lm.model.generate(text, audio, 10)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
