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

from mimo_jax.models import layers
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params

Array = jax.Array


def gather_patches(is_patch: Array, capacity: int) -> tuple[Array, Array, Array]:
    """Positions that hold a patch, gathered into a buffer of fixed capacity (static shapes, no work on text positions).

    Args:
      is_patch: [B, T] bool.
      capacity: slots of the buffer, N.

    Returns:
      (flat [N] index b * T + t of each slot, B * T for unused slots;
       slot [B, T] of each position, N where there is none;
       overflow, the number of patches that found no slot).
    """
    flat_mask = is_patch.reshape(-1)
    (flat,) = jnp.nonzero(flat_mask, size=capacity, fill_value=flat_mask.size)
    order = jnp.cumsum(flat_mask) - 1
    slot = jnp.where(flat_mask & (order < capacity), order, capacity).reshape(is_patch.shape)
    return flat, slot, jnp.maximum(flat_mask.sum() - capacity, 0)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] in float32. logits [..., V], targets [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def chunked_cross_entropy(hidden: Array, kernel: Array, targets: Array, chunk: int) -> Array:
    """Cross entropy of `hidden @ kernel` without ever holding all logits.

    Args:
      hidden: [N, D]; kernel: [D, V]; targets: [N].
      chunk: rows whose logits exist at a time; 0 = all at once. The backward pass recomputes them.
    """
    rows = hidden.shape[0]
    if not chunk or rows <= chunk:
        return cross_entropy(hidden @ kernel.astype(hidden.dtype), targets)
    padding = -rows % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)

    @jax.checkpoint
    def one(carry: None, item: tuple[Array, Array]) -> tuple[None, Array]:
        x, y = item
        return carry, cross_entropy(x @ kernel.astype(x.dtype), y)

    _, losses = jax.lax.scan(one, None, (hidden, targets))
    return losses.reshape(-1)[:rows]


@dataclasses.dataclass(frozen=True)
class Losses:
    """Sums and counts of one batch, before they are divided."""

    text_nll: Array  # [B, T] cross entropy of the text id AT each position given what is before it, 0 where no target
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
      patch_capacity: share of the batch's positions for which there is room in the patch encoder's buffer (1.0 = all).
      labelled_capacity: the same for the patch decoder, which runs on the patches that carry loss only; None takes
        `patch_capacity`. Patches without room are dropped from the batch and counted in the metric `patch_overflow`.
      vocab_chunk: rows per chunk of the vocabulary cross entropy, 0 = unchunked.
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
        model, module = self.model, self.module
        text, audio = batch["text"].astype(jnp.int32), batch["audio"].astype(jnp.int32)
        batch_size, length = text.shape
        segment_ids = batch["segment_ids"]
        is_patch = (text == model.empty_token_id) & (segment_ids > 0)
        positions = batch_size * length
        all_codes = audio.reshape(positions, *audio.shape[2:])
        flat, slot, overflow = gather_patches(is_patch, max(1, int(positions * self.patch_capacity)))
        # Unused slots hold some patch of the batch; nothing reads what becomes of them.
        codes = jnp.take(all_codes, jnp.minimum(flat, positions - 1), axis=0)

        def apply(*args, method):
            return module.apply({"params": params}, *args, method=method)

        x = apply(text, codes, slot, method="embed_gathered")
        hidden, _ = apply(x, batch["positions"], segment_ids, method="backbone")

        # The token at t is predicted by the hidden state at t - 1; the first position of a row is never a target.
        driving = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        is_target = batch["loss_mask"].astype(bool).at[:, 0].set(False)
        kernel = layers.unbox(params)["lm_head"]["kernel"]
        text_nll = chunked_cross_entropy(
            driving.reshape(-1, model.hidden_size), kernel, text.reshape(-1), self.vocab_chunk
        ).reshape(text.shape)
        weight = jnp.where(text == model.empty_token_id, self.empty_weight, 1.0) * is_target
        text_nll = jnp.where(is_target, text_nll, 0.0)

        share = self.patch_capacity if self.labelled_capacity is None else self.labelled_capacity
        flat, _, dropped = gather_patches(is_patch & is_target, max(1, int(positions * share)))
        labelled, audio_nll = flat < positions, None
        if audio_losses:
            overflow = overflow + dropped
            codes = jnp.take(all_codes, jnp.minimum(flat, positions - 1), axis=0)
            states = jnp.take(driving.reshape(-1, model.hidden_size), flat, axis=0, mode="fill", fill_value=0)
            logits = apply(apply(states, method="local_hidden"), codes, method="patch_logits")
            audio_nll = jnp.stack([cross_entropy(x, codes[..., r]) for r, x in enumerate(logits)], axis=-1)
            audio_nll = jnp.where(labelled[:, None, None], audio_nll, 0.0)
        return Losses(text_nll, weight, audio_nll, labelled, overflow)

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: Array, progress: Array
    ) -> tuple[Array, tuple[Mutable, Metrics]]:
        del rng, progress
        losses = self.losses(params, batch, self.trains_audio)
        text_loss = (losses.text_nll * losses.text_weight).sum() / (losses.text_weight.sum() + 1e-8)
        metrics = {"text_loss": text_loss, "patch_overflow": losses.overflow}
        total = text_loss
        if losses.audio_nll is not None:
            patches = losses.patch_mask.sum()
            codebook_loss = losses.audio_nll.sum(axis=(0, 1)) / jnp.maximum(patches * self.model.group_size, 1)
            weights = jnp.asarray(self.codebook_weights, jnp.float32)
            weighted = (self.text_weight * text_loss + (weights * codebook_loss).sum()) / (
                self.text_weight + weights.sum() + 1e-8
            )
            total = jnp.where(patches > 0, weighted, text_loss)
            metrics |= {f"codebook_loss_{r + 1}": codebook_loss[r] for r in range(self.model.audio_channels)}
        return total, (mutable, metrics)

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """`text_loss` over text targets, `weighted_text_loss` as trained, `codebook_loss_1..C` in nats per code."""
        losses = self.losses(params, batch, self.trains_audio)
        is_text = losses.text_weight == 1.0
        results = {
            "text_loss": (jnp.where(is_text, losses.text_nll, 0.0).sum(), is_text.sum()),
            "weighted_text_loss": ((losses.text_nll * losses.text_weight).sum(), losses.text_weight.sum()),
        }
        if losses.audio_nll is not None:
            frames = losses.patch_mask.sum() * self.model.group_size
            sums = losses.audio_nll.sum(axis=(0, 1))
            results |= {f"codebook_loss_{r + 1}": (sums[r], frames) for r in range(self.model.audio_channels)}
        return results
