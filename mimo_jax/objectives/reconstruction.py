"""Distances between spectrograms of a waveform and its reconstruction, counted over valid frames only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.models.tokenizer import extents, frontend
from mimo_jax.models.tokenizer.blocks import group_statistics
from mimo_jax.models.tokenizer.extents import Extent

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Coarse mel and the waveform that it stands for, cut to the same stretch of time.

    Attributes:
      mel: [B, F, M] input of the vocoder, mel_extent its valid frames.
      mel_extent: see mel.
      waveform: [B, F * hop] what the vocoder should give, sample_extent its valid samples.
      sample_extent: see waveform.
    """

    mel: Array
    mel_extent: Extent
    waveform: Array
    sample_extent: Extent

    @classmethod
    def whole(cls, mel: Array, mel_extent: Extent, waveform: Array, sample_extent: Extent, hop: int) -> Stretch:
        """Whole rows; the waveform is padded or cut to the length that the vocoder gives."""
        size = mel.shape[1] * hop
        waveform = jnp.pad(waveform, ((0, 0), (0, max(0, size - waveform.shape[1]))))[:, :size]
        if not isinstance(sample_extent, extents.Packed):
            sample_extent = jnp.minimum(sample_extent, size)
        return cls(mel, mel_extent, extents.masked(waveform, sample_extent), sample_extent)

    def random(self, rng: jax.Array, frames: int, hop: int, crops: int = 1) -> Stretch:
        """Random crops of `frames` mel frames, each of one sequence (from its start if it is shorter).

        Args:
          rng: key.
          frames: of a crop.
          hop: samples of a frame.
          crops: from each row; a long sequence of a packed row is drawn more often.

        Returns:
          [B * crops, ...], right-padded: their extents are lengths.
        """
        batch, total = self.mel.shape[:2]
        frames = min(frames, total)
        which, where = jax.random.uniform(rng, (2, batch, crops))
        ids = extents.segment_ids(self.mel_extent, total)
        order = jnp.cumsum(ids > 0, axis=1)
        # The sequence that a random valid frame belongs to, then a random start within it.
        wanted = jnp.floor(which * order[:, -1:]).astype(jnp.int32) + 1
        frame = jnp.argmax(order[:, None, :] >= wanted[..., None], axis=-1)
        of = jnp.take_along_axis(ids, frame, axis=1)[..., None]  # [B, crops, 1]
        own = (ids[:, None, :] == of) & (of > 0)
        first, length = jnp.argmax(own, axis=-1), own.sum(axis=-1)
        starts = first + jnp.floor(where * (jnp.maximum(length - frames, 0) + 1)).astype(jnp.int32)

        def cut(x: Array, begins: Array, size: int) -> Array:
            # Room behind the end, so that a late start is not moved.
            x = jnp.pad(x, [(0, 0), (0, size)] + [(0, 0)] * (x.ndim - 2))
            pieces = jax.vmap(lambda row, s: jax.vmap(lambda one: jax.lax.dynamic_slice_in_dim(row, one, size))(s))
            return pieces(x, begins).reshape(batch * crops, size, *x.shape[2:])

        samples = extents.segment_ids(self.sample_extent, total * hop)
        inside = cut(samples, starts * hop, frames * hop) == of.reshape(-1, 1)
        valid = inside & (of.reshape(-1, 1) > 0)
        return Stretch(
            cut(self.mel, starts, frames),
            jnp.minimum(first + length - starts, frames).reshape(-1),
            jnp.where(valid, cut(self.waveform, starts * hop, frames * hop), 0),
            valid.sum(axis=1),
        )


def scaled_mel(waveform: Array, extent: Extent, sample_rate: int, scale: int, floor: float | None) -> Array:
    """Mel spectrogram of scale i: 2^i bins, window 15 * 2^(i-1), hop 15 * 2^(i-2), normalised STFT.

    Args:
      waveform: [B, S]; samples outside the extent count as zero. Half a window of zeros is put before and behind.
      extent: of the samples.
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
    padded = jnp.pad(extents.masked(waveform, extent), ((0, 0), (window_length // 2, window_length // 2)))
    power = frontend.magnitude(*frontend.stft(padded, window_length, hop, window))
    mel = power @ frontend.mel_filterbank(sample_rate, window_length, 2**scale, 0, None)
    return mel if floor is None else jnp.log(jnp.maximum(mel, floor))


def mel_distance(
    output: Array,
    target: Array,
    extent: Extent,
    sample_rate: int,
    scales: Sequence[int] = (5, 6, 7),
    floor: float | None = 1e-5,
) -> tuple[Array, Array]:
    """L1 distance of mel spectrograms (arXiv 2512.23808, section 2), averaged over bins and scales.

    The report does not say whether magnitudes are compared as they are or as logarithms; logarithms are the default
    here because the front end works with them and quiet frames otherwise carry no weight.

    Args:
      output, target: [B, S] waveforms.
      extent: of the samples. Packed sequences begin at multiples of every scale's hop.
      sample_rate: in Hz.
      scales: the i of `scaled_mel`.
      floor: see `scaled_mel`.

    Returns:
      (sum over each sequence of its mean distance per frame at each scale, weighted to `count`; count, its samples);
      [B, 1], or [B, U] of packed ones.
    """
    num_samples = extents.sums(jnp.ones(output.shape), extent)
    total = jnp.zeros(num_samples.shape)
    for scale in scales:
        ours, theirs = (scaled_mel(x, extent, sample_rate, scale, floor) for x in (output, target))
        frames = _frame_extent(extent, 15 * 2**scale // 4, ours.shape[1])
        distance = jnp.abs(ours - jax.lax.stop_gradient(theirs)).mean(axis=-1)
        count = extents.sums(jnp.ones(distance.shape), frames)
        total = total + extents.sums(distance, frames) / jnp.maximum(count, 1) / len(scales)
    return total * num_samples, num_samples


def _frame_extent(extent: Extent, hop: int, size: int) -> Extent:
    """Extent of the `size` frames centred at multiples of hop: those at samples of a sequence or just behind them."""
    if not isinstance(extent, extents.Packed):
        return jnp.where(extent > 0, 1 + extent // hop, 0)
    at = extents.segment_ids(extent, size * hop)[:, ::hop]
    before = jnp.pad(extent.ids, ((0, 0), (1, size * hop)))[:, : size * hop : hop]
    return extents.Packed(jnp.where(at > 0, at, before), extent.count)


def frame_l1(output: Array, target: Array, extent: Extent) -> tuple[Array, Array]:
    """L1 distance of mel arrays [B, F, M] over the frames of an extent: (sum over frames of the mean, frames)."""
    valid = extents.valid_mask(extent, output.shape[1])
    distance = jnp.where(valid, jnp.abs(output - target).mean(axis=-1), 0)
    return distance.sum(), valid.sum().astype(jnp.float32)


def standardised(x: Array, extent: Extent) -> Array:
    """x [B, F, M] with mean 0 and variance 1 over the frames of each sequence."""
    mean, variance = (value.reshape(x.shape[0], -1, 1) for value in group_statistics(x, extent))
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def ratio(total: Array, count: Array) -> Array:
    """total / count, 0 for nothing counted."""
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1)
