"""Decoder: quantised features (25 Hz) -> coarse mel (100 Hz), a whole sequence or a stream of its parts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models.tokenizer.blocks import Past, Stack, StackConfig, Upsample, group_statistics, norm
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.extents import E, masked
from mimo_jax.models.transformer import Compute

Array = jax.Array


class GroupStatistics(NamedTuple):
    """What the GroupNorms of one sequence normalise with: one after the first upsampling, one after the second.

    With frames None the statistics are given and stay; else they are those of the frames so far.
    """

    mean: Array  # [B, 2]
    variance: Array  # [B, 2]
    frames: Array | None = None  # [B, 2] so far

    def seen(self, which: int, x: Array, lengths: Array) -> GroupStatistics:
        """The statistics after the first lengths [B] of further frames x [B, T, C] (Chan's update)."""
        if self.frames is None:
            return self
        mean, variance = group_statistics(x, lengths)
        before, new = self.frames[:, which], lengths.astype(jnp.float32)
        share = new / jnp.maximum(before + new, 1)
        difference = mean - self.mean[:, which]
        joined = self.variance[:, which] * (1 - share) + variance * share + jnp.square(difference) * share * (1 - share)
        return GroupStatistics(
            self.mean.at[:, which].add(difference * share),
            self.variance.at[:, which].set(joined),
            self.frames.at[:, which].add(new),
        )


class DecoderStream(NamedTuple):
    """What the decoder remembers of a stream."""

    past: Past  # of the Transformer stack
    history: Array  # [B, n, d_model], the last inputs of the second upsampling
    statistics: GroupStatistics


class Decoder(nn.Module):
    """Upsampling, Transformer stack, upsampling to mel bands: the encoder's mirror."""

    config: TokenizerConfig
    compute: Compute = Compute()

    @property
    def stack(self) -> StackConfig:
        """Shape of the Transformer stack."""
        config = self.config
        return StackConfig(
            width=config.d_model,
            ffn=config.decoder_ffn_dim,
            num_layers=config.decoder_layers,
            num_heads=config.decoder_attention_heads,
            causal=config.decoder_causal,
            window=config.decoder_attn_window_size,
            norm=config.ln_type,
            rope_theta=config.rope_theta,
        )

    def setup(self) -> None:
        """Names of the parts."""
        config, compute = self.config, self.compute
        if config.avg_pooler > 1:
            self.dconv1 = Upsample(config.d_model, config.avg_pooler, config.avg_pooler, compute)
        self.transformer = Stack(self.stack, compute)
        self.layer_norm = norm(config.ln_type, compute, None)
        self.dconv2 = Upsample(config.n_mels, config.decoder_kernel_size, config.decoder_stride_size, compute)

    def __call__(self, x: Array, extent: E) -> tuple[Array, E]:
        """x [B, T, d_model], zero outside its extent -> (coarse mel [B, T * pool * stride, n_mels], its extent)."""
        if self.config.avg_pooler > 1:
            x, extent = self.dconv1(x, extent)
            self.sow("intermediates", "dconv1_output", x)
        x = self.layer_norm(self.transformer(x, extent)[0])
        self.sow("intermediates", "layer_norm_output", x)
        return self.dconv2(masked(x, extent), extent)

    def open_stream(self, batch: int, slots: int, statistics: GroupStatistics | None) -> DecoderStream:
        """A stream before its first part, with room for `slots` code frames; statistics None = those so far."""
        config, dtype = self.config, self.compute.dtype
        if statistics is None:
            statistics = GroupStatistics(*(jnp.zeros((batch, 2), jnp.float32) for _ in range(3)))
        past = Past.empty(self.stack, batch, slots * config.avg_pooler, dtype)
        return DecoderStream(past, jnp.zeros((batch, self.dconv2.history, config.d_model), dtype), statistics)

    def stream(self, x: Array, lengths: Array, state: DecoderStream) -> tuple[Array, Array, DecoderStream]:
        """The next lengths [B] frames x [B, T, d_model] of a stream -> (coarse mel, its lengths, the state after it).

        With statistics of the whole sequence these are the frames that `__call__` gives for it.
        """
        past, history, statistics = state
        if self.config.avg_pooler > 1:
            x = self.dconv1.convolve(x[:, :0], x)  # size = stride: no frame depends on an earlier one
            lengths = lengths * self.config.avg_pooler
            statistics = statistics.seen(0, x, lengths)
            x = masked(self.dconv1.norm(x, (statistics.mean[:, 0], statistics.variance[:, 0])), lengths)
        x, past = self.transformer(x, lengths, past)
        x = masked(self.layer_norm(x), lengths)
        mel = self.dconv2.convolve(history, x)
        behind = lengths[:, None] + jnp.arange(history.shape[1])[None, :]  # the last frames of history and x together
        history = jnp.take_along_axis(jnp.concatenate([history, x], axis=1), behind[..., None], axis=1)
        past, lengths = past.advanced(lengths), lengths * self.config.decoder_stride_size
        statistics = statistics.seen(1, mel, lengths)
        mel = self.dconv2.norm(mel, (statistics.mean[:, 1], statistics.variance[:, 1]))
        return masked(mel, lengths), lengths, DecoderStream(past, history, statistics)
