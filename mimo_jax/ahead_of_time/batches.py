"""Shapes of batches, known without data."""

from __future__ import annotations

import jax
import numpy as np

from mimo_jax.models.mimo_audio import MimoAudioConfig


def packed_rows(rows: int, context: int, model: MimoAudioConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `data.loader.PackedSource`: [rows, context] each, patches [rows, context, group_size, channels]."""
    shape = (rows, context)
    integers = jax.ShapeDtypeStruct(shape, np.int32)
    return {
        "text": integers,
        "audio": jax.ShapeDtypeStruct((*shape, model.group_size, model.audio_channels), np.int32),
        "segment_ids": integers,
        "positions": integers,
        "loss_mask": jax.ShapeDtypeStruct(shape, np.bool_),
    }


def waveform_rows(
    rows: int, max_samples: int, max_text: int = 0, max_utterances: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """A packed batch of `data.waveforms.WaveformSource`: rows of `max_samples` samples and `max_text` text ids."""

    def integers(width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, width), np.int32)

    return {
        "waveform": jax.ShapeDtypeStruct((rows, max_samples), np.float32),
        "starts": integers(max_utterances),
        "num_samples": integers(max_utterances),
        "text": integers(max_text),
        "text_segments": integers(max_text),
        "text_kind": integers(max_utterances),
    }
