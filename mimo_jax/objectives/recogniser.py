"""CTC loss of the recogniser over waveform batches (Graves et al. 2006), and greedy decoding."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mimo_jax.models.recogniser import BLANK, Recogniser, RecogniserConfig
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params


@dataclasses.dataclass(frozen=True)
class RecogniserObjective:
    """CTC loss per target class, averaged over the utterances of a batch.

    Batches: ``waveform`` float32 [B, S], ``num_samples`` int32 [B], ``text`` int32 [B, L] (class ids of
    ``transcripts.Vocabulary.encode``), ``text_length`` int32 [B]. An utterance without text, or with more targets than
    its CTC frames can hold, has weight 0.
    """

    model: RecogniserConfig = RecogniserConfig()

    @property
    def module(self) -> Recogniser:
        """The Flax module."""
        return Recogniser(self.model)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """Fresh parameters; there is no other state."""
        waveform = jnp.zeros((1, batch["waveform"].shape[1]), jnp.float32)
        return self.module.init(rng, waveform, jnp.zeros((1,), jnp.int32))["params"], {}

    def _apply(self, params: Params, batch: Batch, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        return cast(
            tuple[jax.Array, jax.Array],
            self.module.apply({"params": params}, batch["waveform"], batch["num_samples"], **kwargs),
        )

    def _ctc(self, logits: jax.Array, lengths: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(loss [B] per target, weight [B])."""
        text, count = batch["text"].astype(jnp.int32), batch["text_length"]
        position = jnp.arange(text.shape[1])
        # Equal neighbours need a blank between them.
        repeats = ((text[:, 1:] == text[:, :-1]) & (position[1:] < count[:, None])).sum(axis=1)
        weight = ((count > 0) & (count + repeats <= lengths)).astype(jnp.float32)
        logit_padding = (jnp.arange(logits.shape[1]) >= lengths[:, None]).astype(jnp.float32)
        label_padding = (position >= count[:, None]).astype(jnp.float32)
        loss = optax.ctc_loss(logits, logit_padding, text, label_padding, blank_id=BLANK)
        return jnp.where(weight > 0, loss / jnp.maximum(count, 1), 0.0), weight

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, tuple[Mutable, Metrics]]:
        """Mean CTC loss in nats per target class, with SpecAugment and dropout."""
        del progress
        logits, lengths = self._apply(params, batch, deterministic=False, rngs={"dropout": rng})
        loss, weight = self._ctc(logits, lengths, batch)
        total = loss.sum() / jnp.maximum(weight.sum(), 1.0)
        return total, (mutable, {"ctc_loss": total, "used_share": weight.mean()})

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """`ctc_loss` per target class and `sequence_error`, the share of utterances not transcribed exactly."""
        del mutable
        logits, lengths = self._apply(params, batch, deterministic=True)
        loss, weight = self._ctc(logits, lengths, batch)
        ids, counts = greedy_ids(logits, lengths, batch["text"].shape[1])
        inside = jnp.arange(ids.shape[1]) < batch["text_length"][:, None]
        same = (jnp.where(inside, ids == batch["text"], True).all(axis=1)) & (counts == batch["text_length"])
        return {
            "ctc_loss": (loss.sum(), weight.sum()),
            "sequence_error": ((weight * ~same).sum(), weight.sum()),
        }


def greedy_ids(logits: jax.Array, lengths: jax.Array, max_length: int) -> tuple[jax.Array, jax.Array]:
    """Best-path CTC decoding with fixed shapes.

    Args:
        logits: [B, T, num_classes]; lengths: int [B], valid CTC frames.
        max_length: ids kept per utterance.

    Returns:
        ids int32 [B, max_length], blank behind the end, and the true counts int32 [B], which can exceed max_length.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    previous = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    keep = (best != BLANK) & (best != previous) & (jnp.arange(best.shape[1]) < lengths[:, None])
    slot = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, max_length)
    rows = jnp.arange(best.shape[0])[:, None]
    ids = jnp.full((best.shape[0], max_length), BLANK, jnp.int32).at[rows, slot].set(best, mode="drop")
    return ids, keep.sum(axis=1).astype(jnp.int32)


def greedy_decode(logits: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Best-path class ids of each utterance on the host: repeats merged, blanks dropped."""
    ids, counts = greedy_ids(jnp.asarray(logits), jnp.asarray(lengths), np.shape(logits)[1])
    return [row[:count].tolist() for row, count in zip(np.asarray(ids), np.asarray(counts), strict=True)]
