"""Where recordings, texts and conversations come from; see docs/sources.md."""

from mimo_jax.preparation.sources.base import Shard, Source, SourceError
from mimo_jax.preparation.sources.opening import KINDS, open_source

__all__ = ["KINDS", "Shard", "Source", "SourceError", "open_source"]
