"""A tokenizer as its evaluation sees it: the protocol, and an exported or imported folder behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.evaluation.random_codebooks import random_codebooks
from mimo_jax.evaluation.systems import Wave
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.interop import hf
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, frontend

_BATCH_SECONDS = 20  # waves of the statistics behind random codebooks are computed in parts of this length


class TokenizerSystem(Protocol):
    """What is measured. The first n columns of the codes are those of a tokenizer with n codebooks."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes in each codebook."""
        ...

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        ...

    @property
    def sample_rate(self) -> int:
        """Of waves in and out, Hz."""
        ...

    def encode(self, waves: Sequence[Wave]) -> list[np.ndarray]:
        """Codes int [frames, codebooks] of each wave."""
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[Wave]:
        """Waves of the codes [frames, n] of the first n codebooks."""
        ...

    def with_random_codebooks(self, waves: Sequence[Wave], seed: int) -> TokenizerSystem:
        """The same encoder and decoder around random codebooks, made to the measure of these waves' features."""
        ...


class MeasuredTokenizer:
    """`inference.codec.AudioCodec` as a `TokenizerSystem`, and its quantised features.

    Args:
      config: the tokenizer.
      variables: `params`, `codebooks` and `constants`.
      batch_frames: mel frames computed at a time; the bound of memory.
    """

    def __init__(self, config: TokenizerConfig, variables: dict[str, Any], batch_frames: int = 12288):
        self.config = config
        # One copy on the device, shared with the codec and with the same tokenizer around random codebooks.
        self._variables, self._batch_frames = jax.device_put(variables), batch_frames
        self._codec = AudioCodec(config, self._variables, batch_frames=batch_frames)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], batch_frames: int = 12288) -> MeasuredTokenizer:
        """From a folder in the released layout.

        Raises:
          UserError: the folder holds no audio tokenizer, or tensors are missing or misshapen.
        """
        return cls(*hf.load_tokenizer(folder), batch_frames)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes in each codebook."""
        return tuple(self.config.codebook_sizes)

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        return self._codec.frame_rate

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self._codec.sample_rate

    def encode(self, waves: Sequence[Wave]) -> list[np.ndarray]:
        """Codes int32 [frames, codebooks]."""
        return self._codec.encode(list(waves))

    def decode(self, codes: Sequence[np.ndarray]) -> list[Wave]:
        """Waves float32 [samples]."""
        return self._codec.decode(list(codes))

    def codebook(self, index: int) -> np.ndarray:
        """Vectors float32 [size, D] of a codebook (0-based)."""
        return np.asarray(self._variables["codebooks"]["quantizer"][f"layers_{index}"]["embed"])

    def features(self, waves: Sequence[Wave]) -> np.ndarray:
        """The encoder's features float32 [frames, D] before quantisation, of all waves end to end."""
        size = _BATCH_SECONDS * self.sample_rate
        parts = [wave[start : start + size] for wave in waves for start in range(0, len(wave), size)]
        batch = np.zeros((1, min(size, max(map(len, parts)))), np.float32)
        run, found = jax.jit(self._encode_features), []
        for part in parts:  # one shape for all
            batch[0] = 0
            batch[0, : len(part)] = part
            features, lengths = run(self._variables, batch, np.array([len(part)], np.int32))
            found.append(np.asarray(features[0, : int(lengths[0])]))
        return np.concatenate(found)

    def _encode_features(self, variables: Any, waveform: jax.Array, num_samples: jax.Array) -> Any:
        mel, lengths = frontend.log_mel(waveform, num_samples, self.config)
        return MimoAudioTokenizer(self.config).apply(variables, mel, lengths, method="encode_features")

    def with_random_codebooks(self, waves: Sequence[Wave], seed: int) -> MeasuredTokenizer:
        """See `TokenizerSystem`; codebooks as of `random_codebooks.random_codebooks`."""
        vectors = random_codebooks(self.features(waves), self.codebook_sizes, seed)
        quantizer = {
            f"layers_{i}": {**self._variables["codebooks"]["quantizer"][f"layers_{i}"], "embed": jnp.asarray(embed)}
            for i, embed in enumerate(vectors)
        }
        variables = {**self._variables, "codebooks": {"quantizer": quantizer}}
        return MeasuredTokenizer(self.config, variables, self._batch_frames)
