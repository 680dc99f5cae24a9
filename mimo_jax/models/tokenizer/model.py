"""The whole tokenizer as one Linen module: waveform features, codes, reconstruction."""

from __future__ import annotations

import jax
from flax import linen as nn

from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.decoder import Decoder
from mimo_jax.models.tokenizer.encoder import Encoder
from mimo_jax.models.tokenizer.rvq import Quantizer
from mimo_jax.models.tokenizer.vocoder import Vocoder
from mimo_jax.models.transformer import Compute

Array = jax.Array


class MimoAudioTokenizer(nn.Module):
    """MiMo-Audio-Tokenizer (arXiv 2512.23808, section 2).

    Collections: `params` {encoder, decoder, vocoder}, `codebooks` {quantizer} (moved by EMA, not by gradients) and
    `constants` {vocoder: window}. Batches are right-padded; every sequence gives what it gives alone.
    """

    config: TokenizerConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        """Names of the parts."""
        self.encoder = Encoder(self.config, self.compute)
        self.quantizer = Quantizer(self.config)
        self.decoder = Decoder(self.config, self.compute)
        self.vocoder = Vocoder(self.config, self.compute)

    def encode_features(self, mel: Array, lengths: Array) -> tuple[Array, Array]:
        """mel [B, F, n_mels], lengths [B] frames -> (features [B, T, d_model], lengths [B] in code frames)."""
        return self.encoder(mel, lengths)

    def encode(self, mel: Array, lengths: Array, num_quantizers: int | None = None) -> tuple[Array, Array]:
        """mel [B, F, n_mels], lengths [B] -> (codes [B, T, n] int32, 0 behind each end; lengths [B] in code frames).

        Args:
          mel: log-mel frames, see `frontend.log_mel`.
          lengths: valid mel frames.
          num_quantizers: n, the first n codebooks; None = all.
        """
        features, lengths = self.encoder(mel, lengths)
        return self.quantizer.encode(features, lengths, num_quantizers), lengths

    def decode_features(self, quantized: Array, lengths: Array) -> tuple[Array, Array]:
        """quantized [B, T, d_model], zero behind lengths [B] -> (coarse mel [B, F, n_mels], lengths [B] in frames)."""
        return self.decoder(quantized, lengths)

    def vocode(self, mel: Array, lengths: Array) -> Array:
        """Coarse mel [B, F, n_mels], lengths [B] in frames -> waveform [B, F * hop_length]."""
        return self.vocoder(mel, lengths)

    def decode(self, codes: Array, lengths: Array) -> tuple[Array, Array]:
        """codes [B, T, n] of the first n codebooks, lengths [B] -> (waveform [B, S], samples [B])."""
        mel, lengths = self.decoder(self.quantizer.decode(codes, lengths), lengths)
        return self.vocoder(mel, lengths), lengths * self.config.hop_length

    def reconstruct(self, mel: Array, lengths: Array, num_quantizers: int | None = None) -> tuple[Array, Array]:
        """Encode and decode: mel [B, F, n_mels], lengths [B] -> (waveform, samples [B])."""
        return self.decode(*self.encode(mel, lengths, num_quantizers))

    def __call__(self, mel: Array, lengths: Array) -> tuple[Array, Array]:
        """`reconstruct`: touches every parameter, for `init`."""
        return self.reconstruct(mel, lengths)
