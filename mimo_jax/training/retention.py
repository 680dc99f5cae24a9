"""Which checkpoints of a run are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mimo_jax.cli import UserError
from mimo_jax.training.meta import Meta


@dataclasses.dataclass(frozen=True)
class Keep:
    """Checkpoints that are not deleted; any one reason keeps a checkpoint.

    Attributes:
      latest: so many of the newest, at least 1. With 2, the one before a damaged newest is there.
      every_tokens: also the first checkpoint behind each multiple of so many positions (text and audio), for good.
      best_metric: also the best by a held-out metric as the log names it, such as "asr/text_loss". Only checkpoints
        saved at a step with an evaluation have one: choose `Intervals.checkpoint` so that evaluations fall on them.
      best: so many of the best.
      best_mode: "min" or "max".
    """

    latest: int = 2
    every_tokens: float | None = None
    best_metric: str | None = None
    best: int = 1
    best_mode: str = "min"

    def __post_init__(self) -> None:
        if self.latest < 1 or self.best < 1:
            raise UserError(f"Keep: latest={self.latest} best={self.best}: both must be at least 1")
        if self.every_tokens is not None and self.every_tokens <= 0:
            raise UserError(f"Keep.every_tokens = {self.every_tokens}: use a positive number, or None")
        if self.best_mode not in ("min", "max"):
            raise UserError(f"Keep.best_mode = {self.best_mode!r}: use 'min' or 'max'")

    def chosen(self, metas: Sequence[Meta]) -> list[bool]:
        """For checkpoints in the order of their steps, whether each is kept."""
        kept = set(range(len(metas))[-self.latest :])
        if self.every_tokens is not None:
            seen = {0}
            for index, meta in enumerate(metas):
                multiple = int((meta.text_tokens + meta.audio_tokens) // self.every_tokens)
                if multiple not in seen:
                    kept.add(index)
                seen.add(multiple)
        if self.best_metric is not None:
            rated = [
                (meta.metrics[self.best_metric], i) for i, meta in enumerate(metas) if self.best_metric in meta.metrics
            ]
            kept.update(index for _, index in sorted(rated, reverse=self.best_mode == "max")[: self.best])
        return [index in kept for index in range(len(metas))]

    def check_metric(self, results: Mapping[str, float]) -> None:
        """Raises UserError if an evaluation gave no `best_metric`."""
        if self.best_metric is not None and self.best_metric not in results:
            raise UserError(
                f"Keep.best_metric = {self.best_metric!r}: the evaluation has no such metric; it has {sorted(results)}"
            )
