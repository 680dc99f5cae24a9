"""Discriminators of stage 2: multi-period (HiFi-GAN, 2010.05646) and multi-scale STFT (EnCodec, arXiv 2210.13438).

All layers carry spectral norm (arXiv 1802.05957). The power-iteration vectors `u` live in the collection `spectral` and
move by one iteration whenever that collection is mutable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mimo_jax.models.tokenizer import frontend
from mimo_jax.models.tokenizer.blocked_conv import conv2d
from mimo_jax.models.tokenizer.blocks import FAN_IN
from mimo_jax.models.transformer import Compute

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes; the defaults are those of the two papers.

    Attributes:
      periods: of the multi-period discriminators, in samples.
      period_channels: features of their layers, strides 3 but for the last.
      stft_sizes: window lengths of the STFT discriminators, in samples; hop = a quarter.
      stft_channels: features of their layers.
      stft_block: frequencies that are computed as channels (`blocked_conv`), even: changes the speed alone. About 8
        with few features on a CPU; with 32 features 4 fill a TPU's 128 lanes.
      input_gain: factor of the waveform before all of them. Layers of spectral norm 1 pass a level on and do not
        raise it: speech at -25 dB gives logits of some hundredths where the hinge loss asks for 1 and -1.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    stft_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    stft_channels: int = 32
    stft_block: int = 1
    input_gain: float = 1.0


def spectral_norm(matrix: Array, u: Array) -> tuple[Array, Array]:
    """Largest singular value of matrix [inputs, features] by one power iteration from u [features]: (value, next u).

    The gradient takes the singular vectors as constants.
    """
    fixed = jax.lax.stop_gradient(matrix)
    v = _unit(fixed @ u)
    u = _unit(v @ fixed)
    return jnp.maximum(v @ matrix @ u, 1e-12), u


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


class SpectralConv(nn.Module):
    """2-D convolution, padded by half its reach, with a kernel [h, w, in, out] of spectral norm 1; see `conv2d`."""

    features: int
    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    compute: Compute = Compute()
    block: int = 1  # see `conv2d`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        param_dtype = jnp.dtype(self.compute.param_dtype)
        # Narrow kernels lie whole on every device: there is nothing to save, and a few features do not divide.
        wide = self.features % 128 == 0
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(FAN_IN, (None, None, None, "embed" if wide else None)),
            (*self.size, x.shape[-1], self.features),
            param_dtype,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("norm" if wide else None,)),
            (self.features,),
            param_dtype,
        )
        u = self.variable(
            "spectral", "u", lambda: _unit(jax.random.normal(self.make_rng("params"), (self.features,), jnp.float32))
        )
        norm, new_u = spectral_norm(kernel.astype(jnp.float32).reshape(-1, self.features), u.value)
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            u.value = new_u
        kernel = (kernel / norm).astype(self.compute.dtype)
        y = conv2d(x.astype(self.compute.dtype), kernel, self.strides, self.dilation, self.block)
        return y + bias.astype(self.compute.dtype)


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample: the waveform folded to [B, S / period, period], convolved along time."""

    period: int
    channels: Sequence[int]
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, wave: Array) -> tuple[Array, list[Array]]:
        """wave [B, S] -> (logits, activations of the layers before)."""
        padded = jnp.pad(wave, ((0, 0), (0, -wave.shape[1] % self.period)), mode="reflect")
        x = padded.reshape(wave.shape[0], -1, self.period, 1)
        activations = []
        for i, features in enumerate(self.channels):
            stride = 3 if i < len(self.channels) - 1 else 1
            x = SpectralConv(features, (5, 1), (stride, 1), compute=self.compute, name=f"conv_{i}")(x)
            x = nn.leaky_relu(x, 0.1)
            activations.append(x)
        return SpectralConv(1, (3, 1), compute=self.compute, name="post")(x), activations


class StftDiscriminator(nn.Module):
    """Sees real and imaginary part of a normalised STFT as two channels over time and frequency."""

    size: int
    channels: int
    compute: Compute = Compute()
    block: int = 1

    @nn.compact
    def __call__(self, wave: Array) -> tuple[Array, list[Array]]:
        """wave [B, S], S >= size -> (logits, activations of the layers before)."""
        window = frontend.hann_window(self.size)
        real, imag = frontend.stft(wave, self.size, self.size // 4, window / np.sqrt(np.sum(np.square(window))))
        x = jnp.stack([real, imag], axis=-1)
        layers = [((3, 9), (1, 1), (1, 1))]
        layers += [((3, 9), (1, 2), (dilation, 1)) for dilation in (1, 2, 4)]
        layers += [((3, 3), (1, 1), (1, 1))]
        activations = []
        for i, (size, strides, dilation) in enumerate(layers):
            x = SpectralConv(self.channels, size, strides, dilation, self.compute, self.block, name=f"conv_{i}")(x)
            x = nn.leaky_relu(x, 0.2)
            activations.append(x)
        return SpectralConv(1, (3, 3), compute=self.compute, block=self.block, name="post")(x), activations


class Discriminators(nn.Module):
    """All sub-discriminators."""

    config: DiscriminatorConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, wave: Array) -> tuple[list[Array], list[list[Array]]]:
        """wave [B, S] -> (logits of each sub-discriminator, activations of each).

        Raises:
          ValueError: a waveform shorter than the longest STFT window.
        """
        config = self.config
        if wave.shape[1] < max(config.stft_sizes, default=0):
            raise ValueError(
                f"segments of {wave.shape[1]} samples are shorter than the STFT window {max(config.stft_sizes)}: "
                "give longer segments or smaller stft_sizes"
            )
        parts: list[nn.Module] = [
            PeriodDiscriminator(period, config.period_channels, self.compute, name=f"period_{period}")
            for period in config.periods
        ]
        parts += [
            StftDiscriminator(size, config.stft_channels, self.compute, config.stft_block, name=f"stft_{size}")
            for size in config.stft_sizes
        ]
        outputs = [part(wave * config.input_gain) for part in parts]
        # Losses ask for differences from 1, which bfloat16 rounds away.
        return [logits.astype(jnp.float32) for logits, _ in outputs], [activations for _, activations in outputs]
