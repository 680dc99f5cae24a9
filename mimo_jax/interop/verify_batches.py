"""A tokenizer's golden arrays of several sequences at once: padded batches and streams.

The reference lets neighbours leak into each other in a padded batch (convolutions, pooling and GroupNorm read the
padding). We reproduce each sequence as it is alone, so of such an array only what no padding reaches is compared: the
rest is masked (numpy.ma).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.inference.streaming import OverlapDecoder
from mimo_jax.interop.golden import Arrays, Computed, Golden, Unfit, check_range, entry
from mimo_jax.models.tokenizer import TokenizerConfig
from mimo_jax.models.tokenizer.encoder import PADDING

Variables = Mapping[str, Any]


def codes_of(golden: Golden, config: TokenizerConfig, name: str) -> np.ndarray:
    """Input codes [T, n] int32, within the codebooks."""
    codes = golden.input(name, None, None, integers=True).T
    if codes.shape[1] > config.num_quantizers:
        raise Unfit(f"{name} of inputs.npz has {codes.shape[1]} codebooks, this tokenizer {config.num_quantizers}")
    check_range(codes, config.codebook_sizes[: codes.shape[1]], f"{name} of inputs.npz")
    return codes.astype(np.int32)


def books_of(config: TokenizerConfig, variables: Variables) -> list[np.ndarray]:
    """The vectors [size, D] of each codebook."""
    codebooks = variables["codebooks"]["quantizer"]
    return [np.asarray(codebooks[f"layers_{i}"]["embed"]) for i in range(config.num_quantizers)]


def _vectors(books: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Codes [T, n] -> sums of their vectors [T, D]."""
    return np.asarray(sum(book[code] for book, code in zip(books, codes.T, strict=False)))


# --- batches ----------------------------------------------------------------------------------------------------------


def encoded(golden: Golden, config: TokenizerConfig, variables: Variables, kind: str, computed: Computed) -> Arrays:
    """The arrays of `enc_batch` (kind "") or `enc_edge_batch` (kind "edge_"), from those of each sequence alone."""
    prefix, numbers = f"enc_{kind}batch", _members(golden, f"{kind}mel_", f"{kind}mel_lens")
    frames = [len(golden.inputs[f"{kind}mel_{number}"]) for number in numbers]
    sequences = []
    for number, count in zip(numbers, frames, strict=True):
        alone = _alone(computed, f"enc_{kind}single_{number}")
        hidden = int(alone["lengths_before_pool"][0])
        # Alone, zeros follow conv1's output; padding is followed by its bias. So much of conv2 reads none of either:
        first = count + 2 * PADDING - config.kernel_size + 1
        known = max(0, (first + PADDING - config.kernel_size) // config.stride_size + 1)
        # And if that is all of it and pooling reads nothing behind the end, all that follows is as alone.
        clean = count == max(frames) or (known >= hidden and hidden % config.avg_pooler == 0)
        parts = _masked(alone, clean)
        if not clean:
            parts["dbg_conv1"] = np.ma.masked_array(alone["dbg_conv1"], False)
            behind = np.arange(hidden) >= known
            parts["dbg_conv2"] = np.ma.masked_array(second := alone["dbg_conv2"], np.broadcast_to(behind, second.shape))
        sequences.append(parts)
    _look_up(golden, config, variables, prefix, sequences)
    return _joined(golden, prefix, sequences)


def _look_up(
    golden: Golden, config: TokenizerConfig, variables: Variables, prefix: str, sequences: Sequence[Arrays]
) -> None:
    """Quantised features from the reference's own codes: no leak is between these two."""
    counts = [int(parts["lengths"][0]) for parts in sequences]
    codes = golden.outputs.get(f"{prefix}.codes")
    if codes is None or codes.dtype.kind not in "iu" or codes.shape != (config.num_quantizers, sum(counts)):
        return
    check_range(codes.T, config.codebook_sizes[: config.num_quantizers], f"{prefix}.codes of outputs.npz")
    vectors = _vectors(books_of(config, variables), codes.T)
    for parts, own in zip(sequences, np.split(vectors, np.cumsum(counts)[:-1]), strict=True):
        parts["quantized_packed"], parts["quantized_unpacked"] = own, own[None]


def decoded(golden: Golden, computed: Computed) -> Arrays:
    """The arrays of `dec_batch`, from those of each sequence alone."""
    numbers = _members(golden, "dec_codes_", "dec_lens")
    alone = [_alone(computed, f"dec_single_{number}") for number in numbers]
    longest = max(len(arrays["hidden"]) for arrays in alone)
    sequences = [_masked(arrays, len(arrays["hidden"]) == longest) for arrays in alone]
    for parts, arrays in zip(sequences, alone, strict=True):
        parts["hidden"] = arrays["hidden"]
    return _joined(golden, "dec_batch", sequences)


def equal_rows(golden: Golden, config: TokenizerConfig) -> list[np.ndarray]:
    """The codes [T, n] that `dec_batch_equal` is of: the first sequences, cut to the length of the expected arrays."""
    per_code = config.avg_pooler * config.decoder_stride_size
    for array, axis, unit in (
        ("valid_samples", None, config.samples_per_frame),
        ("valid_mel_frames", None, per_code),
        ("wav", -1, config.samples_per_frame),
        ("coarse_mel", 1, per_code),
        ("dbg_head_out", 1, per_code),
        ("dbg_dconv1", 1, config.avg_pooler),
    ):
        expected = golden.outputs.get(f"dec_batch_equal.{array}")
        is_count = expected is not None and expected.ndim == 1 and expected.dtype.kind in "iu"
        if expected is not None and expected.size and (is_count if axis is None else expected.ndim == 3):
            length = int(expected[0] if axis is None else expected.shape[axis]) // unit
            break
    else:
        raise Unfit("outputs.npz has no array of dec_batch_equal that tells the length of its sequences")
    rows = []
    for i in range(len(expected)):
        codes = codes_of(golden, config, f"dec_codes_{i}")
        if not 1 <= length <= len(codes):
            raise Unfit(f"dec_batch_equal has {length} frames, dec_codes_{i} of inputs.npz {len(codes)}")
        rows.append(codes[:length])
    return rows


def equal(golden: Golden, alone: Sequence[Arrays]) -> Arrays:
    """The arrays of `dec_batch_equal`; nothing is padded there."""
    return _joined(golden, "dec_batch_equal", alone)


def _members(golden: Golden, prefix: str, counts: str) -> list[str]:
    """Numbers of the inputs that a batch is made of; the input `counts`, if there, has a length for each."""
    numbers = golden.numbers(prefix)
    expected = max(1, np.size(golden.inputs.get(counts, numbers)))
    if len(numbers) < expected:
        raise Unfit(f"inputs.npz has no {prefix}{next(i for i in range(expected) if str(i) not in numbers)}")
    return numbers


def _alone(computed: Computed, name: str) -> Arrays:
    """The arrays of one sequence alone, without the prefix; raises Unfit if they could not be computed."""
    if name in computed.reasons:
        raise Unfit(computed.reasons[name])
    start = f"{name}."
    return {key.removeprefix(start): array for key, array in computed.arrays.items() if key.startswith(start)}


def _masked(alone: Arrays, clean: bool) -> Arrays:
    return {
        name: np.ma.masked_array(array, not (clean or re.fullmatch(_COUNTS, name))) for name, array in alone.items()
    }


# Arrays that hold the sequences one after the other, by the axis; all others have one row for each, padded.
_COUNTS = r"lengths|lengths_before_pool|valid_\w+"
_PACKED = (
    (r"codes|margin", 1),
    (rf"{_COUNTS}|(features|quantized)_packed|hidden|dbg_(voc_)?layer\w*|dbg_voc_embeddings", 0),
)
_ZERO_BEHIND = r"features_unpacked|quantized_unpacked|coarse_mel|dbg_dconv1"


def _joined(golden: Golden, prefix: str, sequences: Sequence[Arrays]) -> Arrays:
    result: Arrays = {}
    for array in sequences[0]:
        name, parts = f"{prefix}.{array}", [arrays[array] for arrays in sequences]
        if name not in golden.outputs:
            continue
        axis = next((axis for pattern, axis in _PACKED if re.fullmatch(pattern, array)), None)
        if axis is not None:
            result[name] = np.ma.concatenate(parts, axis)
        else:
            result[name] = _rows(parts, bool(re.fullmatch(_ZERO_BEHIND, array)))
    return result


def _rows(parts: Sequence[np.ndarray], zero_behind: bool) -> np.ndarray:
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    rows = np.ma.masked_all((len(parts), *shape), parts[0].dtype)
    if zero_behind:
        rows[...] = 0
    for row, part in enumerate(parts):
        rows[(row, *map(slice, part.shape[1:]))] = part[0]
    return rows


# --- streams ----------------------------------------------------------------------------------------------------------


def schedule(golden: Golden, name: str) -> dict[str, Any]:
    """The chunk schedule of a stream; raises Unfit where it cannot be one."""
    listed = entry(golden.run, "streams", list)
    found = [stream for stream in listed if isinstance(stream, dict) and stream.get("name") == name]
    if not found:
        raise Unfit(f"streams of run.json has no {name}")
    stream = found[0]
    left, right = (entry(stream, f"{side}_overlap", int, name) for side in ("left", "right"))
    if right < 0:
        raise Unfit(f"{name}: right_overlap {right} must be at least 0")
    if left <= right:
        raise Unfit(f"{name}: left_overlap {left} must be larger than right_overlap {right}")
    sequences, lengths = (entry(stream, part, list, name) for part in ("sequences", "chunk_lengths"))
    rows = [row for row in lengths if isinstance(row, list) and row and len(row) == len(lengths[0])]
    whole = all(type(size) is int and size > 0 for row in rows for size in row)
    if not (sequences and all(isinstance(sequence, str) for sequence in sequences)):
        raise Unfit(f"{name}: sequences must name input arrays")
    if not whole or not len(rows) == len(lengths) == len(sequences):
        raise Unfit(f"{name}: chunk_lengths must have a list for each of its sequences, of equally many whole numbers")
    return stream


def _windows(stream: Mapping[str, Any]) -> np.ndarray:
    """Frames [sequences, chunks] that are decoded at each chunk: those kept before, and the chunk's."""
    lengths = np.asarray(stream["chunk_lengths"])
    windows, kept = np.zeros_like(lengths), np.zeros(len(lengths), lengths.dtype)
    for chunk in range(lengths.shape[1]):
        windows[:, chunk] = kept + lengths[:, chunk]
        kept = np.minimum(windows[:, chunk], stream["left_overlap"])
    return windows


def streamed(golden: Golden, config: TokenizerConfig, variables: Any, name: str) -> Arrays:
    """The arrays of one stream, each of its sequences streamed alone."""
    stream, books = schedule(golden, name), books_of(config, variables)
    windows = _windows(stream)
    overlaps = {side: stream[side] for side in ("left_overlap", "right_overlap")}
    counts = {array: np.zeros_like(windows) for array in ("cache_lengths", "processed_lengths")}
    result: Arrays = {}
    for sequence, (source, sizes) in enumerate(zip(stream["sequences"], stream["chunk_lengths"], strict=True)):
        codes = codes_of(golden, config, source)
        if sum(sizes) > len(codes):
            raise Unfit(f"{name}: chunk_lengths add up to {sum(sizes)} frames, {source} of inputs.npz has {len(codes)}")
        decoder = OverlapDecoder(config, variables, **overlaps)
        for chunk, end in enumerate(np.cumsum(sizes)):
            last, start, before = chunk == len(sizes) - 1, end - windows[sequence, chunk], decoder.processed
            wave = decoder(codes[end - sizes[chunk] : end], last=last)
            # After the last chunk the reference keeps the whole window, all of it given back.
            kept = codes[start:end] if last else decoder.kept
            counts["cache_lengths"][sequence, chunk] = len(kept)
            counts["processed_lengths"][sequence, chunk] = len(kept) if last else decoder.processed
            prefix, longest = f"{name}.chunk{chunk}.seq{sequence}", windows[:, chunk].max()
            result[f"{prefix}.wav"] = wave[None]
            if windows[sequence, chunk] < longest:  # padded in the reference, which gives the last padding back too
                samples = (longest - before) * config.samples_per_frame if last else wave.size
                result[f"{prefix}.wav"] = np.ma.masked_all((1, samples), wave.dtype)
            result[f"{prefix}.is_none"] = np.asarray(not wave.size)
            result[f"{prefix}.cache_hidden"] = _vectors(books, kept)
    for array, values in counts.items():
        result |= {f"{name}.chunk{chunk}.{array}": row for chunk, row in enumerate(values.T)}
    return result
