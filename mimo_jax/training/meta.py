"""What is known of a checkpoint without reading its arrays."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint holds beside arrays.

    Attributes:
      step: optimiser steps done.
      text_tokens, audio_tokens: positions seen in this stage (exact, unbounded).
      finished: the stage's budget is spent.
      config: the resolved gin text.
      model: of an imported model, what its `config.json` says.
      metrics: of the held-out evaluation at this very step, if there was one.
      data_rows: rows of data used or passed over, of all processes; the next step reads the first whole batch behind
        them. None: as many batches as `step`.
      rollbacks: how often the run went back to a checkpoint.
      guards: what `guards.Monitor` remembers.
      pending: (data step, loss, skipped updates) of the last steps, at which the guards have not looked yet.
      started: UNIX time at which the stage was first started.
      useful_seconds: of training that led to this state.
    """

    step: int
    text_tokens: int = 0
    audio_tokens: int = 0
    finished: bool = False
    config: str = ""
    model: dict[str, Any] | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    data_rows: int | None = None
    rollbacks: int = 0
    guards: dict[str, Any] = dataclasses.field(default_factory=dict)
    pending: list[list[float]] = dataclasses.field(default_factory=list)
    started: float = 0.0
    useful_seconds: float = 0.0
