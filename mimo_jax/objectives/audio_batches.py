"""What the batches of `data.waveforms` mean to the tokenizer's objectives: where audio and texts lie in their rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mimo_jax.models.tokenizer import TokenizerConfig, cost, extents, frontend
from mimo_jax.models.tokenizer.extents import Extent
from mimo_jax.objectives.base import Batch

Array = jax.Array


def log_mel(batch: Batch, config: TokenizerConfig) -> tuple[Array, Extent, Extent]:
    """(log-mel [B, F, n_mels], its extent, the extent of the samples) of `waveform` [B, S].

    One sequence a row with `num_samples` [B]; packed ones with `starts` and `num_samples` [B, U].
    """
    waveform, samples = batch["waveform"], batch["num_samples"]
    if "starts" not in batch:
        return *frontend.log_mel(waveform, samples, config), samples
    mel, extent = frontend.log_mel_packed(waveform, batch["starts"], samples, config)
    return mel, extent, extents.Packed.of(batch["starts"], samples, waveform.shape[1])


def text_extent(batch: Batch) -> Extent:
    """Extent of `text` [B, L]: `text_length` [B]; of packed rows `text_segments` [B, L], ids as the audio has them."""
    if "text_segments" in batch:
        return extents.Packed(batch["text_segments"], batch["num_samples"].shape[1])
    return batch["text_length"]


def text_kinds(batch: Batch) -> Array:
    """[B, U] (U = 1 unless packed): what each sequence's text is, 0 = transcript, 1 = caption."""
    samples = batch["num_samples"]
    return batch.get(
        "text_kind", jnp.zeros((samples.shape[0], 1 if samples.ndim == 1 else samples.shape[1]), jnp.int32)
    )


def share_of_rows(batch: Batch, patches: float, config: TokenizerConfig) -> float:
    """What part of a batch's rows so many patches, of four code frames, are."""
    rows, frames, _ = cost.row_shape(batch, config)
    return 4 * patches / (rows * frames)
