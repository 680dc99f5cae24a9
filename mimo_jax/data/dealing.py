"""Deals the rows of a batch to devices and microbatches so that each gets about as many patches.

Patch encoder and decoder work on buffers of a fixed number of patches, one a device and microbatch. Rows of a text task
hold none and rows of a speech task are full of them: left where they fall, the fullest group would set the size of all
buffers.
"""

import numpy as np


def deal(weights: np.ndarray, groups: int) -> np.ndarray:
    """Groups of equal size and about equal weight.

    Args:
        weights: [N], of each row; N is a multiple of ``groups``.
        groups: number of groups.

    Returns:
        int [groups, N / groups], the rows of each group: the heaviest go out one a group, then the next heaviest in the
        opposite order, and so on. Rows of the same weight keep their order.
    """
    if groups < 1 or len(weights) % groups:
        raise ValueError(f"{len(weights)} rows cannot be dealt to {groups} groups of equal size")
    rounds = np.argsort(-np.asarray(weights), kind="stable").reshape(-1, groups)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T


def dealt_order(weights: np.ndarray, shards: int, microbatches: int) -> np.ndarray:
    """Order of a batch's rows, int [N]: row ``order[i]`` of the batch comes to place ``i``.

    The places of shard ``s`` are the ``s``-th part of the batch; its microbatch ``m`` takes every ``microbatches``-th
    place of them from the ``m``-th on (`training.state` splits a batch like that).
    """
    groups = deal(weights, shards * microbatches).reshape(shards, microbatches, -1)
    return groups.transpose(0, 2, 1).reshape(-1)
