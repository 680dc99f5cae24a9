"""Distances between spectrograms of a waveform and its reconstruction, counted over valid frames only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.models.tokenizer import frontend

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Segments:
    """Coarse mel and the waveform that it stands for, cut to the same stretch of time.

    Attributes:
      mel: [B, F, M] input of the vocoder, mel_lengths [B] valid frames.
      mel_lengths: see mel.
      waveform: [B, F * hop] what the vocoder should give, num_samples [B] valid samples.
      num_samples: see waveform.
    """

    mel: Array
    mel_lengths: Array
    waveform: Array
    num_samples: Array

    @classmethod
    def whole(cls, mel: Array, mel_lengths: Array, waveform: Array, num_samples: Array, hop: int) -> Segments:
        """Whole sequences; the waveform is padded or cut to the length that the vocoder gives."""
        size = mel.shape[1] * hop
        waveform = jnp.pad(waveform, ((0, 0), (0, max(0, size - waveform.shape[1]))))[:, :size]
        return cls(mel, mel_lengths, waveform, jnp.minimum(num_samples, size))

    def random(self, rng: jax.Array, frames: int, hop: int) -> Segments:
        """A random stretch of `frames` mel frames from each sequence (from its start if it is shorter)."""
        frames = min(frames, self.mel.shape[1])
        room = jnp.maximum(self.mel_lengths - frames, 0) + 1
        starts = jnp.floor(jax.random.uniform(rng, room.shape) * room).astype(jnp.int32)

        def cut(x: Array, start: Array, size: int) -> Array:
            return jax.vmap(lambda row, s: jax.lax.dynamic_slice_in_dim(row, s, size))(x, start)

        return Segments(
            cut(self.mel, starts, frames),
            jnp.minimum(self.mel_lengths - starts, frames),
            cut(self.waveform, starts * hop, frames * hop),
            jnp.clip(self.num_samples - starts * hop, 0, frames * hop),
        )


def scaled_mel(waveform: Array, num_samples: Array, sample_rate: int, scale: int, floor: float | None) -> Array:
    """Mel spectrogram of scale i: 2^i bins, window 15 * 2^(i-1), hop 15 * 2^(i-2), normalised STFT.

    Args:
      waveform: [B, S]; samples behind num_samples [B] count as zero. Half a window of zeros is put before and behind.
      num_samples: [B].
      sample_rate: in Hz.
      scale: i.
      floor: log(max(mel, floor)); None = linear magnitudes.

    Returns:
      [B, 1 + S // hop, 2^i] float32. Normalised: divided by the L2 norm of the window, so that noise of unit variance
      has magnitudes of order one at every scale.
    """
    window_length, hop = 15 * 2 ** (scale - 1), 15 * 2**scale // 4
    window = frontend.hann_window(window_length)
    window = window / np.sqrt(np.sum(np.square(window)))
    inside = jnp.arange(waveform.shape[1])[None, :] < num_samples[:, None]
    padded = jnp.pad(jnp.where(inside, waveform, 0), ((0, 0), (window_length // 2, window_length // 2)))
    power = frontend.magnitude(*frontend.stft(padded, window_length, hop, window))
    mel = power @ frontend.mel_filterbank(sample_rate, window_length, 2**scale, 0, None)
    return mel if floor is None else jnp.log(jnp.maximum(mel, floor))


def mel_distance(
    output: Array,
    target: Array,
    num_samples: Array,
    sample_rate: int,
    scales: Sequence[int] = (5, 6, 7),
    floor: float | None = 1e-5,
) -> tuple[Array, Array]:
    """L1 distance of mel spectrograms (arXiv 2512.23808, section 2), averaged over bins and scales.

    The report does not say whether magnitudes are compared as they are or as logarithms; logarithms are the default
    here because the front end works with them and quiet frames otherwise carry no weight.

    Args:
      output, target: [B, S] waveforms.
      num_samples: [B] valid samples.
      sample_rate: in Hz.
      scales: the i of `scaled_mel`.
      floor: see `scaled_mel`.

    Returns:
      (sum [B] over a sequence of its mean distance per frame at each scale, weighted to `count`; count [B] samples).
    """
    total = jnp.zeros(output.shape[0])
    for scale in scales:
        ours, theirs = (scaled_mel(x, num_samples, sample_rate, scale, floor) for x in (output, target))
        hop = 15 * 2**scale // 4
        frames = jnp.where(num_samples > 0, 1 + num_samples // hop, 0)
        valid = jnp.arange(ours.shape[1])[None, :] < frames[:, None]
        distance = jnp.where(valid, jnp.abs(ours - jax.lax.stop_gradient(theirs)).mean(axis=-1), 0)
        total = total + distance.sum(axis=1) / jnp.maximum(frames, 1) / len(scales)
    return total * num_samples, num_samples.astype(jnp.float32)


def frame_l1(output: Array, target: Array, lengths: Array) -> tuple[Array, Array]:
    """L1 distance of mel arrays [B, F, M] over the first lengths [B] frames: (sum over frames of the mean, frames)."""
    valid = jnp.arange(output.shape[1])[None, :] < lengths[:, None]
    distance = jnp.where(valid, jnp.abs(output - target).mean(axis=-1), 0)
    return distance.sum(), valid.sum().astype(jnp.float32)


def standardised(x: Array, lengths: Array) -> Array:
    """x [B, F, M] with mean 0 and variance 1 over the first lengths [B] frames of each sequence."""
    valid = (jnp.arange(x.shape[1])[None, :] < lengths[:, None])[..., None]
    count = jnp.maximum(lengths * x.shape[2], 1)[:, None, None]
    x = x - jnp.where(valid, x, 0).sum(axis=(1, 2), keepdims=True) / count
    variance = jnp.where(valid, jnp.square(x), 0).sum(axis=(1, 2), keepdims=True) / count
    return x * jax.lax.rsqrt(variance + 1e-5)


def ratio(total: Array, count: Array) -> Array:
    """total / count, 0 for nothing counted."""
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1)
