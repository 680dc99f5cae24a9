"""From updates to what a user hears and reads while an answer is still being made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mimo_jax.data.prompts import THINK_END, THINK_START
from mimo_jax.data.sequence import Layout
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.requests import Update
from mimo_jax.inference.streaming import OverlapDecoder, StreamingDecoder

_OPEN, _CLOSE = THINK_START.strip(), THINK_END.strip()
_UNFINISHED = "\ufffd"  # what the bytes of half a character are decoded to


def streaming_decoder(codec: AudioCodec, chunk: int, lookahead: int | None) -> StreamingDecoder | OverlapDecoder:
    """The decoder of one stream of codes, for the tokenizer of a codec.

    Args:
      codec: holds the tokenizer.
      chunk: code frames that come at a time.
      lookahead: mel frames that the vocoder waits for; None = all that it can see.
    """
    if codec.config.decoder_causal:
        return StreamingDecoder(codec.config, codec.variables, chunk=chunk, lookahead=lookahead, compute=codec.compute)
    return OverlapDecoder(codec.config, codec.variables, compute=codec.compute)


class Listener:
    """Takes the updates of one answer and gives back what can be told of it by now.

    All texts together are the text and the thinking of `data.postprocess`, all codes its codes, as long as the answer
    is well formed: the think block first, if there is one, and speech after `<|sostm|>` alone.

    Args:
      decode: text ids -> string, special tokens spelled out.
      layout: the sequence layout.
      thinking: the prompt ended inside the think block.
      until: the answer's text ends before it; empty = nowhere.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], layout: Layout, thinking: bool, until: str = ""):
        self._decode, self._layout = decode, layout
        self._ids: list[int] = []  # not told yet: they may end within a character
        self._silent = {layout.special.empty, layout.special.eot, layout.special.sostm, layout.special.eostm}
        self._speech_ended = False
        # Whether a thought comes first is not known before the answer's first characters.
        self._thought = _Trimmed(_CLOSE) if thinking else None
        self._opening = "" if not thinking else None
        self._text = _Trimmed(until)

    def __call__(self, update: Update) -> tuple[str, str, np.ndarray]:
        """(new text, new thinking, new codes int32 [frames, C]) of the next update."""
        last = update.stop_reason is not None
        ids = update.text[:-1] if update.stop_reason == "stop" else update.text
        codes = self._codes(ids, update.codes)
        self._ids += [int(i) for i in ids if int(i) not in self._silent]
        spelled = self._decode(self._ids) if self._ids else ""
        if spelled.endswith(_UNFINISHED) and not last:
            return "", "", codes
        self._ids = []
        text, thinking = self._sorted(spelled, last)
        return text, thinking, codes

    def _codes(self, ids: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """Frames of the first spoken answer."""
        layout = self._layout
        ends = np.flatnonzero(ids == layout.special.eostm)
        until = 0 if self._speech_ended else int(ends[0]) if len(ends) else len(ids)
        self._speech_ended |= bool(len(ends))
        count = int((ids[:until] == layout.special.empty).sum())
        frames = patches[:count].reshape(-1, layout.channels)
        return np.asarray(frames[frames[:, 0] != layout.empty_codes[0]], np.int32)

    def _sorted(self, new: str, last: bool) -> tuple[str, str]:
        """New characters -> (new text, new thinking)."""
        if self._opening is not None:
            self._opening = (self._opening + new).lstrip()
            if _OPEN.startswith(self._opening) and not last:
                return "", ""
            new, self._opening = self._opening, None
            if new.startswith(_OPEN):
                self._thought, new = _Trimmed(_CLOSE), new[len(_OPEN) :]
        thinking = ""
        if self._thought is not None:
            thinking, new = self._thought(new, last)
            if self._thought.ended:
                self._thought = None
        return ("" if self._thought is not None else self._text(new, last)[0]), thinking


class _Trimmed:
    """Characters up to a marker, without white space at either end, told as soon as they are certain."""

    def __init__(self, marker: str):
        self._marker = marker
        self._held, self._begun, self.ended = "", False, False

    def __call__(self, new: str, last: bool) -> tuple[str, str]:
        """(what is certain now, what follows the marker)."""
        if self.ended:
            return "", new
        text, rest = self._held + new, ""
        if not self._begun:
            text = text.lstrip()
        if self._marker and self._marker in text:
            text, rest = text.split(self._marker, 1)
            self.ended = True
        sure = len(text) if self.ended or last else len(text) - self._overlap(text)
        told = text[:sure].rstrip()
        self._held = text[len(told) :]
        self._begun |= bool(told)
        return told, rest

    def _overlap(self, text: str) -> int:
        """Characters at the end of `text` that the marker may begin with."""
        sizes = range(min(len(self._marker) - 1, len(text)), 0, -1)
        return next((size for size in sizes if text.endswith(self._marker[:size])), 0)
