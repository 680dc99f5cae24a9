"""From generated positions to text and codes: what a user gets back."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mimo_jax.data.sequence import Layout

_MARKERS = ("<|empty|>", "<|eot|>", "<|eostm|>")
_THINK_START, _THINK_END = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a generation holds.

    Attributes:
        text: the decoded text as the released code returns it; ``<|sostm|>`` and think markers stay in it.
        thinking: the text between the think markers, stripped; None without markers.
        answer: the text after the think block, without any marker, stripped.
        codes: int32 [F, C], frames of the first spoken answer; F = 0 when nothing was spoken.
    """

    text: str
    thinking: str | None
    answer: str
    codes: np.ndarray


def _first_spoken(text: np.ndarray, layout: Layout) -> slice:
    """Positions of the first spoken answer: from after the first ``<|sostm|>`` to the first ``<|eostm|>``.

    A prompt that ends with ``<|sostm|>`` leaves none in the generated part: then the answer starts at once. Where the
    first end lies before the first start, the span is empty.
    """
    starts = np.flatnonzero(text == layout.special.sostm)
    ends = np.flatnonzero(text == layout.special.eostm)
    start = int(starts[0]) + 1 if len(starts) else 0
    return slice(start, int(ends[0]) if len(ends) else len(text))


def split_thinking(text: str) -> tuple[str | None, str]:
    """Text -> (thinking or None, answer).

    The start marker may be in the prompt; an unfinished thought has no answer.
    """
    if _THINK_END in text:
        thought, answer = text.split(_THINK_END, 1)
        return thought.replace(_THINK_START, "", 1).strip(), answer.strip()
    if _THINK_START in text:
        return text.split(_THINK_START, 1)[1].strip(), ""
    return None, text.strip()


def postprocess(
    text: np.ndarray,
    audio: np.ndarray,
    decode: Callable[[Sequence[int]], str],
    layout: Layout,
    drop_last: bool = True,
) -> Generated:
    """Generated positions (without the prompt) -> text and codes.

    Args:
        text: int [T] generated text ids.
        audio: int [T, G, C] generated codes.
        decode: ids -> string, special tokens spelled out.
        layout: the sequence layout.
        drop_last: the last position is a stop token and is dropped. The released code drops it always, which costs the
            last token or patch of a generation that ended by length; pass whether a stop token was really reached.
    """
    if drop_last:
        text, audio = text[:-1], audio[:-1]
    # Without these ids: the bytes of a character may lie before and after a block of patches.
    marks = (layout.special.empty, layout.special.eot, layout.special.eostm)
    spelled = decode([int(i) for i in text if i not in marks]).strip()
    for marker in _MARKERS:
        spelled = spelled.replace(marker, "")
    thinking, answer = split_thinking(spelled)
    frames = audio[_first_spoken(text, layout)].reshape(-1, layout.channels)
    codes = np.asarray(frames[frames[:, 0] != layout.empty_codes[0]], np.int32)
    return Generated(spelled, thinking, answer.replace("<|sostm|>", "").strip(), codes)
