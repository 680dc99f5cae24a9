"""The exchange format of fine-tuning data: a JSON list of turns -> segments with the loss on the answers.

A turn is ``{"role": "system|user|assistant", "content": [...], "thinking": true|false|null, "Chain-of-thought": ...}``
(the last two belong to assistant turns), an item of content ``{"type": "text", "text": ...}`` or
``{"type": "audio", "audio": path}``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.sequence import AudioSegment, Segment, StreamedSegment, TextSegment

LoadCodes = Callable[[str], np.ndarray]
Turn = Mapping[str, Any]


def _content(turn: Turn, where: str) -> list[Mapping[str, Any]]:
    content = turn.get("content")
    if not isinstance(content, list) or not content:
        raise ValueError(f"{where}: 'content' must be a non-empty list of items")
    for item in content:
        kind = item.get("type")
        if kind not in ("text", "audio") or not isinstance(item.get(kind), str):
            raise ValueError(
                f'{where}: an item must be {{"type": "text", "text": str}} or {{"type": "audio", "audio": str}}'
            )
    return content


def _given_turn(turn: Turn, load_codes: LoadCodes, where: str) -> list[Segment]:
    role = turn["role"]
    out: list[Segment] = [TextSegment(f"<|im_start|>{role}\n", role=role)]
    for item in _content(turn, where):
        if item["type"] == "text":
            out.append(TextSegment(item["text"], role=role))
        else:
            out.append(AudioSegment(load_codes(item["audio"]), role=role))
    return [*out, TextSegment(prompts.TURN_END, role=role)]


def _thinking(turn: Turn, where: str) -> list[Segment]:
    """What an assistant turn starts with: nothing, an empty think block, or a thought that carries loss."""
    thinking = turn.get("thinking")
    if thinking is None:
        return []
    if not thinking:
        return [TextSegment(prompts.NO_THINKING, role="assistant")]
    thought = turn.get("Chain-of-thought")
    if not isinstance(thought, str):
        raise ValueError(f"{where}: thinking is true but 'Chain-of-thought' is missing")
    return [
        TextSegment(prompts.THINK_START, role="assistant"),
        TextSegment(thought, True, "assistant"),
        TextSegment(prompts.THINK_END, True, "assistant"),
    ]


def _answer(turn: Turn, load_codes: LoadCodes, where: str) -> Segment:
    content = _content(turn, where)
    kinds = [item["type"] for item in content]
    if kinds == ["text"]:
        return TextSegment(content[0]["text"], True, "assistant")
    if kinds == ["text", "audio"]:
        return StreamedSegment(content[0]["text"], load_codes(content[1]["audio"]), True, "assistant")
    raise ValueError(f"{where}: an answer is one text item, or a text item and then its audio; got {kinds}")


def conversation_segments(turns: Sequence[Turn], load_codes: LoadCodes) -> list[Segment]:
    """Turns -> segments with the loss on the answers.

    The loss covers what an assistant turn holds after its header (and after ``<think>\\n`` or the empty think block),
    up to and with ``<|im_end|>\\n``. Turns of others never carry loss, also not after the last answer (the released
    code labels such a tail, which is surely not intended).

    Args:
        turns: the conversation, in the order of the JSON list.
        load_codes: path as written in the JSON -> codes int [frames, C].

    Raises:
        ValueError: an unknown role, an item or answer of another form, or a missing chain of thought.
    """
    out: list[Segment] = []
    for number, turn in enumerate(turns):
        where = f"turn {number}"
        role = turn.get("role")
        if role in ("system", "user"):
            out += _given_turn(turn, load_codes, where)
        elif role == "assistant":
            out.append(TextSegment(prompts.ASSISTANT, role="assistant"))
            out += _thinking(turn, where)
            out += [_answer(turn, load_codes, where), TextSegment(prompts.TURN_END, True, "assistant")]
        else:
            raise ValueError(f"{where}: role {role!r} is none of 'system', 'user', 'assistant'")
    return out
