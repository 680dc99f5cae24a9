"""Dealing of rows: every row once, groups of equal size, about equal weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.dealing import deal, dealt_order


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_every_row_once_in_groups_as_even_as_their_heaviest_row(groups, each, seed):
    weights = np.random.default_rng(seed).integers(0, 100, groups * each)
    dealt = deal(weights, groups)
    assert dealt.shape == (groups, each) and sorted(dealt.ravel().tolist()) == list(range(len(weights)))
    sums = weights[dealt].sum(axis=1)
    assert sums.max() - sums.min() <= weights.max() - weights.min()


def test_heaviest_meets_lightest():
    assert weights_of([9, 1, 8, 2, 7, 3, 6, 4], 4) == [10, 10, 10, 10]
    assert weights_of([1, 1, 1, 0], 2) == [1, 2]
    assert deal(np.ones(6), 3).tolist() == [[0, 5], [1, 4], [2, 3]]
    with pytest.raises(ValueError, match="5 rows"):
        deal(np.ones(5), 2)


def weights_of(weights, groups):
    return sorted(np.asarray(weights)[deal(np.asarray(weights), groups)].sum(axis=1).tolist())


def test_order_is_how_a_batch_is_split():
    weights = np.random.default_rng(0).integers(0, 100, 48)
    batch = weights[dealt_order(weights, 4, 3)]
    # Shards hold contiguous parts; a part is split into microbatches by taking every third row.
    groups = batch.reshape(4, 4, 3).sum(axis=1)
    assert groups.max() - groups.min() <= weights.max() - weights.min()
    assert sorted(batch.tolist()) == sorted(weights.tolist())
