"""Tokenizer stage 1, unified representation learning (arXiv 2512.23808, section 2).

L = 10 * audio-to-text + 1 * multi-scale mel reconstruction + 1 * commitment, everything from scratch. Codebooks move by
EMA, start from k-means and replace codes that fall out of use; they live in the non-gradient state.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mimo_jax.models import kernels, layers
from mimo_jax.models.cost import TRAINING, attention_flops, block_matrix_parameters
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, cost, extents, rvq
from mimo_jax.models.tokenizer.blocks import FAN_IN, dtypes
from mimo_jax.models.tokenizer.extents import Extent
from mimo_jax.models.transformer import Compute, Transformer, TransformerConfig
from mimo_jax.objectives import audio_batches
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params, must_fit
from mimo_jax.objectives.cross_entropy import cross_entropy
from mimo_jax.objectives.reconstruction import Stretch, frame_l1, mel_distance, ratio, standardised

Array = jax.Array

SMALL_LLM = TransformerConfig(
    hidden_size=128,
    intermediate_size=384,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    causal=True,
)


class AudioToText(nn.Module):
    """The jointly trained text LLM: reads projected audio features, then predicts the text. Dropped after stage 1.

    kinds: sorts of text; each has a start vector of its own, which says what to write.
    """

    config: TransformerConfig
    vocab_size: int
    compute: Compute = Compute()
    kinds: int = 2

    @nn.compact
    def __call__(self, features: Array, extent: Extent, text: Array, text_extent: Extent, kind: Array) -> Array:
        """Logits [B, L, vocab_size] of each text token given its sequence's audio and the tokens before it.

        Args:
          features: [B, T, D] quantised features.
          extent: theirs.
          text: [B, L] token ids.
          text_extent: theirs; a sequence may have no text.
          kind: [B, U], of each sequence's text.
        """
        hidden, param_dtype = self.config.hidden_size, jnp.dtype(self.compute.param_dtype)
        init = nn.initializers.normal(self.config.initializer_range)
        table = self.param(
            "embedding", nn.with_logical_partitioning(init, ("vocab", "embed")), (self.vocab_size, hidden), param_dtype
        )
        start = self.param(
            "start", nn.with_logical_partitioning(init, (None, "norm")), (self.kinds, hidden), param_dtype
        )
        project = layers.Linear(
            hidden, (None, "embed"), True, kernel_init=FAN_IN, name="project", **dtypes(self.compute)
        )
        (batch, frames), count = features.shape[:2], text.shape[1]
        begins = start[extents.spread(kind, text_extent, count)]
        text_index = extents.positions(text_extent, count)
        given = jnp.where(text_index[..., None] == 0, begins, table[jnp.pad(text[:, :-1], ((0, 0), (1, 0)))])
        x = jnp.concatenate([project(features), given.astype(self.compute.dtype)], axis=1)

        # A sequence's text follows its last frame: by position, and by segment id wherever in the row it lies.
        audio_index = jnp.broadcast_to(extents.positions(extent, frames), (batch, frames))
        behind = extents.spread(extents.sums(jnp.ones((batch, frames)), extent), text_extent, count)
        positions = jnp.concatenate([audio_index, behind.astype(jnp.int32) + text_index], axis=1)
        ids = jnp.concatenate([extents.segment_ids(extent, frames), extents.segment_ids(text_extent, count)], axis=1)
        y = self._transform(x, positions, ids)[:, frames:]
        head = layers.Linear(self.vocab_size, ("embed", "vocab"), kernel_init=init, name="head", **dtypes(self.compute))
        return head(y)

    def _transform(self, x: Array, positions: Array, ids: Array) -> Array:
        """The Transformer over a row of audio and then text."""
        transformer = Transformer(self.config, self.compute, name="transformer")
        if kernels.is_plain(self.compute.attention, x.shape[1]):
            return transformer(x, positions, ids)[0]
        # Kernels for packed rows want the positions of a segment side by side.
        order = jnp.argsort(jnp.where(ids > 0, ids, ids.max() + 1), axis=1, stable=True)
        x, positions, ids = (
            jnp.take_along_axis(x, order[..., None], axis=1),
            *(jnp.take_along_axis(value, order, axis=1) for value in (positions, ids)),
        )
        y = transformer(x, positions, ids)[0]
        return jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Forward:
    """What one pass yields: sums and counts per loss, the next codebooks, metrics of the quantiser."""

    sums: dict[str, tuple[Array, Array]]
    commitment: Array
    codebooks: dict[str, Any]
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class TokenizerObjective:
    """Stage 1 objective. Batches as `data.waveforms.WaveformSource` makes them, one utterance a row or packed.

    params = {"tokenizer": {encoder, decoder, vocoder}, "llm": ...}, without "llm" if text_weight is 0 (the batch then
    needs no text);
    mutable = {"codebooks", "constants", "step" int32 scalar: updates done}.

    Attributes:
      config: the tokenizer.
      text_vocab_size: ids of `text` are below this.
      llm: shape of the text LLM.
      compute: dtypes, remat, attention.
      quantizer: EMA, k-means, dead codes, codebook dropout.
      unquantized_steps: first updates in which features pass the quantiser unchanged; k-means follows.
      text_weight, reconstruction_weight, commitment_weight: of L.
      segment_frames: mel frames of a random segment that is vocoded and compared; 0 = whole rows. The vocoder sees a
        bounded window anyway, and a segment a step costs a fraction of the whole.
      segments_per_row: such segments of each row.
      coarse_mel_weight: of the L1 between the decoder's mel and the input's; not in the report, helps small models.
        The input's is standardised per sequence, as the decoder's last norm does with its own.
      scales: of the reconstruction loss.
      mel_floor: floor of its logarithm, None = linear magnitudes.
    """

    config: TokenizerConfig
    text_vocab_size: int
    llm: TransformerConfig = SMALL_LLM
    compute: Compute = Compute()
    quantizer: rvq.RvqTraining = rvq.RvqTraining()
    unquantized_steps: int = 0
    text_weight: float = 10.0
    reconstruction_weight: float = 1.0
    commitment_weight: float = 1.0
    coarse_mel_weight: float = 0.0
    segment_frames: int = 0
    segments_per_row: int = 1
    scales: tuple[int, ...] = (5, 6, 7)
    mel_floor: float | None = 1e-5

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """Fresh parameters (boxed with logical axes) and state."""
        tokenizer_rng, llm_rng = jax.random.split(rng)
        mel, extent, _ = audio_batches.log_mel({name: value[:1] for name, value in batch.items()}, self.config)
        variables = MimoAudioTokenizer(self.config, self.compute).init(tokenizer_rng, mel, extent)
        params = {"tokenizer": variables["params"]}
        if self.text_weight:
            features, one = jnp.zeros((1, 1, self.config.d_model)), jnp.ones(1, jnp.int32)
            llm = self._llm().init(llm_rng, features, one, batch["text"][:1], one, one[:, None])
            params["llm"] = llm["params"]
        mutable = {name: tree for name, tree in variables.items() if name not in ("params", "intermediates")}
        return params, {**mutable, "step": jnp.zeros((), jnp.int32)}

    def warm_start(
        self, params: Params, mutable: Mutable, source_params: Params, source_mutable: Mutable
    ) -> tuple[Params, Mutable]:
        """State with the tokenizer of another run of either stage, or of the released layout.

        The text LLM is the source's if it has one, else it begins anew. Codebooks are in use from the first update.

        Args:
          params, mutable: from `init`, unboxed.
          source_params, source_mutable: what is started from.

        Raises:
          ValueError: the source's arrays are not those of this tokenizer.
        """
        if "generator" in source_params:  # stage 2
            tokenizer = {"encoder": source_mutable["encoder"], **source_params["generator"]}
        else:
            tokenizer = source_params["tokenizer"]
        new_params = {**params, "tokenizer": tokenizer}
        if "llm" in params:
            new_params["llm"] = source_params.get("llm", params["llm"])
        step = source_mutable.get("step", jnp.int32(self.unquantized_steps))
        new_mutable = {**mutable, **{name: source_mutable[name] for name in ("codebooks", "constants")}, "step": step}
        must_fit(params, new_params)
        must_fit(mutable, new_mutable)
        return new_params, new_mutable

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, tuple[Mutable, Metrics]]:
        """Weighted sum of the losses; moves the codebooks."""
        out = self._forward(params, mutable, batch, rng)
        weights = {
            "text": self.text_weight,
            "reconstruction": self.reconstruction_weight,
            "coarse_mel": self.coarse_mel_weight,
        }
        losses = {name: ratio(*sums) for name, sums in out.sums.items()} | {"commitment": out.commitment}
        total = self.commitment_weight * out.commitment
        total = total + sum(weight * losses[name] for name, weight in weights.items() if weight and name in losses)
        metrics = {f"loss/{name}": value for name, value in losses.items()} | out.metrics
        return total, ({**mutable, "codebooks": out.codebooks, "step": mutable["step"] + 1}, metrics)

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """Sums and counts of each loss with the codebooks as they are, and the accuracy of the next text token."""
        return self._forward(params, mutable, batch, None).sums

    def tokenizer_variables(self, params: Params, mutable: Mutable) -> dict[str, Params]:
        """Variables of the tokenizer alone, for export."""
        return {"params": params["tokenizer"], "codebooks": mutable["codebooks"], "constants": mutable["constants"]}

    def flops(self, text: float, audio: float, batch: Batch, causal: bool = True) -> float:
        """Model FLOPs of so many patches of audio in batches of such shapes, by their share of full rows."""
        return audio_batches.share_of_rows(batch, audio, self.config) * self.step_flops(batch, causal)

    def step_flops(self, batch: Batch, causal: bool = True) -> float:
        """Model FLOPs of a step on a batch of such shapes, rows full, see `models.tokenizer.cost`."""
        rows, frames, length = cost.row_shape(batch, self.config)
        each = cost.forward_flops(self.config, length, causal)
        vocoded = 0.0
        if self.reconstruction_weight:
            vocoded = (
                self.segments_per_row
                * self.segment_frames
                / (frames * self.config.avg_pooler * self.config.stride_size)
                or 1.0
            )
        # The quantiser's products are no part of the gradient: distances once, sums of the residuals once.
        total = TRAINING * (each.encoder + each.decoder + min(vocoded, 1.0) * each.vocoder) + 2 * each.quantizer
        total *= rows * frames
        if self.text_weight:
            ids, llm = batch["text"].shape[1], self.llm
            positions = llm.num_layers * 2.0 * block_matrix_parameters(llm)
            positions += attention_flops(llm, length * (1 + ids / frames), causal)
            text = rows * (frames + ids) * positions + 2.0 * rows * frames * self.config.d_model * llm.hidden_size
            total += TRAINING * (text + 2.0 * rows * ids * self.text_vocab_size * llm.hidden_size)
        return total

    def _llm(self) -> AudioToText:
        return AudioToText(self.llm, self.text_vocab_size, self.compute)

    def _quantize(
        self, mutable: Mutable, features: Array, extent: Extent, rng: jax.Array | None
    ) -> tuple[Array, Array, dict[str, Any], Metrics]:
        """(features for the decoder and the LLM, commitment, next codebooks, metrics); rng None = evaluation."""
        codebooks = mutable["codebooks"]["quantizer"]
        mask = extents.valid_mask(extent, features.shape[1])
        if rng is None:
            quantized = rvq.decode(codebooks, rvq.encode(codebooks, features, len(codebooks)))
            active = codebooks["layers_0"]["inited"][0] > 0
            return jnp.where(mask[..., None] & active, quantized, features), jnp.float32(0), codebooks, {}
        active = mutable["step"] >= self.unquantized_steps
        updated, out = rvq.train_pass(codebooks, features, extent, rng, self.quantizer, active)
        return out.quantized, out.commitment, updated, out.metrics | {"fill": mask.mean()}

    def _forward(self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array | None) -> Forward:
        config = self.config
        model = MimoAudioTokenizer(config, self.compute)
        variables = {"params": params["tokenizer"], "constants": mutable["constants"]}
        mel, mel_extent, samples = audio_batches.log_mel(batch, config)
        features, extent = model.apply(variables, mel, mel_extent, method="encode_features")
        quantized, commitment, codebooks, metrics = self._quantize(mutable, features, extent, rng)

        sums = {}
        coarse, coarse_extent = model.apply(variables, quantized, extent, method="decode_features")
        sums["coarse_mel"] = frame_l1(coarse[:, : mel.shape[1]], standardised(mel, mel_extent), mel_extent)
        if self.reconstruction_weight:
            part = Stretch.whole(coarse, coarse_extent, batch["waveform"], samples, config.hop_length)
            if rng is not None and self.segment_frames:
                key = jax.random.fold_in(rng, 1)
                part = part.random(key, self.segment_frames, config.hop_length, self.segments_per_row)
            output = model.apply(variables, part.mel, part.mel_extent, method="vocode")
            sums["reconstruction"] = mel_distance(
                output, part.waveform, part.sample_extent, config.sampling_rate, self.scales, self.mel_floor
            )
        if self.text_weight:
            text, text_extent = batch["text"], audio_batches.text_extent(batch)
            valid = extents.valid_mask(text_extent, text.shape[1])
            kinds = audio_batches.text_kinds(batch)
            logits = self._llm().apply({"params": params["llm"]}, quantized, extent, text, text_extent, kinds)
            nll = jnp.where(valid, cross_entropy(logits, text), 0)
            sums["text"] = (nll.sum(), valid.sum().astype(jnp.float32))
            right = valid & (logits.argmax(axis=-1) == text)
            sums["text_accuracy"] = (right.sum().astype(jnp.float32), valid.sum().astype(jnp.float32))
        return Forward(sums, commitment, {"quantizer": codebooks}, metrics)
