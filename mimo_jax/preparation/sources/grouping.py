"""Items that belong together, found without keeping more of them than their keys."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

GROUP_LIMIT = 4096
"""Items that stay together at most; larger groups are cut like items that belong to none."""


class Groups:
    """A union of items (numbered as they are added) by the keys that they share."""

    def __init__(self) -> None:
        self._parent = array("q")
        self._first: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, keys: Iterable[str]) -> int:
        """A new item; all items with one of these keys are in its group, earlier and later ones. Returns its number."""
        item = len(self._parent)
        self._parent.append(item)
        for key in keys:
            self._join(self._first.setdefault(key, item), item)
        return item

    def _root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        # The first item of a group is its root: groups come in the order of their first items.
        self._parent[max(one, other)] = min(one, other)

    def parts(self, items: int, limit: int = GROUP_LIMIT) -> Iterator[list[int]]:
        """Consecutive parts of about ``items`` items; groups of at most ``limit`` are not cut.

        The order is that of the groups' first items, within a group that of the items: the same for any ``items``.
        """
        part: list[int] = []
        for group in self._groups(limit):
            if part and len(part) + len(group) > items:
                yield part
                part = []
            part += group
        if part:
            yield part

    def _groups(self, limit: int) -> Iterator[list[int]]:
        roots = np.fromiter((self._root(i) for i in range(len(self))), np.int64, len(self))
        order = np.argsort(roots, kind="stable")
        borders = np.flatnonzero(np.diff(roots[order], prepend=-1, append=-1))
        for start, end in itertools.pairwise(borders):
            members = order[start:end].tolist()
            if len(members) <= limit:
                yield members
            else:
                yield from ([member] for member in members)
