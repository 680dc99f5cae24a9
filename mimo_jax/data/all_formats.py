"""The list of all task formats: a new one is added to `FORMATS` of one of the two files, and is here."""

from collections.abc import Mapping

from mimo_jax.data import formats_chat, formats_pretraining
from mimo_jax.data.formats import TaskFormat


def formats() -> Mapping[str, TaskFormat]:
    """All task formats by name, pretraining first."""
    return {f.name: f for f in (*formats_pretraining.FORMATS, *formats_chat.FORMATS)}
