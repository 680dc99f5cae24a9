"""Held-out losses of the language model over packed rows, and the entropy of the same codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.parts import Part

Batch = Mapping[str, Any]
_PREFIX = "codebook_loss_"


class PackedRows(Protocol):
    """One pass over held-out rows (`data.loader.PackedSource` with ``repeat=False``)."""

    def batch(self, step: int) -> Batch:
        """Arrays of one step."""
        ...

    def steps_per_pass(self) -> int:
        """Steps that hold every row."""
        ...


def labelled_codes(batch: Batch, empty_token_id: int) -> np.ndarray:
    """Codes int [N, C] of the frames that carry loss: exactly those that the codebook losses average over."""
    text = np.asarray(batch["text"])
    labelled = (text == empty_token_id) & np.asarray(batch["loss_mask"], bool) & (np.asarray(batch["segment_ids"]) > 0)
    labelled[:, 0] = False  # nothing predicts the first position of a row
    audio = np.asarray(batch["audio"])
    return audio[labelled].reshape(-1, audio.shape[-1])


def held_out_losses(
    evaluate: Callable[[Batch], Mapping[str, tuple[Any, Any]]],
    source: PackedRows,
    empty_token_id: int,
    max_batches: int,
) -> Part:
    """Losses in nats: per text token, and per code of each codebook, beside the codes' plain unigram entropy.

    Args:
        evaluate: (sum, count) of each loss over a batch, `LanguageModelObjective.evaluate` bound to its parameters.
        source: held-out rows.
        empty_token_id: id of ``<|empty|>``, which marks audio positions.
        max_batches: upper limit of the pass.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    codes = []
    for step in range(min(source.steps_per_pass(), max_batches)):
        batch = source.batch(step)
        codes.append(labelled_codes(batch, empty_token_id))
        for name, (total, count) in evaluate(batch).items():
            sums[name] += float(total)
            counts[name] += float(count)
    means = {name: sums[name] / counts[name] for name in sums if counts[name] > 0}
    codebooks = sorted((name for name in means if name.startswith(_PREFIX)), key=lambda name: int(name[len(_PREFIX) :]))
    held_out = np.concatenate(codes) if codes else np.zeros((0, 0), np.int64)
    figures: dict[str, Any] = {name: means[name] for name in ("text_loss",) if name in means}
    if codebooks and len(held_out):
        figures["codebook_loss"] = [means[name] for name in codebooks]
        figures["codebook_unigram_entropy"] = [metrics.unigram_entropy(column) for column in held_out.T]
    return {
        "figures": figures,
        "counts": {"text_tokens": counts.get("text_loss", 0.0), "frames": len(held_out)},
        "items": [],
    }
