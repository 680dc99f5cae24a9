import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.permutation import key_of, permute


@given(st.integers(1, 3000), st.integers(-(2**70), 2**70))
def test_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_random_access_equals_the_whole_and_sizes_may_be_huge():
    whole = permute(np.arange(1000), 1000, 7)
    assert [int(permute(np.asarray(i), 1000, 7)) for i in (0, 13, 999)] == whole[[0, 13, 999]].tolist()
    assert 0 <= int(permute(np.asarray(5), 2**61, 1)) < 2**61
    with pytest.raises(ValueError, match="0..9"):
        permute(np.asarray([10]), 10, 0)


def test_keys_differ_and_order_is_well_mixed():
    orders = [permute(np.arange(2000), 2000, key_of(1, epoch)) for epoch in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (orders[a] == orders[b]).mean() < 0.01
    for order in orders:  # neighbours are no longer neighbours: mean distance of a random order is size / 3
        assert 600 < np.abs(np.diff(order)).mean() < 733
        assert abs(np.corrcoef(np.arange(2000), order)[0, 1]) < 0.1
    assert key_of(1, 2) != key_of(2, 1)
