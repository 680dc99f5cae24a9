"""Encoder: log-mel frames (100 Hz) -> features (25 Hz) to be quantised."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models.tokenizer import extents
from mimo_jax.models.tokenizer.blocks import Conv1d, Stack, StackConfig, gelu, norm
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.extents import E, Packed, masked
from mimo_jax.models.transformer import Compute

Array = jax.Array

PADDING = 1  # of both convolutions, whatever their kernel size


def after_first(extent: E, config: TokenizerConfig) -> E:
    """Extent after the first convolution, of that of mel frames.

    Raises:
      ValueError: packed sequences and a kernel that changes their length.
    """
    if not isinstance(extent, Packed):
        return extent + 2 * PADDING - config.kernel_size + 1
    if config.kernel_size != 2 * PADDING + 1:
        raise ValueError(f"kernel_size is {config.kernel_size}: packed sequences need {2 * PADDING + 1}")
    return extent


def hidden_extent(extent: E, config: TokenizerConfig) -> E:
    """Extent after the strided convolution, of that of mel frames (lengths: 0 for 0)."""
    first = after_first(extent, config)
    if isinstance(first, Packed):
        return extents.strided(first, config.stride_size)
    after_second = (first + 2 * PADDING - config.kernel_size) // config.stride_size + 1
    return jnp.where(extent > 0, jnp.maximum(after_second, 0), 0)


def code_extent(extent: E, config: TokenizerConfig) -> E:
    """Extent in code frames, of that of mel frames."""
    return extents.strided(hidden_extent(extent, config), config.avg_pooler)


class Encoder(nn.Module):
    """Two convolutions, the Transformer stack with its skip connection, pooling by a strided convolution."""

    config: TokenizerConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, mel: Array, extent: E) -> tuple[Array, E]:
        """mel [B, F, n_mels], its extent -> (features [B, T, d_model], zero outside it; their extent).

        Everything outside a sequence is zero before each convolution, as if the sequence were alone.
        """
        config, compute = self.config, self.compute
        x = Conv1d(config.d_model, config.kernel_size, 1, PADDING, compute=compute, name="conv1")(masked(mel, extent))
        self.sow("intermediates", "conv1_output", x)
        x = masked(gelu(x), after_first(extent, config))
        x = Conv1d(config.d_model, config.kernel_size, config.stride_size, PADDING, compute=compute, name="conv2")(x)
        self.sow("intermediates", "conv2_output", x)
        x = gelu(x)

        extent = hidden_extent(extent, config)
        stack = StackConfig(
            width=config.d_model,
            ffn=config.encoder_ffn_dim,
            num_layers=config.encoder_layers,
            num_heads=config.encoder_attention_heads,
            causal=config.encoder_causal,
            window=config.encoder_attn_window_size,
            norm=config.ln_type,
            rope_theta=config.rope_theta,
            skip=config.encoder_skip_layer_id,
        )
        x, _ = Stack(stack, compute, name="transformer")(x, extent)
        x = norm(config.ln_type, compute, "layer_norm")(x)
        self.sow("intermediates", "layer_norm_output", x)

        if config.avg_pooler > 1:
            pool = config.avg_pooler
            x = jnp.pad(masked(x, extent), ((0, 0), (0, -x.shape[1] % pool), (0, 0)))
            x = gelu(Conv1d(config.d_model, pool, pool, use_bias=False, compute=compute, name="down_sample")(x))
            self.sow("intermediates", "down_sample_output", x)
            x = norm(config.ln_type, compute, "down_sample_norm")(x)
        extent = extents.strided(extent, config.avg_pooler)
        return masked(x, extent), extent
