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

from mimo_jax.models import layers
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, frontend, rvq
from mimo_jax.models.tokenizer.blocks import FAN_IN, dtypes
from mimo_jax.models.transformer import Compute, Transformer, TransformerConfig
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params
from mimo_jax.objectives.cross_entropy import cross_entropy
from mimo_jax.objectives.reconstruction import Segments, frame_l1, mel_distance, ratio, standardised

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
    """The jointly trained text LLM: reads projected audio features, then predicts the text. Dropped after stage 1."""

    config: TransformerConfig
    vocab_size: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, features: Array, lengths: Array, text: Array, text_length: Array) -> Array:
        """Logits [B, L, vocab_size] of each text token given the audio and the tokens before it.

        Args:
          features: [B, T, D] quantised features, lengths [B].
          lengths: valid features.
          text: [B, L] token ids; text_length [B], 0 = no text.
          text_length: valid tokens.
        """
        hidden, param_dtype = self.config.hidden_size, jnp.dtype(self.compute.param_dtype)
        init = nn.initializers.normal(self.config.initializer_range)
        table = self.param(
            "embedding", nn.with_logical_partitioning(init, ("vocab", "embed")), (self.vocab_size, hidden), param_dtype
        )
        start = self.param("start", nn.with_logical_partitioning(init, ("norm",)), (hidden,), param_dtype)
        project = layers.Linear(
            hidden, (None, "embed"), True, kernel_init=FAN_IN, name="project", **dtypes(self.compute)
        )
        batch, frames = features.shape[:2]
        start = jnp.broadcast_to(start, (batch, 1, hidden))
        x = jnp.concatenate([project(features), start, table[text[:, :-1]]], axis=1)

        # Padding between audio and text is skipped by segment id and by position: text follows the last valid frame.
        audio_index = jnp.broadcast_to(jnp.arange(frames), (batch, frames))
        text_index = jnp.arange(text.shape[1])[None, :]
        positions = jnp.concatenate([audio_index, lengths[:, None] + text_index], axis=1)
        valid = jnp.concatenate([audio_index < lengths[:, None], text_index < text_length[:, None]], axis=1)
        y, _ = Transformer(self.config, self.compute, name="transformer")(x, positions, valid.astype(jnp.int32))
        head = layers.Linear(self.vocab_size, ("embed", "vocab"), kernel_init=init, name="head", **dtypes(self.compute))
        return head(y[:, frames:])


@dataclasses.dataclass(frozen=True)
class Forward:
    """What one pass yields: sums and counts per loss, the next codebooks, metrics of the quantiser."""

    sums: dict[str, tuple[Array, Array]]
    commitment: Array
    codebooks: dict[str, Any]
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class TokenizerObjective:
    """Stage 1 objective. Batches: `waveform` [B, S], `num_samples` [B], `text` [B, L], `text_length` [B] (0 = none).

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
      segment_frames: mel frames of a random segment of each sequence that is vocoded and compared; 0 = all of it. The
        vocoder sees a bounded window anyway, and a segment a step costs a fraction of the whole.
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
    scales: tuple[int, ...] = (5, 6, 7)
    mel_floor: float | None = 1e-5

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """Fresh parameters (boxed with logical axes) and state."""
        tokenizer_rng, llm_rng = jax.random.split(rng)
        mel, lengths = frontend.log_mel(batch["waveform"][:1], batch["num_samples"][:1], self.config)
        variables = MimoAudioTokenizer(self.config, self.compute).init(tokenizer_rng, mel, lengths)
        params = {"tokenizer": variables["params"]}
        if self.text_weight:
            features, one = jnp.zeros((1, 1, self.config.d_model)), jnp.ones(1, jnp.int32)
            llm = self._llm().init(llm_rng, features, one, batch["text"][:1], batch["text_length"][:1])
            params["llm"] = llm["params"]
        mutable = {name: tree for name, tree in variables.items() if name not in ("params", "intermediates")}
        return params, {**mutable, "step": jnp.zeros((), jnp.int32)}

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

    def _llm(self) -> AudioToText:
        return AudioToText(self.llm, self.text_vocab_size, self.compute)

    def _quantize(
        self, mutable: Mutable, features: Array, lengths: Array, rng: jax.Array | None
    ) -> tuple[Array, Array, dict[str, Any], Metrics]:
        """(features for the decoder and the LLM, commitment, next codebooks, metrics); rng None = evaluation."""
        codebooks = mutable["codebooks"]["quantizer"]
        mask = jnp.arange(features.shape[1])[None, :] < lengths[:, None]
        if rng is None:
            quantized = rvq.decode(codebooks, rvq.encode(codebooks, features, len(codebooks)))
            active = codebooks["layers_0"]["inited"][0] > 0
            return jnp.where(mask[..., None] & active, quantized, features), jnp.float32(0), codebooks, {}
        active = mutable["step"] >= self.unquantized_steps
        updated, out = rvq.train_pass(codebooks, features, mask, rng, self.quantizer, active)
        return out.quantized, out.commitment, updated, out.metrics

    def _forward(self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array | None) -> Forward:
        config, waveform, samples = self.config, batch["waveform"], batch["num_samples"]
        model = MimoAudioTokenizer(config, self.compute)
        variables = {"params": params["tokenizer"], "constants": mutable["constants"]}
        mel, mel_lengths = frontend.log_mel(waveform, samples, config)
        features, lengths = model.apply(variables, mel, mel_lengths, method="encode_features")
        quantized, commitment, codebooks, metrics = self._quantize(mutable, features, lengths, rng)

        sums = {}
        coarse, coarse_lengths = model.apply(variables, quantized, lengths, method="decode_features")
        sums["coarse_mel"] = frame_l1(coarse[:, : mel.shape[1]], standardised(mel, mel_lengths), mel_lengths)
        if self.reconstruction_weight:
            part = Segments.whole(coarse, coarse_lengths, waveform, samples, config.hop_length)
            if rng is not None and self.segment_frames:
                part = part.random(jax.random.fold_in(rng, 1), self.segment_frames, config.hop_length)
            output = model.apply(variables, part.mel, part.mel_lengths, method="vocode")
            sums["reconstruction"] = mel_distance(
                output, part.waveform, part.num_samples, config.sampling_rate, self.scales, self.mel_floor
            )
        if self.text_weight:
            text, valid = batch["text"], jnp.arange(batch["text"].shape[1])[None, :] < batch["text_length"][:, None]
            logits = self._llm().apply({"params": params["llm"]}, quantized, lengths, text, batch["text_length"])
            nll = jnp.where(valid, cross_entropy(logits, text), 0)
            sums["text"] = (nll.sum(), valid.sum().astype(jnp.float32))
            right = valid & (logits.argmax(axis=-1) == text)
            sums["text_accuracy"] = (right.sum().astype(jnp.float32), valid.sum().astype(jnp.float32))
        return Forward(sums, commitment, {"quantizer": codebooks}, metrics)
