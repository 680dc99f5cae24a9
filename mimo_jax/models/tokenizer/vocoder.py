"""Vocoder: coarse mel (100 Hz) -> waveform, a windowed Transformer with an inverse STFT head (after Vocos)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models import layers
from mimo_jax.models.tokenizer.blocks import FAN_IN, Stack, StackConfig, dtypes, norm
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.extents import E, masked, stretched, valid_mask
from mimo_jax.models.tokenizer.frontend import by_device, hann_window, overlap_add
from mimo_jax.models.transformer import Compute

Array = jax.Array

MAX_MAGNITUDE = 1e2


def istft_same(real: Array, imag: Array, window: Array, hop: int, extent: E) -> Array:
    """Inverse STFT with "same" padding: F frames give F * hop samples, whatever is in frames outside the extent.

    Args:
      real, imag: [B, F, n_fft // 2 + 1] float32. The imaginary parts of the first and last bin have no effect.
      window: [n_fft].
      extent: of the frames; the waveform outside it is zero.

    Returns:
      [B, F * hop] float32.
    """
    n_fft, count = window.shape[0], real.shape[1]
    valid = valid_mask(extent, count)[:, :, None]
    inner = (jnp.arange(n_fft // 2 + 1) > 0) & (jnp.arange(n_fft // 2 + 1) < n_fft // 2)

    def synthesise(real: Array, imag: Array) -> Array:
        return jnp.fft.irfft(jax.lax.complex(real, imag), n=n_fft)

    pieces = by_device(synthesise, jnp.where(valid, real, 0), jnp.where(valid & inner, imag, 0))
    wave = overlap_add(pieces * window, hop)
    envelope = overlap_add(valid * jnp.square(window), hop)
    cut = (n_fft - hop) // 2
    wave, envelope = (x[:, cut : cut + count * hop] for x in (wave, envelope))
    inside = valid_mask(stretched(extent, hop), count * hop)
    return jnp.where(inside, wave / jnp.where(inside, envelope, 1.0), 0)


class Vocoder(nn.Module):
    """Linear, windowed Transformer, norm, linear to log-magnitude and phase, inverse STFT."""

    config: TokenizerConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, mel: Array, extent: E) -> Array:
        """mel [B, F, n_mels], its extent -> waveform [B, F * hop_length] float32, zero outside it."""
        config, compute = self.config, self.compute
        embed = layers.Linear(
            config.vocoder_dim, (None, "embed"), kernel_init=FAN_IN, name="embeddings", **dtypes(compute)
        )
        x = embed(masked(mel, extent))
        self.sow("intermediates", "embeddings_output", x)
        stack = StackConfig(
            width=config.vocoder_dim,
            ffn=config.vocoder_intermediate_dim,
            num_layers=config.vocoder_num_layers,
            num_heads=config.vocoder_attention_heads,
            causal=False,
            window=config.vocoder_attn_window_size,
            norm=config.ln_type,
            rope_theta=config.rope_theta,
        )
        x, _ = Stack(stack, compute, name="transformer")(x, extent)
        x = norm(config.ln_type, compute, "layer_norm")(x)
        self.sow("intermediates", "layer_norm_output", x)
        out = layers.Linear(config.nfft + 2, ("embed", None), True, kernel_init=FAN_IN, name="out", **dtypes(compute))
        x = out(x).astype(jnp.float32)
        self.sow("intermediates", "head_out_output", x)
        log_magnitude, phase = jnp.split(x, 2, axis=-1)
        magnitude = jnp.minimum(jnp.exp(log_magnitude), MAX_MAGNITUDE)
        # The window is stored with released weights: read it from there, so that export gives back the same bytes.
        window = self.variable("constants", "window", lambda: jnp.asarray(hann_window(config.nfft)))
        return istft_same(
            magnitude * jnp.cos(phase), magnitude * jnp.sin(phase), window.value, config.hop_length, extent
        )
