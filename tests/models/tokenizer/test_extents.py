"""Sequences of any length share a row: where each lies at every rate, and the mel frames of each, are as when alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.models.tokenizer import TokenizerConfig, extents, frontend
from mimo_jax.models.tokenizer.encoder import code_extent, hidden_extent
from mimo_jax.models.tokenizer.extents import Packed

CONFIG = TokenizerConfig(n_mels=20)
FRAME, HOP, ROOM, ROW = CONFIG.samples_per_frame, CONFIG.hop_length, 3, 24


def at_all_rates(extent):
    """Extents of mel frames, hidden frames, code frames, of mel frames decoded and of those before the last is cut."""
    hidden, codes = hidden_extent(extent, CONFIG), code_extent(extent, CONFIG)
    decoded = extents.stretched(codes, 4)
    return extent, hidden, codes, decoded, extents.prolonged(decoded, 1)


@jax.jit
def packed(waves, starts, sizes):
    mel, extent = frontend.log_mel_packed(waves, starts, sizes, CONFIG)
    rates = at_all_rates(extent)
    width = [one.ids.shape[1] for one in rates]
    where = [extents.positions(one, n) for one, n in zip(rates, width, strict=True)]
    return mel, [extents.segment_ids(one, n) for one, n in zip(rates, width, strict=True)], where


alone = jax.jit(functools.partial(frontend.log_mel, config=CONFIG))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 7 * FRAME), st.integers(0, 2)), min_size=1, max_size=ROOM), st.integers(0, 99))
def test_sequences_of_any_length(given_sequences, seed):
    rng = np.random.default_rng(seed)
    waves = np.zeros((1, ROW * FRAME), np.float32)
    starts, sizes = np.zeros((2, 1, ROOM), np.int32)
    single = np.zeros((ROOM, 7 * FRAME), np.float32)
    start, count = 0, 0
    for size, more in given_sequences:
        if start + size >= ROW * FRAME:
            break
        single[count, :size] = rng.normal(size=size)
        waves[0, start : start + size], starts[0, count], sizes[0, count] = single[count, :size], start, size
        start, count = start + (size // FRAME + 2 + more) * FRAME, count + 1
    mel, ids, where = packed(waves, starts, sizes)
    expected, lengths = alone(single, sizes[0])
    for u in range(ROOM):
        inside = np.asarray(ids[0][0]) == u + 1
        assert inside.sum() == lengths[u]
        np.testing.assert_allclose(mel[0][inside], expected[u, : lengths[u]], atol=1e-4)
        for rate, length, found, position in zip((4, 2, 1, 4, 4), at_all_rates(lengths), ids, where, strict=True):
            at = np.flatnonzero(np.asarray(found[0]) == u + 1)
            begin = starts[0, u] // FRAME * rate
            np.testing.assert_array_equal(at, begin + np.arange(length[u]) if count > u else [])
            np.testing.assert_array_equal(np.asarray(position[0])[at], np.arange(len(at)))
    assert not np.any(np.asarray(mel)[np.asarray(ids[0]) == 0])


def test_sums_and_their_way_back():
    packed_rows = Packed(jnp.array([[1, 1, 0, 2], [0, 2, 2, 0]]), 3)
    x = jnp.array([[1.0, 2, 4, 8], [16, 32, 64, 128]])
    assert extents.sums(x, packed_rows).tolist() == [[3, 8, 0], [0, 96, 0]]
    assert extents.sums(x, jnp.array([3, 0])).tolist() == [[7], [0]]
    values = jnp.array([[5, 6, 7], [8, 9, 10]])
    assert extents.spread(values, packed_rows, 5).tolist() == [[5, 5, 0, 6, 0], [0, 9, 9, 0, 0]]
    assert extents.spread(jnp.array([[5], [6]]), jnp.array([3, 0]), 4).tolist() == [[5, 5, 5, 0], [0, 0, 0, 0]]
    assert extents.capacity(packed_rows) == 3 and extents.capacity(jnp.array([3, 0])) == 1
