"""A tokenizer's golden arrays of several sequences at once: padded batches and streams.

The reference lets neighbours leak into each other in a padded batch (convolutions, pooling and GroupNorm read the
padding). We reproduce each sequence as it is alone, so of such an array only the sequences that no padding reaches are
compared: the others are masked (numpy.ma).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.inference.streaming import OverlapDecoder
from mimo_jax.interop.golden import Golden
from mimo_jax.models.tokenizer import TokenizerConfig

Arrays = dict[str, np.ndarray]


def encoded(golden: Golden, config: TokenizerConfig, alone: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of `enc_batch` and `enc_edge_batch`, from those of each sequence alone."""
    result: Arrays = {}
    for kind in ("", "edge_"):
        prefix, mels = f"enc_{kind}batch", _numbered(golden.inputs, f"{kind}mel_")
        # Convolution and pooling read no padding of the longest, and with the usual sizes of multiples of 4 frames.
        even = (config.kernel_size, config.stride_size, config.avg_pooler) == (3, 2, 2)
        longest = max(map(len, mels), default=0)
        clean = [len(mel) == longest or (even and len(mel) % 4 == 0) for mel in mels]
        result |= _joined(golden, prefix, [f"enc_{kind}single_{i}" for i in range(len(mels))], clean, alone)
    return result


def decoded(golden: Golden, config: TokenizerConfig, alone: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of `dec_batch`, from those of each sequence alone."""
    del config
    codes = _numbered(golden.inputs, "dec_codes_")
    longest = max((c.shape[1] for c in codes), default=0)
    clean = [c.shape[1] == longest for c in codes]
    return _joined(golden, "dec_batch", [f"dec_single_{i}" for i in range(len(codes))], clean, alone)


def _numbered(arrays: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    names = [name for name in arrays if re.fullmatch(rf"{prefix}\d+", name)]
    return [arrays[f"{prefix}{i}"] for i in range(len(names))]


# Arrays that hold the sequences one after the other, by the axis; all others have one row for each, padded.
_PACKED = (
    (r"codes|margin", 1),
    (r"features_packed|quantized_packed|dbg_(voc_)?layer\w*|dbg_voc_embeddings", 0),
)
_COUNTS = r"lengths|lengths_before_pool|valid_\w+"
_ZERO_BEHIND = r"features_unpacked|quantized_unpacked|coarse_mel|dbg_dconv1"


def _joined(
    golden: Golden, prefix: str, names: Sequence[str], clean: Sequence[bool], alone: Mapping[str, np.ndarray]
) -> Arrays:
    result: Arrays = {}
    for name, expected in golden.outputs.items():
        array = name.removeprefix(f"{prefix}.")
        parts = [alone.get(f"{single}.{array}") for single in names]
        if array == name or not parts or any(part is None for part in parts):
            continue
        arrays = [np.asarray(part) for part in parts]
        axis = next((axis for pattern, axis in _PACKED if re.fullmatch(pattern, array)), None)
        if re.fullmatch(_COUNTS, array):
            result[name] = np.concatenate(arrays)
        elif axis is not None:
            masks = [np.full(part.shape, not good) for part, good in zip(arrays, clean, strict=True)]
            result[name] = np.ma.masked_array(np.concatenate(arrays, axis), np.concatenate(masks, axis))
        else:
            known = bool(re.fullmatch(_ZERO_BEHIND, array))
            result[name] = _rows(arrays, clean, expected.shape[1:], known)
    return result


def _rows(arrays: Sequence[np.ndarray], clean: Sequence[bool], shape: tuple[int, ...], zero_behind: bool) -> np.ndarray:
    rows = np.ma.masked_all((len(arrays), *shape), arrays[0].dtype)
    for row, (part, good) in enumerate(zip(arrays, clean, strict=True)):
        if good:
            if zero_behind:
                rows[row] = 0
            rows[(row, *map(slice, part.shape[1:]))] = part[0]
    return rows


# --- streams ----------------------------------------------------------------------------------------------------------


def streams(golden: Golden) -> list[Mapping[str, Any]]:
    """The chunk schedules of run.json that the folder has results of."""
    prefixes = {name.split(".")[0] for name in golden.outputs}
    return [stream for stream in golden.run.get("streams", []) if stream["name"] in prefixes]


def _windows(stream: Mapping[str, Any]) -> np.ndarray:
    """Frames [sequences, chunks] that are decoded at each chunk: those kept before, and the chunk's."""
    lengths = np.asarray(stream["chunk_lengths"])
    windows, kept = np.zeros_like(lengths), np.zeros(len(lengths), lengths.dtype)
    for chunk in range(lengths.shape[1]):
        windows[:, chunk] = kept + lengths[:, chunk]
        kept = np.minimum(windows[:, chunk], stream["left_overlap"])
    return windows


def streamed(config: TokenizerConfig, variables: Any, golden: Golden, stream: Mapping[str, Any]) -> Arrays:
    """The arrays of one schedule, each sequence streamed alone."""
    codebooks = variables["codebooks"]["quantizer"]
    books = [np.asarray(codebooks[f"layers_{i}"]["embed"]) for i in range(config.num_quantizers)]
    windows = _windows(stream)
    counts = {name: np.zeros_like(windows) for name in ("cache_lengths", "processed_lengths")}
    result: Arrays = {}
    for sequence, (name, sizes) in enumerate(zip(stream["sequences"], stream["chunk_lengths"], strict=True)):
        codes = golden.inputs[name].T.astype(np.int32)
        decoder = OverlapDecoder(
            config, variables, left_overlap=stream["left_overlap"], right_overlap=stream["right_overlap"]
        )
        for chunk, end in enumerate(np.cumsum(sizes)):
            last, start = chunk == len(sizes) - 1, end - windows[sequence, chunk]
            wave = decoder(codes[end - sizes[chunk] : end], last=last)
            # After the last chunk the reference keeps the whole window, all of it given back.
            kept = codes[start:end] if last else decoder.kept
            counts["cache_lengths"][sequence, chunk] = len(kept)
            counts["processed_lengths"][sequence, chunk] = len(kept) if last else decoder.processed
            prefix = f"{stream['name']}.chunk{chunk}.seq{sequence}"
            result[f"{prefix}.wav"] = wave[None]
            if windows[sequence, chunk] < windows[:, chunk].max():  # padded in the reference, and longer for it
                result[f"{prefix}.wav"] = np.ma.masked_all_like(golden.outputs[f"{prefix}.wav"])
            result[f"{prefix}.is_none"] = np.asarray(not wave.size)
            result[f"{prefix}.cache_hidden"] = sum(book[code] for book, code in zip(books, kept.T, strict=False))
    for name, values in counts.items():
        result |= {f"{stream['name']}.chunk{chunk}.{name}": row for chunk, row in enumerate(values.T)}
    return result
