"""Decoder: quantised features (25 Hz) -> coarse mel (100 Hz)."""

from __future__ import annotations

import jax
from flax import linen as nn

from mimo_jax.models.tokenizer.blocks import Stack, StackConfig, Upsample, masked, norm
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.transformer import Compute

Array = jax.Array


class Decoder(nn.Module):
    """Upsampling, Transformer stack, upsampling to mel bands: the encoder's mirror."""

    config: TokenizerConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> tuple[Array, Array]:
        """x [B, T, d_model], zero behind lengths [B] -> (coarse mel [B, T * pool * stride, n_mels], its lengths)."""
        config, compute = self.config, self.compute
        if config.avg_pooler > 1:
            pool = config.avg_pooler
            x, lengths = Upsample(config.d_model, pool, pool, compute, name="dconv1")(x, lengths)
            self.sow("intermediates", "dconv1_output", x)
        stack = StackConfig(
            width=config.d_model,
            ffn=config.decoder_ffn_dim,
            num_layers=config.decoder_layers,
            num_heads=config.decoder_attention_heads,
            causal=config.decoder_causal,
            window=config.decoder_attn_window_size,
            norm=config.ln_type,
            rope_theta=config.rope_theta,
        )
        x = norm(config.ln_type, compute, "layer_norm")(Stack(stack, compute, name="transformer")(x, lengths))
        self.sow("intermediates", "layer_norm_output", x)
        kernel, stride = config.decoder_kernel_size, config.decoder_stride_size
        x = masked(x, lengths)
        return Upsample(config.n_mels, kernel, stride, compute, name="dconv2")(x, lengths)
