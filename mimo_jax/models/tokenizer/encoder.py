"""Encoder: log-mel frames (100 Hz) -> features (25 Hz) to be quantised."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models.tokenizer.blocks import Conv1d, Stack, StackConfig, gelu, masked, norm
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.transformer import Compute

Array = jax.Array

PADDING = 1  # of both convolutions, whatever their kernel size


def hidden_lengths(lengths: Array, config: TokenizerConfig) -> Array:
    """Frames after the strided convolution, of `lengths` mel frames (0 for 0)."""
    after_first = lengths + 2 * PADDING - config.kernel_size + 1
    after_second = (after_first + 2 * PADDING - config.kernel_size) // config.stride_size + 1
    return jnp.where(lengths > 0, jnp.maximum(after_second, 0), 0)


def code_lengths(lengths: Array, config: TokenizerConfig) -> Array:
    """Code frames of `lengths` mel frames."""
    return -(-hidden_lengths(lengths, config) // config.avg_pooler)


class Encoder(nn.Module):
    """Two convolutions, the Transformer stack with its skip connection, pooling by a strided convolution."""

    config: TokenizerConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, mel: Array, lengths: Array) -> tuple[Array, Array]:
        """mel [B, F, n_mels], lengths [B] -> (features [B, T, d_model], zero behind each end; code frames [B]).

        Everything behind a sequence's end is zero before each convolution, as if the sequence were alone.
        """
        config, compute = self.config, self.compute
        x = Conv1d(config.d_model, config.kernel_size, 1, PADDING, compute=compute, name="conv1")(masked(mel, lengths))
        self.sow("intermediates", "conv1_output", x)
        x = masked(gelu(x), lengths + 2 * PADDING - config.kernel_size + 1)
        x = Conv1d(config.d_model, config.kernel_size, config.stride_size, PADDING, compute=compute, name="conv2")(x)
        self.sow("intermediates", "conv2_output", x)
        x = gelu(x)

        lengths = hidden_lengths(lengths, config)
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
        x, _ = Stack(stack, compute, name="transformer")(x, lengths)
        x = norm(config.ln_type, compute, "layer_norm")(x)
        self.sow("intermediates", "layer_norm_output", x)

        if config.avg_pooler > 1:
            pool = config.avg_pooler
            x = jnp.pad(masked(x, lengths), ((0, 0), (0, -x.shape[1] % pool), (0, 0)))
            x = gelu(Conv1d(config.d_model, pool, pool, use_bias=False, compute=compute, name="down_sample")(x))
            self.sow("intermediates", "down_sample_output", x)
            x = norm(config.ln_type, compute, "down_sample_norm")(x)
        lengths = -(-lengths // config.avg_pooler)
        return masked(x, lengths), lengths
