"""Tokenizer stage 2, adversarial fine-tuning (arXiv 2512.23808, section 2).

Encoder and codebooks are frozen; decoder and vocoder learn from L_G = 1 * reconstruction + 1 * adversarial + 2 *
feature matching, the discriminators from the hinge loss. Both losses are one scalar: each side's parameters are
constants in the other's loss, so that one gradient serves both.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mimo_jax.models import layers
from mimo_jax.models.cost import TRAINING
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, cost, extents, rvq
from mimo_jax.models.tokenizer.discriminators import DiscriminatorConfig, Discriminators
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives import audio_batches
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params, must_fit
from mimo_jax.objectives.reconstruction import Stretch, frame_l1, mel_distance, ratio, standardised

Array = jax.Array


def hinge_discriminator(real: list[Array], fake: list[Array]) -> Array:
    """Mean over sub-discriminators of E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]."""
    terms = [jax.nn.relu(1 - r).mean() + jax.nn.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return jnp.stack(terms).mean()


def hinge_generator(fake: list[Array]) -> Array:
    """Mean over sub-discriminators of E[max(0, 1 - D(fake))]."""
    return jnp.stack([jax.nn.relu(1 - f).mean() for f in fake]).mean()


def feature_matching(real: list[list[Array]], fake: list[list[Array]], relative: bool = False) -> Array:
    """L1 of the activations, averaged over layers and sub-discriminators; relative: each over its mean |real|."""

    def distance(real: Array, fake: Array) -> Array:
        real, fake = jax.lax.stop_gradient(real).astype(jnp.float32), fake.astype(jnp.float32)
        apart = jnp.abs(real - fake).mean()
        return apart / jnp.maximum(jnp.abs(real).mean(), 1e-8) if relative else apart

    pairs = [pair for parts in zip(real, fake, strict=True) for pair in zip(*parts, strict=True)]
    return jnp.stack([distance(*pair) for pair in pairs]).mean()


def verdict(
    judge: Discriminators, params: Params, spectral: Params, real: Array, fake: Array, relative: bool = False
) -> tuple[Metrics, Params]:
    """(the losses of both sides and what the discriminators say, the next spectral-norm vectors); waves [B, S] each."""
    # Alternating, not one half after the other: on a batch split over devices each half would lie on half of them.
    both = jnp.stack([real, jax.lax.stop_gradient(fake)], axis=1).reshape(2 * real.shape[0], -1)
    (logits, activations), moved = judge.apply({"params": params, "spectral": spectral}, both, mutable=["spectral"])
    of_real, of_fake = ([x.reshape(-1, 2, *x.shape[1:])[:, side] for x in logits] for side in (0, 1))
    real_activations = [[a.reshape(-1, 2, *a.shape[1:])[:, 0] for a in part] for part in activations]
    # By the same norms as the real ones: else equal waves would have features apart.
    fixed = jax.lax.stop_gradient({"params": params, "spectral": spectral})
    fake_logits, fake_activations = judge.apply(fixed, fake)
    return {
        "loss/discriminator": hinge_discriminator(of_real, of_fake),
        "loss/adversarial": hinge_generator(fake_logits),
        "loss/feature_matching": feature_matching(real_activations, fake_activations, relative),
        "discriminator/real": sum(x.mean() for x in of_real) / len(logits),
        "discriminator/fake": sum(x.mean() for x in of_fake) / len(logits),
    }, moved["spectral"]


@dataclasses.dataclass(frozen=True)
class TokenizerGanObjective:
    """Stage 2 objective. Batches as in stage 1; texts are not used.

    params = {"generator": {"decoder", "vocoder"}, "discriminator": {...}}: give the discriminator its own optimiser
    group, without weight decay. mutable = {"encoder": frozen parameters, "codebooks", "constants", "spectral"}: what
    is needed and never gets a gradient. Start it from stage 1 (`warm_start`).

    Attributes:
      config: the tokenizer.
      discriminators: their sizes; dropped at export. None: there are none, neither "discriminator" nor "spectral", and
        the generator learns from the reconstruction alone, what stage 2 is compared with.
      compute: dtypes, remat, attention.
      segment_frames: mel frames of a random segment that is vocoded and compared.
      segments_per_row: such segments of each row.
      judged_per_row: how many of them the discriminators hear, which cost more than the vocoder; None = all.
      reconstruction_weight, adversarial_weight, feature_weight: of L_G.
      relative_features: each layer's feature matching over the mean magnitude of its real features, as EnCodec has it:
        not in the report. Spectral norm shrinks features from layer to layer, and so the first layers, which hear
        waveforms nearly as they are, have most of the plain mean.
      coarse_mel_weight: of stage 1's L1 between the decoder's mel and the input's, over whole rows; not in the report.
      adversarial_start: share of the stage's budget after which the generator listens to the discriminators; they learn
        from the first step, so that they have something to say by then.
      dropout: probability that a sequence is decoded from a random number of codebooks (1..n) instead of all, so that
        decoder and vocoder stay good at fewer, such as the 8 of 20 that a language model predicts. Not in the report.
      scales, mel_floor: of the reconstruction loss.

    Raises:
      ValueError: more segments to judge than there are.
    """

    # The frozen encoder is to be the one that stage 1 exported, whose codes others may be using already.
    starts_from_average: ClassVar[bool] = True

    config: TokenizerConfig
    discriminators: DiscriminatorConfig | None = DiscriminatorConfig()
    compute: Compute = Compute()
    segment_frames: int = 100
    segments_per_row: int = 1
    judged_per_row: int | None = None
    reconstruction_weight: float = 1.0
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    relative_features: bool = False
    coarse_mel_weight: float = 0.0
    adversarial_start: float = 0.05
    dropout: float = 0.0
    scales: tuple[int, ...] = (5, 6, 7)
    mel_floor: float | None = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self._heard <= self.segments_per_row:
            raise ValueError(f"judged_per_row = {self.judged_per_row}: 1 to segments_per_row ({self.segments_per_row})")

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """Fresh everything; the frozen half is random until `warm_start`."""
        tokenizer_rng, discriminator_rng = jax.random.split(rng)
        mel, extent, _ = audio_batches.log_mel({name: value[:1] for name, value in batch.items()}, self.config)
        variables = dict(MimoAudioTokenizer(self.config, self.compute).init(tokenizer_rng, mel, extent))
        variables.pop("intermediates", None)
        generator = dict(variables.pop("params"))
        params, mutable = {"generator": generator}, {"encoder": generator.pop("encoder"), **variables}
        if self.discriminators is not None:
            wave = jnp.zeros((1, self.segment_frames * self.config.hop_length))
            judged = Discriminators(self.discriminators, self.compute).init(discriminator_rng, wave)
            params["discriminator"], mutable["spectral"] = judged["params"], judged["spectral"]
        return params, mutable

    def warm_start(
        self, params: Params, mutable: Mutable, source_params: Params, source_mutable: Mutable
    ) -> tuple[Params, Mutable]:
        """State with the tokenizer of a stage 1 run, or all of an earlier stage 2 run.

        Args:
          params, mutable: from `init`, unboxed.
          source_params, source_mutable: of the other run.

        Raises:
          ValueError: the source's arrays are not those of this tokenizer.
        """
        if "generator" in source_params:
            new_params, new_mutable = source_params, source_mutable
        else:
            source = dict(source_params["tokenizer"])
            new_mutable = {**mutable, **{name: source_mutable[name] for name in ("codebooks", "constants")}}
            new_mutable["encoder"] = source.pop("encoder")
            new_params = {**params, "generator": source}
        must_fit(params, new_params)
        must_fit(mutable, new_mutable)
        return new_params, new_mutable

    def from_stage1(self, params: Params, mutable: Mutable, rng: jax.Array, batch: Batch) -> tuple[Params, Mutable]:
        """`init` followed by `warm_start` from stage 1's parameters and state."""
        fresh_params, fresh_mutable = layers.unbox(self.init(rng, batch))
        return self.warm_start(fresh_params, fresh_mutable, params, mutable)

    def tokenizer_variables(self, params: Params, mutable: Mutable) -> dict[str, Params]:
        """Variables of the tokenizer alone, for export."""
        return {
            "params": {"encoder": mutable["encoder"], **params["generator"]},
            "codebooks": mutable["codebooks"],
            "constants": mutable["constants"],
        }

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, tuple[Mutable, Metrics]]:
        """L_G + L_D; moves the spectral-norm vectors."""
        dropout_rng, crop_rng = jax.random.split(rng)
        rows, coarse = self._whole(params, mutable, batch, dropout_rng)
        real = rows.random(crop_rng, self.segment_frames, self.config.hop_length, self.segments_per_row)
        fake, distance = self._vocode(params, mutable, real)
        losses = {"reconstruction": ratio(*distance), "coarse_mel": ratio(*coarse)}
        loss_g = self.reconstruction_weight * losses["reconstruction"] + self.coarse_mel_weight * losses["coarse_mel"]
        judged: Metrics = {}
        if self.discriminators is not None:
            judge = Discriminators(self.discriminators, self.compute)
            waves = self._judged(real.waveform), self._judged(fake)
            norms, relative = mutable["spectral"], self.relative_features
            judged, spectral = verdict(judge, params["discriminator"], norms, *waves, relative)
            mutable = {**mutable, "spectral": spectral}
            listens = (progress >= self.adversarial_start).astype(jnp.float32)
            loss_g = loss_g + listens * (
                self.adversarial_weight * judged["loss/adversarial"]
                + self.feature_weight * judged["loss/feature_matching"]
            )
        metrics = {"loss/generator": loss_g, **{f"loss/{name}": value for name, value in losses.items()}, **judged}
        return loss_g + judged.get("loss/discriminator", 0.0), (mutable, metrics)

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """Sum and count of the reconstruction loss over whole sequences."""
        rows, coarse = self._whole(params, mutable, batch, None)
        return {"reconstruction": self._vocode(params, mutable, rows)[1], "coarse_mel": coarse}

    def flops(self, text: float, audio: float, batch: Batch, causal: bool = True) -> float:
        """Model FLOPs of so many patches of audio in batches of such shapes, by their share of full rows."""
        return audio_batches.share_of_rows(batch, audio, self.config) * self.step_flops(batch, causal)

    def step_flops(self, batch: Batch, causal: bool = True) -> float:
        """Model FLOPs of a step on a batch of such shapes, rows full, see `models.tokenizer.cost`."""
        rows, frames, length = cost.row_shape(batch, self.config)
        each, crops = cost.forward_flops(self.config, length, causal), rows * self.segments_per_row
        total = rows * frames * (each.encoder + each.quantizer + TRAINING * each.decoder)
        total += (
            crops * self.segment_frames / (self.config.avg_pooler * self.config.stride_size) * TRAINING * each.vocoder
        )
        if self.discriminators is None:
            return total
        # Of the discriminators: forward and backward of real and fake crops, then of the fakes again, for their input's
        # gradient alone.
        judged = cost.discriminator_flops(self.discriminators, self.segment_frames * self.config.hop_length)
        return total + rows * self._heard * judged * (2 * TRAINING + 2)

    @property
    def _heard(self) -> int:
        """Segments of a row that the discriminators hear."""
        return self.segments_per_row if self.judged_per_row is None else self.judged_per_row

    def _judged(self, waves: Array) -> Array:
        """The first `judged_per_row` of each row's segments [B * segments_per_row, S]."""
        by_row = waves.reshape(-1, self.segments_per_row, waves.shape[-1])[:, : self._heard]
        return by_row.reshape(-1, waves.shape[-1])

    def _model(self) -> MimoAudioTokenizer:
        return MimoAudioTokenizer(self.config, self.compute)

    def _variables(self, params: Params, mutable: Mutable) -> dict[str, Params]:
        return {
            "params": {"encoder": jax.lax.stop_gradient(mutable["encoder"]), **params["generator"]},
            "constants": mutable["constants"],
        }

    def _whole(
        self, params: Params, mutable: Mutable, batch: Batch, rng: jax.Array | None
    ) -> tuple[Stretch, tuple[Array, Array]]:
        """(the decoder's mel of whole sequences, whose norms look at all of one, with the waveforms; its distance).

        The distance from the input's mel is a sum and its count. With rng some decode from fewer codebooks (`dropout`).
        """
        variables, codebooks = self._variables(params, mutable), mutable["codebooks"]["quantizer"]
        mel, mel_extent, samples = audio_batches.log_mel(batch, self.config)
        features, extent = self._model().apply(variables, mel, mel_extent, method="encode_features")
        codes, books = rvq.encode(codebooks, features, self.config.num_quantizers), None
        if rng is not None and self.dropout:
            batch_size, length, count = codes.shape
            books = rvq.books_in_use(count, extent, length, batch_size, rng, self.dropout)
        quantized = rvq.decode(codebooks, codes, books)
        quantized = extents.masked(quantized, extent)
        coarse, frames = self._model().apply(variables, quantized, extent, method="decode_features")
        distance = frame_l1(coarse[:, : mel.shape[1]], standardised(mel, mel_extent), mel_extent)
        return Stretch.whole(coarse, frames, batch["waveform"], samples, self.config.hop_length), distance

    def _vocode(self, params: Params, mutable: Mutable, part: Stretch) -> tuple[Array, tuple[Array, Array]]:
        """(the vocoder's waveform [B, S], zero behind the end of the real one; sum and count of its distance)."""
        fake = self._model().apply(self._variables(params, mutable), part.mel, part.mel_extent, method="vocode")
        fake = extents.masked(fake, part.sample_extent)
        rate = self.config.sampling_rate
        return fake, mel_distance(fake, part.waveform, part.sample_extent, rate, self.scales, self.mel_floor)
