"""Sound to codes while the sound still comes, in memory that does not grow with it.

    encoder = StreamingEncoder(config, variables)        # pieces of 60 s, each alone: the released tokenizer's codes
    for samples in microphone:                           # float32 [samples], any number
        send(encoder(samples))                           # int32 [frames, codebooks], what can be told by now
    send(encoder(last=True))                             # the rest; the object is ready for the next stream

The encoder's attention has no limit: every code of a piece depends on all of the piece. With `segment=6000` (the
default) and no context the codes are those of `AudioCodec.encode` of the whole recording, and come up to 60 s late.
Shorter segments answer sooner; each is computed together with `left` mel frames before and `right` after it, of which
nothing is kept. The codes are then others than those of the whole: benchmarks/streaming.py measures by how much.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.inference.codec import ENCODE_PIECE
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, frontend
from mimo_jax.models.transformer import Compute

Array = jax.Array
Variables = dict[str, Any]


class StreamingEncoder:
    """Encodes a stream of samples; see the top of this file.

    Args:
      config: the tokenizer.
      variables: `params`, `codebooks` and `constants` of the tokenizer.
      segment: mel frames (100 Hz) whose codes are given back at a time.
      left: mel frames before a segment that are computed with it.
      right: mel frames after a segment that are waited for and computed with it.
      num_quantizers: codes of the first n codebooks; None = all.
      compute: dtypes and attention.

    Raises:
      ValueError: sizes that are not multiples of the mel frames of a code frame (4), a segment of 0, more codebooks
        than there are.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        variables: Variables,
        *,
        segment: int = ENCODE_PIECE,
        left: int = 0,
        right: int = 0,
        num_quantizers: int | None = None,
        compute: Compute = Compute(),
    ):
        self._unit = config.stride_size * config.avg_pooler
        if segment < 1 or min(left, right) < 0 or any(size % self._unit for size in (segment, left, right)):
            raise ValueError(
                f"segment = {segment}, left = {left}, right = {right}: give multiples of {self._unit} mel frames, of "
                "which a code frame is made, and a segment of at least one"
            )
        self._books = config.num_quantizers if num_quantizers is None else num_quantizers
        if not 1 <= self._books <= config.num_quantizers:
            raise ValueError(f"{self._books} codebooks asked for: this tokenizer has 1..{config.num_quantizers}")
        self.config = config
        self._variables = jax.device_put(variables)
        self._model = MimoAudioTokenizer(config, compute)
        self._segment, self._left, self._right = segment, left, right
        self._begin()

    @property
    def latency(self) -> int:
        """Samples that must have come, at most, until the codes of one are given back."""
        return (self._segment + self._right - 1) * self.config.hop_length + self.config.nfft // 2

    def _begin(self) -> None:
        self._samples = np.zeros(0, np.float32)  # of the stream, as far as they are still needed
        self._new: list[np.ndarray] = []  # what follows them, joined when it is needed
        self._dropped = 0  # samples of the stream before them
        self._heard = 0  # samples of the stream
        self._done = 0  # mel frames whose codes were given back

    def __call__(self, samples: np.ndarray | None = None, last: bool = False) -> np.ndarray:
        """Codes int32 [F, n] that the next samples (float32 [samples] at `config.sampling_rate`) make certain.

        Args:
          samples: may be empty; None = none.
          last: the stream ends here; all that is left is given back.

        Raises:
          ValueError: samples that are not one-dimensional or not finite.
        """
        if samples is not None:
            samples = np.asarray(samples, np.float32)
            if samples.ndim != 1 or not np.isfinite(samples).all():
                raise ValueError(f"samples have shape {samples.shape}: give [samples] of finite values")
            self._new.append(samples)
            self._heard += len(samples)
        parts = [np.zeros((0, self._books), np.int32)]
        while (end := self._next_end(last)) is not None:
            parts.append(self._encode(end, last))
            self._done = end
            self._forget()
        if last:
            self._begin()
        return np.concatenate(parts)

    def _next_end(self, last: bool) -> int | None:
        """Mel frame at which the next segment ends, None if it cannot be computed yet."""
        heard, hop, half = self._heard, self.config.hop_length, self.config.nfft // 2
        end = self._done + self._segment
        if last:
            total = 1 + heard // hop if heard else 0
            return min(end, total) if self._done < total else None
        # All its frames, and those after it, lie inside of what was heard.
        return end if (end + self._right - 1) * hop + half <= heard else None

    def _encode(self, end: int, last: bool) -> np.ndarray:
        """Codes of the mel frames from `_done` to `end`."""
        self._samples, self._new = np.concatenate([self._samples, *self._new]), []
        hop, half, heard = self.config.hop_length, self.config.nfft // 2, self._heard
        begin = max(0, self._done - self._left)
        until = end + self._right
        if last:
            until = min(until, 1 + heard // hop)
        # Reflected at the ends of the stream, and nowhere else.
        before = half if begin * hop < half else 0
        after = max(0, (until - 1) * hop + half - heard)
        padded = np.pad(self._samples, (before, after), mode="reflect") if before or after else self._samples
        start = begin * hop - half - self._dropped + before
        window = padded[start : start + (until - 1 - begin) * hop + self.config.nfft]
        size = self._left + self._segment + self._right
        batch = np.zeros((1, (size - 1) * hop + self.config.nfft), np.float32)
        batch[0, : len(window)] = window
        codes, frames = _encode(self._model, self._variables, batch, np.array([until - begin], np.int32), self._books)
        first = (self._done - begin) // self._unit
        return np.asarray(codes)[0, first : min(int(frames[0]), first + -(-(end - self._done) // self._unit))]

    def _forget(self) -> None:
        """Drops the samples that no later window needs."""
        hop, half = self.config.hop_length, self.config.nfft // 2
        # One more than the padding at the end of the stream reflects.
        needed = min(self._done - self._left, self._done - 1) * hop - 2 * half - 1
        spare = max(0, needed - self._dropped)
        if spare:
            self._samples, self._dropped = self._samples[spare:].copy(), self._dropped + spare


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(
    model: MimoAudioTokenizer, variables: Variables, padded: Array, lengths: Array, books: int
) -> tuple[Array, Array]:
    """(codes [1, T, books], code frames [1]) of a window that carries its padding."""
    mel = frontend.log_mel_padded(padded, model.config)
    codes, frames = model.apply(variables, mel, jnp.asarray(lengths), books, method="encode")
    return codes, frames
