"""An audio tokenizer where a model is asked for: encodes and decodes, and answers nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class CodecOnly:
    """The model of `tokenizer_reconstruction` without a language model.

    Attributes:
      codec: an `AudioCodec`.
      codebooks: how many are used.
    """

    codec: Any
    codebooks: int

    @classmethod
    def load(cls, tokenizer: str, codebooks: int) -> CodecOnly:
        """Of a folder, run or repository. Raises UserError where it has fewer codebooks."""
        from mimo_jax.cli import UserError, use_compilation_cache
        from mimo_jax.inference import loading

        use_compilation_cache()
        codec = loading.codec(tokenizer)
        if codebooks > codec.config.num_quantizers:
            raise UserError(f"--codebooks={codebooks}: the tokenizer has {codec.config.num_quantizers}")
        return cls(codec, codebooks)

    @property
    def sample_rate(self) -> int:
        """Of waveforms, Hz."""
        return self.codec.sample_rate

    @property
    def config(self) -> Any:
        """Its group size: one frame."""
        return SimpleNamespace(group_size=1)

    def encode(self, audios: Sequence[Any]) -> list[np.ndarray]:
        """Codes [frames, codebooks] of waveforms."""
        return self.codec.encode(audios, self.codebooks)

    def answer(self, jobs: Sequence[Any]) -> Sequence[Any]:
        """Raises ValueError: no language model."""
        raise ValueError("this task asks a language model; give --lm")
