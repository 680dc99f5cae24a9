"""Budgets and learning-rate schedules as functions of the share of the budget that is spent."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mimo_jax.cli import UserError


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage lasts: exactly one of the two is set.

    Attributes:
      tokens: positions seen (text tokens + audio patches at 6.25 Hz; arXiv 2512.23808, section 4).
      steps: optimiser steps, for stages without tokens (audio tokenizer, recogniser).
    """

    tokens: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.steps is None):
            raise UserError(f"Budget: set either tokens or steps, got tokens={self.tokens} steps={self.steps}")

    def progress(self, step: int, tokens: int) -> float:
        """Share spent, in [0, 1], before step `step` with `tokens` seen so far."""
        spent, limit = (step, self.steps) if self.tokens is None else (tokens, self.tokens)
        return min(float(spent) / max(float(limit or 0), 1.0), 1.0)


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
