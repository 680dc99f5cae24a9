"""A tiny language model, a regression that compiles at once, and their sources, for tests of the trainer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mimo_jax.models.mimo_audio import MimoAudioConfig

EMPTY_ID = 31


def tiny_model() -> MimoAudioConfig:
    return MimoAudioConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        speech_vocab_size=(17, 17, 9, 9, 9, 9, 9, 9),
        speech_zeroemb_idx=(16, 16, 8, 8, 8, 8, 8, 8),
        local_dim=8,
        local_layers=1,
        local_attn_heads=2,
        local_ffn_dim=16,
        input_local_layers=1,
        input_local_dim=8,
        empty_token_id=EMPTY_ID,
        initializer_range=0.2,
    )


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Rows of random text and patches in two segments; a pure function of (seed, step)."""

    rows: int = 8
    length: int = 12
    seed: int = 0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=step))
        text = rng.integers(0, 8, (self.rows, self.length)).astype(np.int32)
        text[:, 3:7] = EMPTY_ID
        audio = np.broadcast_to(
            np.array(tiny_model().speech_zeroemb_idx, np.int32), (self.rows, self.length, 4, 8)
        ).copy()
        audio[:, 3:7] = rng.integers(0, 8, (self.rows, 4, 4, 8))
        segment_ids = np.ones_like(text)
        segment_ids[:, 8:] = 2
        positions = np.concatenate([np.arange(8), np.arange(self.length - 8)])
        return {
            "text": text,
            "audio": audio,
            "segment_ids": segment_ids,
            "positions": np.broadcast_to(positions, text.shape).astype(np.int32),
            "loss_mask": np.broadcast_to(positions > 0, text.shape),
        }

    def token_counts(self, step: int) -> tuple[int, int]:
        return self.rows * (self.length - 4), self.rows * 4


@dataclasses.dataclass(frozen=True)
class Regression:
    """An objective that compiles at once: a noisy linear map, with non-gradient state."""

    width: int = 256

    def init(self, rng, batch):
        w = 0.1 * jax.random.normal(rng, (self.width, self.width))
        return {"w": nn.LogicallyPartitioned(w, ("embed", "mlp"))}, {"mean": jnp.zeros(self.width)}

    def loss(self, params, mutable, batch, rng, progress):
        x = batch["x"] + 0.1 * jax.random.normal(rng, batch["x"].shape)
        error = x @ params["w"] - jnp.sin(batch["x"])
        mean = 0.9 * mutable["mean"] + 0.1 * batch["x"].mean(axis=0)
        return jnp.square(error).mean() + 0.0 * progress, ({"mean": mean}, {"largest": jnp.abs(error).max()})

    def evaluate(self, params, mutable, batch):
        error = batch["x"] @ params["w"] - jnp.sin(batch["x"])
        return {"loss": (jnp.square(error).sum(), jnp.float32(error.size))}


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Batches for `Regression`: 8 rows, each counted as 8 text positions and 4 patches.

    Attributes:
      bad: steps whose first number is not finite.
      high: steps whose numbers are a hundred times as large.
    """

    rows: int = 8
    width: int = 256
    seed: int = 0
    bad: tuple[int, ...] = ()
    high: tuple[int, ...] = ()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=step))
        x = rng.normal(size=(self.rows, self.width)).astype(np.float32) * (100 if step in self.high else 1)
        if step in self.bad:
            x[0, 0] = np.nan
        return {"x": x}

    def token_counts(self, step: int) -> tuple[int, int]:
        return self.rows * 8, self.rows * 4
