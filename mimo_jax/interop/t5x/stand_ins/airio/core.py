"""The names that t5x takes from `airio.core`. No object of these classes is ever made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class DatasetProviderBase:
    """A task or mixture of airio."""


class Task(DatasetProviderBase):
    """A task of airio."""


class Mixture(DatasetProviderBase):
    """A mixture of airio."""


class AirIODatasetIterator:
    """Batches of airio."""


def _get_vocabularies(provider: Any) -> Any:
    raise NotImplementedError(f"{provider!r}: airio is not installed, only a stand-in of mimo_jax for its names")


dataset_providers = SimpleNamespace(get_vocabularies=_get_vocabularies)
