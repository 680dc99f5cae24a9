"""What an engine is asked for and what it answers."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from mimo_jax.inference.sampling import GREEDY, Sampling

MAX_POSITIONS = 8192
MAX_STOP_TOKENS = 8

StopReason = Literal["stop", "length"]


class RequestError(ValueError):
    """A request that cannot run, or several of those given together.

    Attributes:
      reasons: why, by a request's place among those given together. None if it came alone: the message says why.
    """

    def __init__(self, reason: str | dict[int, str]) -> None:
        self.reasons = None if isinstance(reason, str) else reason
        super().__init__(
            reason if isinstance(reason, str) else "; ".join(f"request {n}: {why}" for n, why in reason.items())
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One sequence to continue.

    Attributes:
      text: int [n] text ids of the prompt, `<|empty|>` at audio positions; n >= 1.
      audio: int [n, G, C] codes of the prompt (not read at text positions).
      text_sampling, audio_sampling: how text tokens and codes are chosen.
      stop_tokens: text ids that end the answer (the stop token is part of the result), at most 8.
      min_new: positions that come before a stop token may; stop tokens are forbidden till then.
      max_new: longest answer in positions; the engine's `max_positions` limits prompt and answer together.
      forced_end: text id that takes the last allowed position of an answer that did not stop by itself.
      seed: of the random choices. The same request with the same seed gives the same answer in any batch.
    """

    text: np.ndarray
    audio: np.ndarray
    text_sampling: Sampling = GREEDY
    audio_sampling: Sampling = GREEDY
    stop_tokens: tuple[int, ...] = ()
    min_new: int = 0
    max_new: int = MAX_POSITIONS
    forced_end: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """The next positions of an answer.

    Attributes:
      ticket: which request.
      text: int32 [n] text ids, `<|empty|>` at audio positions.
      codes: int32 [patches, G, C] codes of the audio positions in their order.
      stop_reason: None while more is to come; "stop" (a stop token, the last of `text`) or "length".
    """

    ticket: int
    text: np.ndarray
    codes: np.ndarray
    stop_reason: StopReason | None


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A whole answer, without its prompt; attributes as of `Update`."""

    text: np.ndarray
    codes: np.ndarray
    stop_reason: StopReason


def joined(updates: list[Update]) -> Result:
    """The answer of all updates of one request, in their order."""
    reason = updates[-1].stop_reason
    if reason is None:
        raise ValueError("the last update says that more is to come")
    return Result(np.concatenate([u.text for u in updates]), np.concatenate([u.codes for u in updates]), reason)
