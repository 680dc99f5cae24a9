"""A tokenizer trained here, exported and read again, computes what the published models' reference computes with it.

The reference (`tests/reference`) is NumPy in float64 and reproduces the published models' numbers, so that an exported
tokenizer on which both agree means to its users what it meant in training.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from mimo_jax import convert
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.interop import exporters
from mimo_jax.models import layers
from mimo_jax.models.tokenizer import TokenizerConfig
from mimo_jax.models.tokenizer.discriminators import DiscriminatorConfig
from mimo_jax.models.tokenizer.rvq import RvqTraining
from mimo_jax.objectives.tokenizer import SMALL_LLM, TokenizerObjective
from mimo_jax.objectives.tokenizer_gan import TokenizerGanObjective
from tests.interop.test_convert import same_tensors
from tests.reference.tokenizer import Tokenizer, log_mel

CONFIG = TokenizerConfig(
    d_model=32,
    encoder_layers=3,
    encoder_skip_layer_id=1,
    encoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_layers=2,
    decoder_attention_heads=2,
    decoder_ffn_dim=64,
    n_mels=40,
    vocoder_dim=32,
    vocoder_intermediate_dim=64,
    vocoder_num_layers=2,
    vocoder_attention_heads=2,
    num_quantizers=5,
    codebook_size=(32, 32, 16),
)
LLM = dataclasses.replace(
    SMALL_LLM, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32
)
UNIFIED = TokenizerObjective(
    CONFIG,
    text_vocab_size=12,
    llm=LLM,
    quantizer=RvqTraining(kmeans_iterations=5, dropout=0.5),
    unquantized_steps=15,
    segment_frames=20,
    coarse_mel_weight=10.0,
)
ADVERSARIAL = TokenizerGanObjective(
    CONFIG,
    DiscriminatorConfig(periods=(2,), period_channels=(4, 8), stft_sizes=(256,), stft_channels=4),
    segment_frames=10,
    adversarial_start=0.0,
)


def waves(seed: int, count: int = 4, samples: int = 12000) -> np.ndarray:
    """Gliding tones in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 24000
    pitch = rng.uniform(100, 400, (count, 1)) * (1 + rng.uniform(-0.5, 0.5, (count, 1)) * time)
    tones = sum(np.sin(2 * np.pi * n * np.cumsum(pitch, axis=1) / 24000) / n for n in (1, 2, 3))
    return (0.2 * tones + 0.01 * rng.normal(size=(count, samples))).astype(np.float32)


def batch(seed: int) -> dict[str, np.ndarray]:
    wave = waves(seed)
    text = np.random.default_rng(seed).integers(1, 12, (len(wave), 3)).astype(np.int32)
    return {
        "waveform": wave,
        "num_samples": np.full(len(wave), wave.shape[1], np.int32),
        "text": text,
        "text_length": np.full(len(wave), 3, np.int32),
    }


def train(objective, params, mutable, steps: int, rate: float):
    optimizer = optax.adam(rate)

    @jax.jit
    def step(params, mutable, state, data, rng):
        grads, (mutable, _) = jax.grad(objective.loss, has_aux=True)(params, mutable, data, rng, jax.numpy.float32(1))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), mutable, state

    state = optimizer.init(params)
    for i in range(steps):
        params, mutable, state = step(params, mutable, state, batch(i), jax.random.key(i))
    return params, mutable


@dataclasses.dataclass
class Trained:
    """One stage's tokenizer as it left training, and where it was exported to."""

    variables: dict
    folder: Path


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Trained]:
    found, folder = {}, tmp_path_factory.mktemp("trained")
    params, mutable = layers.unbox(jax.jit(UNIFIED.init)(jax.random.key(0), batch(0)))
    params, mutable = train(UNIFIED, params, mutable, 50, 3e-3)
    found["unified"] = (UNIFIED, params, mutable)
    params, mutable = ADVERSARIAL.from_stage1(params, mutable, jax.random.key(1), batch(0))
    found["adversarial"] = (ADVERSARIAL, *train(ADVERSARIAL, params, mutable, 5, 1e-3))
    trained = {}
    for name, (objective, *state) in found.items():
        exporters.audio_tokenizer(folder / name)(objective, *state)
        trained[name] = Trained(jax.device_get(objective.tokenizer_variables(*state)), folder / name)
    return trained


@pytest.fixture(params=["unified", "adversarial"])
def trained(request, stages) -> Trained:
    return stages[request.param]


def assert_as_the_reference(folder: Path, utterances: list[np.ndarray]) -> None:
    """An exported tokenizer here and in the reference: the same codes, and waveforms within rounding."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
    reference, codec = Tokenizer(config, tensors), AudioCodec.load(folder)
    count = config["num_quantizers"]
    compared = 0
    for wave, codes in zip(utterances, codec.encode(utterances), strict=True):
        expected, margin = reference.codes(reference.features(log_mel(wave, config)))
        # From the first codebook on whose two nearest codes are as near as makes no difference, the frame is open.
        sure = np.logical_and.accumulate(margin > 1e-3, axis=0)
        np.testing.assert_array_equal(codes.T[sure], expected[sure])
        compared += sure.sum() / expected.size
        for books in (count, max(1, count // 2)):
            ours = codec.decode([expected.T[:, :books]])[0]
            theirs = reference.wave(reference.coarse_mel(reference.hidden(expected[:books])))
            np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=0, atol=2e-4 * np.abs(theirs).max())
    assert compared / len(utterances) > 0.7


def test_export_is_what_was_trained(trained):
    """Bit by bit, codes and waveforms."""
    before, after = AudioCodec(CONFIG, trained.variables), AudioCodec.load(trained.folder)
    codes = before.encode(list(waves(99)))
    for ours, theirs in zip(after.encode(list(waves(99))), codes, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(after.decode(codes), before.decode(codes), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(np.concatenate(codes)[:, 0])) > 2  # a tokenizer that says the same of everything shows little


def test_export_agrees_with_the_reference(trained):
    assert_as_the_reference(trained.folder, list(waves(98)))


def test_import_gives_back_the_export(trained, tmp_path):
    assert convert.main(["import", f"--weights={trained.folder}", f"--out={tmp_path / 'run'}"]) == 0
    assert convert.main(["export", f"--model_dir={tmp_path / 'run'}", f"--out={tmp_path / 'again'}"]) == 0
    same_tensors(tmp_path / "again", trained.folder)
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads(
        (trained.folder / "config.json").read_text()
    )


def test_stages_share_their_codes(stages):
    """Stage 2 leaves encoder and codebooks as they were: what a language model was trained on keeps its meaning."""
    first, second = (AudioCodec.load(stages[name].folder) for name in ("unified", "adversarial"))
    codes = first.encode(list(waves(97)))
    for ours, theirs in zip(second.encode(list(waves(97))), codes, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(first.decode(codes), second.decode(codes), strict=True))
