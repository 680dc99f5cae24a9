"""Fitting what depends on the data's vocabularies: the language model's ids, the text ids of waveform batches."""

from __future__ import annotations

import dataclasses
import os

from mimo_jax.cli import UserError
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.data.waveforms import TextIds
from mimo_jax.models.mimo_audio import MimoAudioConfig


def fit_model(model: MimoAudioConfig, prepared: str | os.PathLike[str] | None) -> MimoAudioConfig:
    """`model` with the id of `<|empty|>` and the codebooks' empty ids of a prepared folder; as it is without one.

    Raises:
      UserError: the text vocabulary does not fit `model.vocab_size`, or the patches have another shape.
    """
    if prepared is None:  # compiled for a machine elsewhere, without data
        return model
    data = Prepared(prepared)
    layout = data.layout
    size = int(data.manifest["vocab_size"])
    if size > model.vocab_size:
        raise UserError(
            f"{prepared}: its text vocabulary has {size} ids, the model {model.vocab_size}; raise "
            "MimoAudioConfig.vocab_size or prepare with a smaller --gin.prepare.vocab_size=N"
        )
    if (layout.group_size, layout.channels) != (model.group_size, model.audio_channels):
        raise UserError(
            f"{prepared}: patches of {layout.group_size} frames x {layout.channels} codebooks, the model has "
            f"{model.group_size} x {model.audio_channels}"
        )
    return dataclasses.replace(
        model,
        empty_token_id=layout.special.empty,
        speech_vocab_size=tuple(code + 1 for code in layout.empty_codes),
        speech_zeroemb_idx=layout.empty_codes,
    )


def text_ids(folder: str | os.PathLike[str]) -> TextIds:
    """Text -> ids of the text tokenizer in `folder`, ended by its end-of-text token, for waveform batches."""
    tokenizer = TextTokenizer.load(folder)
    end = [tokenizer.special.end_of_text]
    return lambda text: [*tokenizer.encode(text), *end] if text else []


def text_vocab_size(folder: str | os.PathLike[str]) -> int:
    """Number of ids of the text tokenizer in `folder`."""
    return TextTokenizer.load(folder).vocab_size
