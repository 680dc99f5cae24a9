"""Keyed permutations with random access: the shuffles of epochs, without a shuffle buffer and without state."""

import numpy as np

_ROUNDS = 6
_U64 = np.uint64
_MASK = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser (Steele et al., 2014): a bijective scrambling of 64-bit integers."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def key_of(*parts: int) -> int:
    """One 64-bit key of several integers (a seed, a task's number, an epoch ...)."""
    key = 0
    for part in parts:
        # The same scrambling as `_mix`, on Python integers: a single key is faster so.
        key = (key + 0x9E3779B97F4A7C15 + part) & _MASK
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
        key ^= key >> 31
    return key


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Images of ``index`` under the permutation of 0 .. size-1 that ``key`` names.

    A Feistel network over the next power of four, walked until the image is below ``size`` (Black & Rogaway, 2002): any
    element in constant time, whatever the size.

    Args:
        index: int [...], each in 0 .. size-1.
        size: number of elements, at most 2**62.
        key: any integer.

    Raises:
        ValueError: an index outside the range.
    """
    index = np.asarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index outside 0..{size - 1}")
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = _U64((1 << half) - 1)
    keys = [_U64(key_of(key, r)) for r in range(_ROUNDS)]

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> _U64(half), x & mask
        for k in keys:
            left, right = right, left ^ (_mix(right + k) & mask)
        return (left << _U64(half)) | right

    with np.errstate(over="ignore"):
        out = network(np.atleast_1d(index).astype(_U64))
        while (outside := out >= _U64(size)).any():
            out[outside] = network(out[outside])
    return out.astype(np.int64).reshape(index.shape)
