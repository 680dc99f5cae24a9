"""Training loss of the language model (arXiv 2512.23808, section 3; numbers as the released fine-tuning code has them).

text loss = weighted mean of the next-token cross entropy, targets `<|empty|>` weighing 0.01; loss of codebook r = mean
cross entropy over all labelled frames of the batch; total = (100 text + sum_r w_r codebook_r) / sum of the weights, and
the text loss alone for a batch without labelled audio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mimo_jax.models import kernels, layers, patches
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params
from mimo_jax.objectives.cross_entropy import cross_entropy, vocabulary_cross_entropy

Array = jax.Array


def following(x: Array) -> Array:
    """What stands one position further on, 0 behind the end of a row: [B, T, ...] -> [B, T, ...]."""
    return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)


@dataclasses.dataclass(frozen=True)
class Losses:
    """Sums and counts of one batch, before they are divided."""

    text_sum: Array  # sum of weight * nll
    text_nll: Array  # [B, T] cross entropy of the text id AT each position, 0 where no target; without gradient
    text_weight: Array  # [B, T]
    audio_nll: Array | None  # [N, G, C], 0 at unused slots; None if the patch decoder did not run
    patch_mask: Array  # [N] labelled patches
    overflow: Array  # patches dropped for want of capacity


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective:
    """Next-token loss over text and audio of packed rows.

    Attributes:
      model: shape of the model.
      compute: dtypes, rematerialisation, kernels.
      text_weight, codebook_weights: weights of the nine losses; all codebook weights 0 leaves the patch decoder out
        (understanding stage).
      empty_weight: weight of a text target that is `<|empty|>`.
      patch_capacity: share of the positions of a device for which there is room in its patch encoder's buffer (1.0 =
        all).
      labelled_capacity: the same for the patch decoder, which runs on the patches that carry loss only; None takes
        `patch_capacity`. Patches without room are dropped from the batch and counted in the metric `patch_overflow`.
      vocab_chunk: positions of a device per chunk of the vocabulary cross entropy, 0 = unchunked.
    """

    model: MimoAudioConfig
    compute: Compute = Compute()
    text_weight: float = 100.0
    codebook_weights: Sequence[float] = (12.0, 8.0, 6.0, 4.0, 2.0, 2.0, 1.0, 1.0)
    empty_weight: float = 0.01
    patch_capacity: float = 1.0
    labelled_capacity: float | None = None
    vocab_chunk: int = 0

    @property
    def module(self) -> MimoAudio:
        return MimoAudio(self.model, self.compute)

    @property
    def trains_audio(self) -> bool:
        return any(self.codebook_weights)

    def init(self, rng: Array, batch: Batch) -> tuple[Params, Mutable]:
        text = jnp.zeros((1, 2), jnp.int32)
        audio = jnp.zeros((1, 2, self.model.group_size, self.model.audio_channels), jnp.int32)
        return self.module.init(rng, text, audio)["params"], {}

    def losses(self, params: Params, batch: Batch, audio_losses: bool) -> Losses:
        """Cross entropies of one batch: text [B, T], audio [B, T, G, C], segment_ids, positions, loss_mask [B, T]."""
        module = self.module
        text, audio = batch["text"].astype(jnp.int32), batch["audio"].astype(jnp.int32)

        def apply(*args, method):
            return module.apply({"params": params}, *args, method=method)

        inputs = patches.gather(self._is_patch(batch), self.patch_capacity)
        codes = patches.take(audio, inputs.flat, fill=False)
        x = apply(text, codes, inputs.slot, method="embed_gathered")
        hidden, _ = apply(x, batch["positions"], batch["segment_ids"], method="backbone")

        # The hidden state at t predicts what stands at t + 1. Targets move, not hidden states: they are smaller.
        weight = self._text_weight(batch)
        kernel = layers.unbox(params)["lm_head"]["kernel"]
        text_sum, nll = vocabulary_cross_entropy(hidden, kernel, following(text), following(weight), self.vocab_chunk)
        text_nll = jnp.where(_is_target(batch), jnp.pad(nll[:, :-1], ((0, 0), (1, 0))), 0.0)

        labelled, audio_nll, overflow = self._gather_labelled(batch), None, inputs.overflow
        if audio_losses:
            overflow = overflow + labelled.overflow
            codes = patches.take(following(audio), labelled.flat, fill=False)
            states = patches.take(hidden, labelled.flat, fill=True)
            logits = apply(apply(states, method="local_hidden"), codes, method="patch_logits")
            audio_nll = jnp.stack([cross_entropy(x, codes[..., r]) for r, x in enumerate(logits)], axis=-1)
            audio_nll = jnp.where(labelled.used[:, None, None], audio_nll, 0.0)
        return Losses(text_sum, text_nll, weight, audio_nll, labelled.used, overflow)

    def position_losses(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """Cross entropy in nats of the text id [B, T] and of the codes [B, T, C], frames added up, AT each position.

        0 where a position carries no loss. Patches without room (see `patch_capacity`) have none either.
        """
        losses = self.losses(params, batch, audio_losses=True)
        assert losses.audio_nll is not None
        # A slot is that of the position before, whose hidden state drives the patch.
        audio = patches.place(losses.audio_nll.sum(axis=1), self._gather_labelled(batch).slot)
        return losses.text_nll, jnp.pad(audio[:, :-1], ((0, 0), (1, 0), (0, 0)))

    def totals(self, batch: Batch) -> dict[str, Array]:
        """What the losses of a batch are divided by; of parts of a batch, they add up to the whole batch's."""
        return {"text_weight": self._text_weight(batch).sum(), "patches": self._gather_labelled(batch).kept}

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: Array, progress: Array
    ) -> tuple[Array, tuple[Mutable, Metrics]]:
        return self.share(params, mutable, batch, rng, progress, self.totals(batch))

    def share(
        self,
        params: Params,
        mutable: Mutable,
        batch: Batch,
        rng: Array,
        progress: Array,
        totals: dict[str, Array],
    ) -> tuple[Array, tuple[Mutable, Metrics]]:
        """What a part of a batch with these `totals` adds to the batch's loss and metrics."""
        del rng, progress
        losses = self.losses(params, batch, self.trains_audio)
        text_loss = losses.text_sum / (totals["text_weight"] + 1e-8)
        metrics = {"text_loss": text_loss, "patch_overflow": losses.overflow}
        if self.compute.attention == "cudnn":
            # Segments without room would see one another in silence.
            metrics["segment_overflow"] = kernels.segments_beyond(batch["segment_ids"], self.compute.max_segments)
        total = text_loss
        if losses.audio_nll is not None:
            frames = jnp.maximum(totals["patches"] * self.model.group_size, 1)
            codebook_loss = losses.audio_nll.sum(axis=(0, 1)) / frames
            weights = jnp.asarray(self.codebook_weights, jnp.float32)
            weighted = (self.text_weight * text_loss + (weights * codebook_loss).sum()) / (
                self.text_weight + weights.sum() + 1e-8
            )
            total = jnp.where(totals["patches"] > 0, weighted, text_loss)
            metrics |= {f"codebook_loss_{r + 1}": codebook_loss[r] for r in range(self.model.audio_channels)}
        return total, (mutable, metrics)

    def _is_patch(self, batch: Batch) -> Array:
        return (batch["text"] == self.model.empty_token_id) & (batch["segment_ids"] > 0)

    def _text_weight(self, batch: Batch) -> Array:
        return jnp.where(batch["text"] == self.model.empty_token_id, self.empty_weight, 1.0) * _is_target(batch)

    def _gather_labelled(self, batch: Batch) -> patches.Gathered:
        """Slots of the positions whose hidden state drives a patch that carries loss."""
        share = self.patch_capacity if self.labelled_capacity is None else self.labelled_capacity
        return patches.gather(following(self._is_patch(batch) & _is_target(batch)), share)

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """`text_loss` over text targets, `weighted_text_loss` as trained, `codebook_loss_1..C` in nats per code."""
        losses = self.losses(params, batch, self.trains_audio)
        is_text = losses.text_weight == 1.0
        results = {
            "text_loss": (jnp.where(is_text, losses.text_nll, 0.0).sum(), is_text.sum()),
            "weighted_text_loss": (losses.text_sum, losses.text_weight.sum()),
        }
        if losses.audio_nll is not None:
            frames = losses.patch_mask.sum() * self.model.group_size
            sums = losses.audio_nll.sum(axis=(0, 1))
            results |= {f"codebook_loss_{r + 1}": (sums[r], frames) for r in range(self.model.audio_channels)}
        return results


def _is_target(batch: Batch) -> Array:
    """[B, T] bool: the positions that carry loss; the first of a row has nothing before it that predicts it."""
    return batch["loss_mask"].astype(bool).at[:, 0].set(False)
