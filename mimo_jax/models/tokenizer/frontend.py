"""Short-time Fourier analysis: framing, magnitude STFT, HTK mel filter bank, log-mel.

Everything is batched and jit-able; a padded waveform gives, on its own frames, the result of the waveform alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.models import partition
from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.extents import Packed, masked

Array = jax.Array

LOG_FLOOR = 1e-7


def frames(x: Array, length: int, hop: int) -> Array:
    """Overlapping frames of axis 1: x [B, S, ...] -> [B, F, length, ...] with F = 1 + (S - length) // hop.

    Built from shifted blocks of `hop` entries: reshapes and slices only, so the gradient is free of scatters.
    """
    if x.shape[1] < length:
        raise ValueError(f"{x.shape[1]} entries are shorter than one frame of {length}")
    count = 1 + (x.shape[1] - length) // hop
    per_frame = -(-length // hop)
    total = (count + per_frame - 1) * hop
    x = jnp.pad(x[:, :total], [(0, 0), (0, max(0, total - x.shape[1]))] + [(0, 0)] * (x.ndim - 2))
    blocks = x.reshape(x.shape[0], -1, hop, *x.shape[2:])
    if per_frame == 1:
        return blocks[:, :, :length]
    return jnp.concatenate([blocks[:, j : j + count] for j in range(per_frame)], axis=2)[:, :, :length]


def overlap_add(x: Array, hop: int) -> Array:
    """Adjoint of `frames`: x [B, F, length, ...] -> [B, (F - 1) * hop + length, ...], overlaps added."""
    batch, count, length = x.shape[:3]
    per_frame = -(-length // hop)
    rest = [(0, 0)] * (x.ndim - 3)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, per_frame * hop - length), *rest])
    x = x.reshape(batch, count, per_frame, hop, *x.shape[3:])
    total = jnp.zeros((batch, count + per_frame - 1, hop, *x.shape[4:]), x.dtype)
    for j in range(per_frame):  # frame f's block j lands in slot f + j
        total = total + jnp.pad(x[:, :, j], [(0, 0), (j, per_frame - 1 - j), (0, 0), *rest])
    return total.reshape(batch, -1, *total.shape[3:])[:, : (count - 1) * hop + length]


def hann_window(length: int) -> np.ndarray:
    """Periodic Hann window [length] float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@functools.lru_cache(maxsize=32)
def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float | None) -> np.ndarray:
    """Triangles of height 1 on the HTK mel scale, [n_fft // 2 + 1, n_mels] float32 (no area normalisation)."""
    top = sample_rate / 2 if fmax is None else fmax
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    low, high = (2595 * np.log10(1 + f / 700) for f in (fmin, top))
    mel = np.linspace(low, high, n_mels + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    width = np.diff(edges)
    rising = (bins[:, None] - edges[:-2]) / width[:-1]
    falling = (edges[2:] - bins[:, None]) / width[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def by_device(function: Callable[..., Any], *operands: Array) -> Any:
    """function(*operands) of arrays [B, ...], each device with its own rows.

    For Fourier transforms: the partitioner does not split them by rows, it gathers the whole batch on every device.
    """
    specs = tuple(partition.spec(("batch",), x.shape[:1]) for x in operands)
    return partition.shard_map(function, specs, specs[0])(*operands)


def stft(x: Array, n_fft: int, hop: int, window: np.ndarray) -> tuple[Array, Array]:
    """Real and imaginary part [B, F, n_fft // 2 + 1] of the frames of x [B, S] (no padding added, float32).

    A window shorter than n_fft is centred in the frame.
    """
    left = (n_fft - len(window)) // 2
    window = np.pad(window, (left, n_fft - len(window) - left))

    def analyse(pieces: Array) -> tuple[Array, Array]:
        spectrum = jnp.fft.rfft(pieces)
        return spectrum.real, spectrum.imag

    return by_device(analyse, frames(x.astype(jnp.float32), n_fft, hop) * window)


def magnitude(real: Array, imag: Array) -> Array:
    """|real + i imag|, with gradient 0 (not NaN) at 0."""
    power = jnp.square(real) + jnp.square(imag)
    positive = power > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, power, 1.0)), 0.0)


def reflect_pad(x: Array, num_samples: Array, pad: int) -> Array:
    """x [B, S] -> [B, S + 2 pad]: each row reflected at both ends of its own num_samples [B]; zero behind that."""
    return _reflected(x, jnp.zeros_like(num_samples)[:, None], num_samples[:, None], pad)


def reflect_pad_packed(x: Array, starts: Array, num_samples: Array, pad: int) -> Array:
    """As `reflect_pad`, each sequence at starts [B, U] of num_samples [B, U] by itself: 2 pad samples between them."""
    # What is nearest to a sequence belongs to it: in the padded row its own begins `pad` before it, which is `starts`.
    marks = jnp.zeros((x.shape[0], x.shape[1] + 2 * pad), jnp.int32)
    rows = jnp.arange(x.shape[0])[:, None]
    marks = marks.at[rows, starts].add(jnp.where(num_samples > 0, 1, 0), mode="drop")
    owner = jnp.maximum(jnp.cumsum(marks, axis=1) - 1, 0)
    start, size = (jnp.take_along_axis(values, owner, axis=1) for values in (starts, num_samples))
    return _reflected(x, start, size, pad)


def _reflected(x: Array, start: Array, n: Array, pad: int) -> Array:
    """x [B, S] -> [B, S + 2 pad], each of them from the sequence [start, start + n), reflected at its ends."""
    index = jnp.arange(-pad, x.shape[1] + pad)[None, :] - start
    period = jnp.maximum(2 * (n - 1), 1)
    folded = jnp.abs(index) % period
    folded = jnp.where(folded >= n, period - folded, folded)
    padded = jnp.take_along_axis(x, jnp.clip(start + folded, 0, x.shape[1] - 1), axis=1)
    return jnp.where(index < n + pad, padded, 0)


def mel_lengths(num_samples: Array, config: TokenizerConfig) -> Array:
    """Mel frames of waveforms of `num_samples` [B] samples (0 for an empty one)."""
    return jnp.where(num_samples > 0, 1 + num_samples // config.hop_length, 0)


def log_mel_padded(padded: Array, config: TokenizerConfig) -> Array:
    """Log-mel [B, F, n_mels] of waveforms [B, (F - 1) * hop + nfft] that carry their padding already."""
    real, imag = stft(padded, config.nfft, config.hop_length, hann_window(config.window_size))
    bank = mel_filterbank(config.sampling_rate, config.nfft, config.n_mels, config.fmin, config.fmax)
    mel = jnp.matmul(magnitude(real, imag), bank, precision="highest")
    return jnp.log(jnp.maximum(mel, LOG_FLOOR))


def log_mel_packed(waveform: Array, starts: Array, num_samples: Array, config: TokenizerConfig) -> tuple[Array, Packed]:
    """As `log_mel`, for several sequences a row.

    Args:
      waveform: [B, S], S a multiple of `config.samples_per_frame`.
      starts: [B, U], first sample of each sequence, ascending multiples of `config.samples_per_frame`; between
        sequences at least one code frame is free.
      num_samples: [B, U], 0 = no sequence (these come last).

    Returns:
      (mel [B, S // hop, n_mels], zero outside its extent; extent).

    Raises:
      ValueError: S is no multiple of a code frame, frames are not decoded at the rate at which they are encoded, or an
        analysis window reaches over the gap of one code frame.
    """
    if config.stride_size != config.decoder_stride_size:
        raise ValueError(f"stride_size {config.stride_size} is not decoder_stride_size {config.decoder_stride_size}")
    if waveform.shape[1] % config.samples_per_frame:
        raise ValueError(f"packed rows of {waveform.shape[1]} samples: give a multiple of {config.samples_per_frame}")
    if config.nfft > config.samples_per_frame:
        raise ValueError(f"nfft is {config.nfft}: packed sequences need {config.samples_per_frame} or less")
    count, hop = waveform.shape[1] // config.hop_length, config.hop_length
    padded = reflect_pad_packed(waveform, starts, num_samples, config.nfft // 2)
    extent = Packed.of(starts // hop, mel_lengths(num_samples, config), count)
    return masked(log_mel_padded(padded, config)[:, :count], extent), extent


def log_mel(waveform: Array, num_samples: Array, config: TokenizerConfig) -> tuple[Array, Array]:
    """Natural log of the mel magnitudes (power 1), centred frames, reflect padding at each sequence's own ends.

    Args:
      waveform: [B, S] at `config.sampling_rate`; what lies behind num_samples is not read.
      num_samples: [B] int.

    Returns:
      (mel [B, 1 + S // hop, n_mels] float32, zero behind each end; lengths [B] in frames).
    """
    mel = log_mel_padded(reflect_pad(waveform, num_samples, config.nfft // 2), config)
    lengths = mel_lengths(num_samples, config)
    return masked(mel, lengths), lengths
