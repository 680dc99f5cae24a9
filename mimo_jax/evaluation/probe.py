"""How much of the words frozen features carry: a probe learns to read them, always in the same steps from one seed.

Two probes, by `RecogniserConfig.dilations`: none is a linear map of each frame by itself to CTC outputs; others are the
residual convolutions of the independent recogniser on top of the features in place of its log-mel. They spell in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mimo_jax.models.recogniser import ConvBlock, RecogniserConfig
from mimo_jax.objectives.base import Batch, Mutable, Params
from mimo_jax.objectives.recogniser import RecogniserObjective, greedy_decode
from mimo_jax.objectives.transcripts import Vocabulary

_SPELLING = Vocabulary()  # no whole words: these would ask for a model that remembers more than a frame


class Probe(nn.Module):
    """Features -> CTC logits."""

    config: RecogniserConfig

    @nn.compact
    def __call__(
        self, features: jax.Array, num_frames: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """float32 [B, T, D], int32 [B] -> (logits [B, T * outputs_per_state, num_classes], their lengths [B])."""
        config, (batch, frames, _) = self.config, features.shape
        mask = (jnp.arange(frames) < num_frames[:, None]).astype(features.dtype)
        x = features * mask[..., None]
        if config.dilations:
            x = nn.gelu(nn.LayerNorm(name="stem_norm")(nn.Dense(config.d_model, name="stem")(x)))
            for i, dilation in enumerate(config.dilations):
                x = ConvBlock(config, dilation, name=f"block_{i}")(x, mask, deterministic)
            x = nn.LayerNorm(name="norm")(x)
        logits = nn.Dense(config.num_classes * config.outputs_per_state, name="head")(x)
        logits = logits.reshape(batch, frames * config.outputs_per_state, config.num_classes)
        return logits, num_frames * config.outputs_per_state


@dataclasses.dataclass(frozen=True)
class ProbeObjective(RecogniserObjective):
    """The recogniser's CTC loss over batches of ``features`` float32 [B, T, D] and ``num_frames`` int32 [B]."""

    @property
    def module(self) -> Any:
        """The Flax module."""
        return Probe(self.model)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """Fresh parameters."""
        return self.module.init(rng, jnp.asarray(batch["features"][:1]), jnp.asarray(batch["num_frames"][:1]))[
            "params"
        ], {}

    def _apply(self, params: Params, batch: Batch, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        out = self.module.apply({"params": params}, batch["features"], batch["num_frames"], **kwargs)
        return cast(tuple[jax.Array, jax.Array], out)


@dataclasses.dataclass(frozen=True)
class ProbeTraining:
    """How a probe learns.

    Attributes:
        model: of its fields only ``dilations`` (none = linear), ``d_model``, ``kernel_size``, ``dropout`` and
            ``outputs_per_state`` (CTC outputs per frame of features) matter.
        steps: of AdamW, with a warm-up of a twentieth and a cosine.
        batch_size: utterances of a step.
        learning_rate: the highest.
        seed: of parameters and of the order of utterances.
    """

    model: RecogniserConfig = RecogniserConfig(num_words=0, dilations=(), outputs_per_state=2)
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


class TrainedProbe:
    """Reads features.

    Attributes:
        loss: mean of the last twentieth of the steps, nats per byte.
        unused: training utterances that taught nothing, because CTC has fewer outputs for them than their texts have
            bytes: features of a low frame rate need more `RecogniserConfig.outputs_per_state`.
    """

    def __init__(
        self, objective: ProbeObjective, params: Params, mean: np.ndarray, scale: np.ndarray, loss: float, unused: int
    ):
        self.loss, self.unused = loss, unused
        self._objective, self._params, self._mean, self._scale = objective, params, mean, scale
        self._run = jax.jit(lambda p, x, n: objective.module.apply({"params": p}, x, n))

    def transcribe(self, features: Sequence[np.ndarray], batch_size: int = 32) -> list[str]:
        """Texts of float32 [frames, D] each."""
        texts: list[str] = []
        longest = max((len(f) for f in features), default=0)
        for start in range(0, len(features), batch_size):
            part = [features[i] for i in range(start, min(start + batch_size, len(features)))]
            batch, lengths = _padded(part, batch_size, longest, self._mean, self._scale)
            decoded = greedy_decode(*self._run(self._params, batch, lengths))
            texts += [_SPELLING.decode(ids) for ids in decoded[: len(part)]]
        return texts


def train_probe(features: Sequence[np.ndarray], texts: Sequence[str], training: ProbeTraining) -> TrainedProbe:
    """A probe that has learned to read these features.

    Each dimension is shifted and scaled by its mean and deviation over the training frames, so that the scale of a
    tokenizer's features gives it no advantage.

    Args:
        features: float32 [frames, D] per utterance, read anew whenever an utterance is used.
        texts: what is said in each.
        training: how.

    Raises:
        ValueError: no utterance, or fewer texts than features.
    """
    if not len(features) or len(features) != len(texts):
        raise ValueError(f"{len(features)} utterances with {len(texts)} texts: give as many, at least one")
    mean, scale = _moments(features)
    ids = [np.asarray(_SPELLING.encode(text), np.int32) for text in texts]
    lengths = [len(utterance) for utterance in features]
    frames, letters = max(lengths), max(1, *map(len, ids))
    room = [length * training.model.outputs_per_state for length in lengths]
    unused = sum(_outputs_needed(i) > outputs for i, outputs in zip(ids, room, strict=True))
    objective = ProbeObjective(training.model)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, max(1, training.steps // 20), max(2, training.steps)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def batch_of(chosen: np.ndarray) -> dict[str, Any]:
        x, lengths = _padded([features[i] for i in chosen], training.batch_size, frames, mean, scale)
        text = np.zeros((training.batch_size, letters), np.int32)
        for row, i in enumerate(chosen):
            text[row, : len(ids[i])] = ids[i]
        counts = np.zeros(training.batch_size, np.int32)
        counts[: len(chosen)] = [len(ids[i]) for i in chosen]
        return {"features": x, "num_frames": lengths, "text": text, "text_length": counts}

    @jax.jit
    def step(params: Params, state: Any, batch: Batch, rng: jax.Array) -> tuple[Params, Any, jax.Array]:
        (loss, _), gradient = jax.value_and_grad(objective.loss, has_aux=True)(params, {}, batch, rng, jnp.zeros(()))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng = jax.random.key(training.seed)
    order = _Order(len(features), training.batch_size, training.seed)
    params, _ = objective.init(rng, batch_of(order.batch(0)))
    state, losses = optimizer.init(params), []
    for number in range(training.steps):
        params, state, loss = step(params, state, batch_of(order.batch(number)), jax.random.fold_in(rng, number))
        losses.append(loss)
    last = [float(loss) for loss in losses[-max(1, training.steps // 20) :]]
    return TrainedProbe(objective, params, mean, scale, float(np.mean(last)), unused)


def _outputs_needed(ids: np.ndarray) -> int:
    """CTC outputs without which a text [bytes] cannot be written: equal neighbours have a blank between them."""
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


class _Order:
    """Which utterances a step sees: epochs in an order of their own, whole batches as far as there are enough."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self._count, self._size, self._seed = count, min(batch_size, count), seed

    def batch(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self._count // self._size)
        order = np.random.Generator(np.random.Philox(key=[self._seed, epoch])).permutation(self._count)
        return order[place * self._size : (place + 1) * self._size]


def _moments(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / deviation [D] over all frames, one utterance at a time; a constant dimension has scale 0."""
    count, total, squares = 0, 0.0, 0.0
    for utterance in features:
        x = np.asarray(utterance, np.float64)
        count, total, squares = count + len(x), total + x.sum(axis=0), squares + np.square(x).sum(axis=0)
    mean = np.asarray(total) / max(1, count)
    deviation = np.sqrt(np.maximum(np.asarray(squares) / max(1, count) - mean**2, 0))
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _padded(
    features: Sequence[np.ndarray], rows: int, frames: int, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [rows, frames, D] normalised, zero behind each end; frames of each row [rows])."""
    out, lengths = np.zeros((rows, frames, len(mean)), np.float32), np.zeros(rows, np.int32)
    for row, utterance in enumerate(features):
        out[row, : len(utterance)] = (utterance - mean) * scale
        lengths[row] = len(utterance)
    return out, lengths
