"""What the audio tokenizer costs, by arithmetic: model FLOPs per code frame, component by component.

Counted as in `models.cost`: twice the multiply-adds of matrix products and convolutions; Fourier transforms, norms and
losses are left out. A code frame (25 a second as published) is two frames inside encoder and decoder and four of mel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.discriminators import DiscriminatorConfig


@dataclasses.dataclass(frozen=True)
class FrameFlops:
    """Forward FLOPs of one code frame.

    Attributes:
      encoder: both convolutions, the stack, the pooling.
      quantizer: distances to all codes of all codebooks.
      decoder: up-sampling, the stack, up-sampling to mel bands.
      vocoder: linear, windowed stack, linear to magnitudes and phases.
    """

    encoder: float
    quantizer: float
    decoder: float
    vocoder: float


def _stack(width: int, ffn: int, layers: int, attended: float) -> float:
    """Forward FLOPs of one frame through pre-norm blocks (four square matrices, two of the FFN, attention)."""
    return layers * (2.0 * (4 * width * width + 2 * width * ffn) + 4.0 * width * attended)


def _attended(window: tuple[int, int], causal: bool, length: float, count_causally: bool) -> float:
    """Mean number of frames that a frame of a sequence of `length` attends to."""
    left, right = (length if side < 0 else min(side, length) for side in window)
    if causal:
        return min(left + 1, length / 2 if count_causally else length)
    return min(left + 1 + right, length)


def forward_flops(config: TokenizerConfig, code_frames: float, causal: bool = True) -> FrameFlops:
    """Forward FLOPs of one code frame of sequences of `code_frames`.

    Args:
      config: the tokenizer.
      code_frames: length of a sequence: what attention without a window sees.
      causal: count causal attention by half, as the pairs that matter; else all pairs.
    """
    width, pool, kernel = config.d_model, config.avg_pooler, config.kernel_size
    hidden, mel = code_frames * pool, code_frames * pool * config.stride_size
    encoder = pool * config.stride_size * 2.0 * kernel * config.n_mels * width + pool * 2.0 * kernel * width * width
    seen = _attended(config.encoder_attn_window_size, config.encoder_causal, hidden, causal)
    encoder += pool * _stack(width, config.encoder_ffn_dim, config.encoder_layers, seen)
    encoder += 2.0 * pool * width * width if pool > 1 else 0.0

    seen = _attended(config.decoder_attn_window_size, config.decoder_causal, hidden, causal)
    decoder = pool * _stack(width, config.decoder_ffn_dim, config.decoder_layers, seen)
    decoder += 2.0 * pool * width * width if pool > 1 else 0.0
    decoder += pool * 2.0 * config.decoder_kernel_size * width * config.n_mels

    each = 2.0 * config.vocoder_dim * (config.n_mels + config.nfft + 2)
    seen = _attended(config.vocoder_attn_window_size, False, mel, causal)
    each += _stack(config.vocoder_dim, config.vocoder_intermediate_dim, config.vocoder_num_layers, seen)
    return FrameFlops(
        encoder=encoder,
        quantizer=2.0 * width * sum(config.codebook_sizes),
        decoder=decoder,
        vocoder=each * pool * config.decoder_stride_size,
    )


def row_shape(batch: Mapping[str, Any], config: TokenizerConfig) -> tuple[int, int, float]:
    """(rows, code frames of a row, code frames of a sequence) of a batch of `data.waveforms`, arrays or their shapes.

    Packed sequences are taken to be as long as a full row allows.
    """
    rows, samples = batch["waveform"].shape
    frames = samples // config.samples_per_frame
    sequences = batch["starts"].shape[1] if "starts" in batch else 1
    return rows, frames, frames / sequences


def discriminator_flops(config: DiscriminatorConfig, samples: int) -> float:
    """Forward FLOPs of all sub-discriminators on one waveform of `samples`."""
    total = 0.0
    for period in config.periods:
        length, inputs = -(-samples // period), 1
        for i, features in enumerate(config.period_channels):
            length = -(-length // 3) if i < len(config.period_channels) - 1 else length
            total += 2.0 * 5 * inputs * features * length * period
            inputs = features
        total += 2.0 * 3 * inputs * length * period
    for size in config.stft_sizes:
        frames, bins, channels = 1 + (samples - size) // (size // 4), size // 2 + 1, config.stft_channels
        total += 2.0 * 3 * 9 * 2 * channels * frames * bins
        for _ in range(3):
            bins = -(-bins // 2)
            total += 2.0 * 3 * 9 * channels * channels * frames * bins
        total += 2.0 * 3 * 3 * channels * (channels + 1) * frames * bins
    return total
