"""A small CTC speech recogniser on log-mel features: the independent judge of intelligibility.

It is trained on original recordings only and shares no code or weights with the audio tokenizer or the language
model, so a word error rate measured with it says nothing about how well those know each other's habits.

Classes are the CTC blank, the 256 UTF-8 bytes, and slots for frequent words. Frequent words as single classes learn
far faster than spelling (40 words, 200 steps: word error rate 0.001 against 0.10 for bytes alone); all other words, in
any script, are spelled in bytes.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BLANK = 0
FIRST_BYTE = 1  # byte b is class b + 1
FIRST_WORD = 257


@dataclasses.dataclass(frozen=True)
class RecogniserConfig:
    """Sizes of the recogniser.

    Attributes:
        sample_rate: input rate in Hz.
        hop_length: samples between mel frames (240 at 24 kHz = 100 Hz).
        window_length: samples of the Hann window.
        n_fft: FFT size, at least ``window_length``.
        num_mels: mel bins.
        num_words: slots for words that are one class each; unused slots do no harm.
        d_model: width of the residual blocks.
        dilations: one residual convolution block per entry, with that dilation.
        kernel_size: taps of each convolution block (odd).
        subsampling: mel frames per encoder state; 4 gives 25 Hz.
        outputs_per_state: CTC frames each state emits; 2 gives 50 Hz, enough for the fastest voices.
        dropout: rate inside the residual blocks.
        time_masks, time_mask_width, mel_masks, mel_mask_width: SpecAugment (arXiv 1904.08779), training only;
            widths in mel frames and bins are upper limits.
    """

    sample_rate: int = 24_000
    hop_length: int = 240
    window_length: int = 600
    n_fft: int = 1024
    num_mels: int = 80
    num_words: int = 1024
    d_model: int = 192
    dilations: tuple[int, ...] = (1, 1, 2, 2)
    kernel_size: int = 5
    subsampling: int = 4
    outputs_per_state: int = 2
    dropout: float = 0.0
    time_masks: int = 1
    time_mask_width: int = 8
    mel_masks: int = 1
    mel_mask_width: int = 10

    def __post_init__(self) -> None:
        if self.n_fft < self.window_length:
            raise ValueError(f"n_fft {self.n_fft} is smaller than window_length {self.window_length}: raise n_fft")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even: use an odd number so that frames stay centred")

    @property
    def num_classes(self) -> int:
        """Blank, bytes and word slots."""
        return FIRST_WORD + self.num_words


@functools.lru_cache(maxsize=8)
def mel_filters(num_mels: int, n_fft: int, sample_rate: int) -> np.ndarray:
    """Triangular filters on the HTK mel scale from 0 Hz to Nyquist, ``float32 [n_fft // 2 + 1, num_mels]``."""
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, num_mels + 2) / 2595.0) - 1.0)
    frequency = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(waveform: jax.Array, config: RecogniserConfig) -> jax.Array:
    """Log-mel magnitudes of ``float32 [B, S]`` at ``config.sample_rate`` -> ``float32 [B, S // hop_length, num_mels]``.

    Frame f is centred on sample ``(f + 0.5) * hop_length``; the ends are padded with zeros.
    """
    samples = waveform.shape[1]
    frames = samples // config.hop_length
    left = (config.window_length - config.hop_length) // 2
    right = max(0, (frames - 1) * config.hop_length + config.window_length - left - samples)
    padded = jnp.pad(waveform, ((0, 0), (left, right)))
    index = np.arange(frames)[:, None] * config.hop_length + np.arange(config.window_length)
    window = np.hanning(config.window_length + 1)[:-1].astype(np.float32)
    spectrum = jnp.abs(jnp.fft.rfft(padded[:, index] * window, n=config.n_fft))
    mel = spectrum @ mel_filters(config.num_mels, config.n_fft, config.sample_rate)
    return jnp.log(jnp.maximum(mel, 1e-5))


def normalise(features: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero mean and unit variance per utterance and bin over the frames in ``mask`` [B, F]; zero elsewhere."""
    weight = mask[..., None].astype(features.dtype)
    count = jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    mean = (features * weight).sum(axis=1, keepdims=True) / count
    centred = (features - mean) * weight
    variance = (centred**2).sum(axis=1, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + 1e-3)


def spec_augment(features: jax.Array, rng: jax.Array, config: RecogniserConfig) -> jax.Array:
    """Sets random bands of time and of frequency to zero (the mean of normalised features)."""
    batch, frames, mels = features.shape

    def keep(key: jax.Array, size: int, masks: int, width: int) -> jax.Array:
        start_key, width_key = jax.random.split(key)
        start = jax.random.randint(start_key, (batch, masks, 1), 0, size)
        length = jax.random.randint(width_key, (batch, masks, 1), 0, width + 1)
        position = jnp.arange(size)
        return ~jnp.any((position >= start) & (position < start + length), axis=1)

    time_key, mel_key = jax.random.split(rng)
    time_keep = keep(time_key, frames, config.time_masks, config.time_mask_width)
    mel_keep = keep(mel_key, mels, config.mel_masks, config.mel_mask_width)
    return features * time_keep[:, :, None] * mel_keep[:, None, :]


def _neighbours(x: jax.Array, kernel_size: int, dilation: int) -> jax.Array:
    """``[B, T, D] -> [B, T, kernel_size * D]``: a convolution then is one matrix product, much faster on CPU."""
    reach = kernel_size // 2 * dilation
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    length = x.shape[1]
    return jnp.concatenate([padded[:, i * dilation : i * dilation + length] for i in range(kernel_size)], axis=-1)


class ConvBlock(nn.Module):
    """Pre-norm residual block: convolution over time, GELU, projection."""

    config: RecogniserConfig
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """Maps float32 [B, T, d_model] to the same shape; `mask` [B, T] is 0 behind the end of an utterance."""
        h = nn.LayerNorm(name="norm")(x) * mask[..., None]
        h = nn.Dense(self.config.d_model, name="conv")(_neighbours(h, self.config.kernel_size, self.dilation))
        h = nn.gelu(h)
        h = nn.Dropout(self.config.dropout)(h, deterministic=deterministic)
        return x + nn.Dense(self.config.d_model, name="out")(h)


class Recogniser(nn.Module):
    """Waveform -> CTC logits: log-mel, convolutional subsampling, dilated residual convolutions, a linear head."""

    config: RecogniserConfig

    @nn.compact
    def __call__(
        self, waveform: jax.Array, num_samples: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Classifies padded waveforms.

        Args:
            waveform: float32 [B, S] at ``config.sample_rate``; what lies behind ``num_samples`` is ignored.
            num_samples: int32 [B].
            deterministic: False switches on dropout and SpecAugment and needs the rng stream ``dropout``.

        Returns:
            logits float32 [B, T, num_classes] and lengths int32 [B], where T counts CTC frames
            (``S // hop_length // subsampling * outputs_per_state``).
        """
        config = self.config
        batch = waveform.shape[0]
        inside = jnp.arange(waveform.shape[1]) < num_samples[:, None]
        features = log_mel(waveform * inside, config)
        states = features.shape[1] // config.subsampling
        features = features[:, : states * config.subsampling]
        frames = num_samples // config.hop_length
        frame_mask = jnp.arange(features.shape[1]) < frames[:, None]
        features = normalise(features, frame_mask)
        if not deterministic:
            features = spec_augment(features, self.make_rng("dropout"), config) * frame_mask[..., None]
        # Round up so that the last partial state of an utterance is kept (it exists whenever it fits the buffer).
        state_lengths = jnp.minimum((frames + config.subsampling - 1) // config.subsampling, states)
        mask = (jnp.arange(states) < state_lengths[:, None]).astype(features.dtype)

        stacked = features.reshape(batch, states, config.subsampling * config.num_mels)
        x = nn.Dense(config.d_model, name="stem")(_neighbours(stacked, 3, 1))
        x = nn.gelu(nn.LayerNorm(name="stem_norm")(x))
        for i, dilation in enumerate(config.dilations):
            x = ConvBlock(config, dilation, name=f"block_{i}")(x, mask, deterministic)
        x = nn.LayerNorm(name="norm")(x)
        logits = nn.Dense(config.num_classes * config.outputs_per_state, name="head")(x)
        logits = logits.reshape(batch, states * config.outputs_per_state, config.num_classes)
        return logits, state_lengths * config.outputs_per_state
