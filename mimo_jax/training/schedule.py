"""Budgets and learning-rate schedules as functions of the share of the budget that is spent."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mimo_jax.cli import UserError

PATCH_SECONDS = 0.16
"""Audio that a patch stands for: 4 code frames at 25 Hz."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage lasts: exactly one of the five is set.

    Attributes:
      tokens: positions seen (text tokens + audio patches at 6.25 Hz; arXiv 2512.23808, section 4).
      text_tokens: text positions seen.
      audio_tokens: audio patches seen.
      audio_hours: hours of audio seen, counted in patches.
      steps: optimiser steps.
    """

    tokens: float | None = None
    text_tokens: float | None = None
    audio_tokens: float | None = None
    audio_hours: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        # `not > 0` also refuses NaN.
        if len(given) != 1 or not all(isinstance(value, (int, float)) and value > 0 for value in given.values()):
            names = ", ".join(field.name for field in dataclasses.fields(self))
            raise UserError(f"Budget: set one of {names} to a number above 0; got {given}")

    def progress(self, step: int, text_tokens: int, audio_tokens: int) -> float:
        """Share spent, in [0, 1], after `step` steps on so many positions."""
        for spent, limit in (
            (text_tokens + audio_tokens, self.tokens),
            (text_tokens, self.text_tokens),
            (audio_tokens, self.audio_tokens),
            (audio_tokens * PATCH_SECONDS / 3600, self.audio_hours),
            (step, self.steps),
        ):
            if limit is not None:
                return min(float(spent) / float(limit), 1.0)
        raise AssertionError("one of the limits is set")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning-rate factor over the budget: linear warm-up, then constant, cosine or linear decay.

    Attributes:
      kind: "constant", "cosine" or "linear".
      warmup: share of the budget for the warm-up.
      final: factor at the end (cosine, linear).
    """

    kind: str = "cosine"
    warmup: float = 0.01
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine", "linear"):
            raise UserError(f"Schedule.kind = {self.kind!r}: use 'constant', 'cosine' or 'linear'")

    def factor(self, progress: jax.Array) -> jax.Array:
        """progress [] in [0, 1] -> factor []."""
        # The first step has progress 0: half a per mille of the warm-up keeps its update from being empty.
        warm = jnp.minimum((progress + 5e-4) / max(self.warmup, 5e-4), 1.0)
        rest = jnp.clip((progress - self.warmup) / max(1.0 - self.warmup, 1e-6), 0.0, 1.0)
        decay = {
            "constant": jnp.ones_like(rest),
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * rest)),
            "linear": 1.0 - rest,
        }[self.kind]
        return warm * (self.final + (1.0 - self.final) * decay)
