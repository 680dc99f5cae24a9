"""Packed rows of waveforms on a mesh: every device works on its own rows from the waveform to the losses and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mimo_jax.models.tokenizer import extents
from mimo_jax.models.tokenizer.frontend import hann_window
from mimo_jax.models.tokenizer.vocoder import istft_same
from mimo_jax.objectives import audio_batches
from mimo_jax.objectives.reconstruction import Stretch, mel_distance
from mimo_jax.parallel import mesh as mesh_lib
from tests.objectives.test_packed_rows import packed
from tests.objectives.test_tokenizer import CONFIG
from tests.parallel.collectives import sizes

ROWS, HARDWARE = 8, mesh_lib.Hardware(data=4, fsdp=2)


def from_wave_to_loss(wave, batch):
    """A distance between the batch's waveforms and `wave`, by way of mel, random crops and inverse STFT."""
    mel, extent, samples = audio_batches.log_mel({**batch, "waveform": wave}, CONFIG)
    part = Stretch.whole(mel, extent, batch["waveform"], samples, CONFIG.hop_length)
    part = part.random(jax.random.key(0), 20, CONFIG.hop_length, crops=2)
    bins = CONFIG.nfft // 2 + 1
    real = jnp.pad(part.mel, ((0, 0), (0, 0), (0, bins - CONFIG.n_mels)))
    window = jnp.asarray(hann_window(CONFIG.nfft))
    output = istft_same(real, 0.1 * real, window, CONFIG.hop_length, part.mel_extent)
    output = extents.masked(output, part.sample_extent)
    total, count = mel_distance(output, part.waveform, part.sample_extent, CONFIG.sampling_rate)
    return total.sum() / count.sum()


@pytest.fixture(scope="module")
def batch():
    return {name: np.tile(value, (ROWS // 2, *[1] * (value.ndim - 1))) for name, value in packed().items()}


def test_each_device_works_on_its_own_rows(batch):
    step = jax.value_and_grad(from_wave_to_loss)
    expected, wanted = jax.jit(step)(batch["waveform"] * 0.9, batch)
    mesh = HARDWARE.make_mesh(jax.devices()[:8])
    with jax.set_mesh(mesh), nn.logical_axis_rules(HARDWARE.rules):
        spread = mesh_lib.put_batch(batch, mesh)
        program = jax.jit(step).lower(spread["waveform"] * 0.9, spread).compile()
        loss, gradient = program(spread["waveform"] * 0.9, spread)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.any(wanted)
    # Places of sequences and sums of losses may travel, a few numbers a row; waveforms and frames may not.
    assert max(sizes(program.as_text())) <= ROWS * 3 * 4
