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
