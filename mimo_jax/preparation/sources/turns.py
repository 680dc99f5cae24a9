"""Turns of conversations: whether they are sound, which recordings they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mimo_jax.data.conversations import conversation_segments
from mimo_jax.preparation.sources.base import InvalidItem


def check_turns(turns: Any) -> list[dict[str, Any]]:
    """The turns, if they are in the exchange format.

    Raises:
        InvalidItem: "invalid_conversation", with the turn and what is wrong.
    """
    if not isinstance(turns, list) or not turns:
        raise InvalidItem("invalid_conversation", "a list of at least one turn is needed")
    for number, turn in enumerate(turns):
        items = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            message = f'turn {number}: it must be {{"role": ..., "content": [...]}} with objects as content'
            raise InvalidItem("invalid_conversation", f"{message}, found {turn!r:.200}")
    try:
        conversation_segments(turns, lambda _: np.zeros((0, 0), np.int32))
    except ValueError as error:
        raise InvalidItem("invalid_conversation", str(error)) from error
    if "" in recordings(turns):
        raise InvalidItem("invalid_conversation", "an audio item names no recording")
    return turns


def recordings(turns: list[dict[str, Any]]) -> list[str]:
    """What the audio items name, each once, in order."""
    return list(dict.fromkeys(item["audio"] for turn in turns for item in _audio_items(turn)))


def rename_recordings(turns: list[dict[str, Any]], name: Callable[[str], str]) -> list[dict[str, Any]]:
    """A copy in which each audio item names ``name(what it named)``."""
    return [
        {
            **turn,
            "content": [
                {**item, "audio": name(item["audio"])} if item["type"] == "audio" else item for item in turn["content"]
            ],
        }
        for turn in turns
    ]


def _audio_items(turn: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (item for item in turn["content"] if item["type"] == "audio")
