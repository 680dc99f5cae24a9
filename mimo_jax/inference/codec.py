"""Waveforms to codes and back with an exported tokenizer: batched, jitted, few shapes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, extents, frontend, rvq
from mimo_jax.models.tokenizer.encoder import code_extent
from mimo_jax.models.transformer import Compute

# As the released tokenizer: mel pieces that are encoded alone, code pieces that are decoded alone, without overlap.
ENCODE_PIECE = 6000
DECODE_PIECE = 1500
# Rows of a batch that is not full.
_FEW = 8
# Lengths that pieces are padded to, in units of the smallest: each length costs a compilation, each gap wasted work.
_STEPS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


class AudioCodec:
    """The audio tokenizer as a codec for lists of utterances.

    Codes of an utterance do not depend on the others in the list. Audio longer than 60 s is encoded in pieces of 6000
    mel frames cut from the mel of the whole, codes are decoded in pieces of 1500 frames, both as the released
    tokenizer does; 60.00 s have 6001 mel frames, so the last piece is a single mel frame and gives one more code frame.

    Args:
      config: the tokenizer.
      variables: its `params`, `codebooks` and `constants`.
      compute: dtypes and attention.
      batch_frames: mel frames computed at a time (rows x padded length); the bound of memory.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        variables: dict[str, Any],
        compute: Compute = Compute(),
        batch_frames: int = 12288,
    ):
        self.config, self.compute = config, compute
        self.variables: dict[str, Any] = jax.device_put(variables)
        self._model = MimoAudioTokenizer(config, compute)
        self._batch_frames = batch_frames

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **kwargs: Any) -> AudioCodec:
        """From a folder in the released layout (`config.json`, safetensors); kwargs as of the class."""
        from mimo_jax.interop import hf

        return cls(*hf.load_tokenizer(folder), **kwargs)

    @property
    def sample_rate(self) -> int:
        """Of waveforms in and out, Hz."""
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        return self.config.frame_rate

    def encode(self, waves: Sequence[np.ndarray], num_quantizers: int | None = None) -> list[np.ndarray]:
        """Codes int32 [frames, n] of each waveform (float32 [samples] at `sample_rate`), of the first n codebooks.

        Raises:
          ValueError: a waveform that is empty, not one-dimensional or not finite, or an n that the tokenizer lacks.
        """
        n = self._check_count(num_quantizers)
        hop, half = self.config.hop_length, self.config.nfft // 2
        owners, pieces, sizes = [], [], []
        for index, wave in enumerate(waves):
            wave = np.asarray(wave, np.float32)
            if wave.ndim != 1 or not wave.size:
                raise ValueError(f"waveform {index} has shape {wave.shape}: give [samples], at least one")
            if not np.isfinite(wave).all():
                raise ValueError(f"waveform {index} holds values that are not finite")
            frames = 1 + wave.size // hop
            padded = np.pad(wave, half, mode="reflect")
            for start in range(0, frames, ENCODE_PIECE):
                count = min(ENCODE_PIECE, frames - start)
                owners.append(index)
                pieces.append(padded[start * hop : (start + count - 1) * hop + self.config.nfft])
                sizes.append(count)

        def compute(rows: list[np.ndarray], lengths: np.ndarray, size: int) -> list[np.ndarray]:
            batch = _stack(rows, (size - 1) * hop + self.config.nfft)
            codes, frames = jax.device_get(_encode(self._model, self.variables, batch, lengths, n))
            return [c[:f] for c, f in zip(codes, frames, strict=True)]

        unit = 32 * self.config.stride_size * self.config.avg_pooler
        return _joined(self._by_bucket(pieces, sizes, unit, ENCODE_PIECE, 1, compute), owners, len(waves))

    def decode(self, codes: Sequence[np.ndarray], num_quantizers: int | None = None) -> list[np.ndarray]:
        """Waveforms float32 [F * samples_per_frame] of codes [F, m], read from the first n (default: all m) codebooks.

        Raises:
          ValueError: an array that is not [F >= 1, m >= 1], more codebooks than there are, a code out of its range.
        """
        sizes_of = self.config.codebook_sizes
        arrays = [np.asarray(c)[:, :num_quantizers] if np.ndim(c) == 2 else np.asarray(c) for c in codes]
        owners, pieces = [], []
        for index, array in enumerate(arrays):
            if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"codes {index} are {array.dtype} {array.shape}: give integers [frames, codebooks], at least one"
                )
            self._check_count(array.shape[1])
            if array.shape[1] != arrays[0].shape[1]:
                raise ValueError(f"codes {index} have {array.shape[1]} codebooks, codes 0 have {arrays[0].shape[1]}")
            limits = np.array(sizes_of[: array.shape[1]])
            if (array < 0).any() or (array >= limits).any():
                row, book = np.argwhere((array < 0) | (array >= limits))[0]
                raise ValueError(
                    f"codes {index}: frame {row} of codebook {book + 1} is {array[row, book]}, "
                    f"not in 0..{limits[book] - 1}"
                )
            for start in range(0, len(array), DECODE_PIECE):
                owners.append(index)
                pieces.append(array[start : start + DECODE_PIECE].astype(np.int32))

        def compute(rows: list[np.ndarray], lengths: np.ndarray, size: int) -> list[np.ndarray]:
            batch = _stack(rows, size)
            count = batch.shape[-1]
            batch = np.pad(batch, ((0, 0), (0, 0), (0, self.config.num_quantizers - count)))
            waves, samples = jax.device_get(_decode(self._model, self.variables, batch, lengths, np.int32(count)))
            return [w[:s] for w, s in zip(waves, samples, strict=True)]

        mel_frames = self.config.avg_pooler * self.config.decoder_stride_size
        made = self._by_bucket(pieces, [len(p) for p in pieces], 32, DECODE_PIECE, mel_frames, compute)
        return _joined(made, owners, len(arrays))

    def _check_count(self, count: int | None) -> int:
        count = self.config.num_quantizers if count is None else count
        if not 1 <= count <= self.config.num_quantizers:
            raise ValueError(f"{count} codebooks asked for: this tokenizer has 1..{self.config.num_quantizers}")
        return count

    def _by_bucket(
        self,
        pieces: list[np.ndarray],
        sizes: list[int],
        unit: int,
        limit: int,
        cost: int,
        compute: Callable[[list[np.ndarray], np.ndarray, int], list[np.ndarray]],
    ) -> list[np.ndarray]:
        """`compute` over batches of pieces of one padded size; results in the order of the pieces.

        sizes: length of each piece; `unit`: smallest padded size; `limit`: largest; `cost`: mel frames per entry.
        """
        buckets = [int(unit * s) for s in _STEPS if unit * s < limit] + [limit]
        members: dict[int, list[int]] = {}
        for index, size in enumerate(sizes):
            members.setdefault(next(b for b in buckets if b >= size), []).append(index)
        results: dict[int, np.ndarray] = {}
        for bucket, indices in sorted(members.items()):
            most = 2 ** int(np.log2(max(1, self._batch_frames // (bucket * cost))))
            # Full batches, or one small one of a size that others have too: each shape is a compilation.
            rows = most if len(indices) > _FEW else min(most, _FEW if len(pieces) > 1 else 1)
            for start in range(0, len(indices), rows):
                chosen = indices[start : start + rows]
                batch = [pieces[i] for i in chosen] + [pieces[chosen[0]][:0]] * (rows - len(chosen))
                lengths = np.array([sizes[i] for i in chosen] + [0] * (rows - len(chosen)), np.int32)
                results |= zip(chosen, compute(batch, lengths, bucket)[: len(chosen)], strict=True)
        return [results[i] for i in range(len(pieces))]


# One program for all codecs of a configuration, and for any number of codebooks that is decoded from.
@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(
    model: MimoAudioTokenizer, variables: dict[str, Any], padded: jax.Array, lengths: jax.Array, n: int
) -> tuple[jax.Array, jax.Array]:
    mel = frontend.log_mel_padded(padded, model.config)
    codes, _ = model.apply(variables, mel, lengths, n, method="encode")
    return codes, code_extent(jnp.asarray(lengths), model.config)


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    model: MimoAudioTokenizer, variables: dict[str, Any], codes: jax.Array, lengths: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """codes [B, T, all codebooks], of which the first `count` are meant -> (waveforms, their lengths)."""
    books = jnp.broadcast_to(count, codes.shape[:2])
    quantized = extents.masked(rvq.decode(variables["codebooks"]["quantizer"], codes, books), lengths)
    mel, extent = model.apply(variables, quantized, lengths, method="decode_features")
    return model.apply(variables, mel, extent, method="vocode"), extents.stretched(extent, model.config.hop_length)


def _stack(rows: list[np.ndarray], size: int) -> np.ndarray:
    out = np.zeros((len(rows), size, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def _joined(pieces: list[np.ndarray], owners: list[int], count: int) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in range(count)]
    for owner, piece in zip(owners, pieces, strict=True):
        parts[owner].append(piece)
    return [np.concatenate(p) for p in parts]
