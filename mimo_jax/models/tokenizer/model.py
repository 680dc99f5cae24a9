"""The whole tokenizer as one Linen module: waveform features, codes, reconstruction."""

from __future__ import annotations

import jax
from flax import linen as nn

from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.decoder import Decoder
from mimo_jax.models.tokenizer.encoder import Encoder
from mimo_jax.models.tokenizer.extents import E, stretched
from mimo_jax.models.tokenizer.rvq import Quantizer
from mimo_jax.models.tokenizer.vocoder import Vocoder
from mimo_jax.models.transformer import Compute

Array = jax.Array


class MimoAudioTokenizer(nn.Module):
    """MiMo-Audio-Tokenizer (arXiv 2512.23808, section 2).

    Collections: `params` {encoder, decoder, vocoder}, `codebooks` {quantizer} (moved by EMA, not by gradients) and
    `constants` {vocoder: window}. Batches are right-padded (their extent is lengths [B]) or packed, several sequences a
    row (`extents.Packed`); every sequence gives what it gives alone.
    """

    config: TokenizerConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        """Names of the parts."""
        self.encoder = Encoder(self.config, self.compute)
        self.quantizer = Quantizer(self.config)
        self.decoder = Decoder(self.config, self.compute)
        self.vocoder = Vocoder(self.config, self.compute)

    def encode_features(self, mel: Array, extent: E) -> tuple[Array, E]:
        """mel [B, F, n_mels], its extent -> (features [B, T, d_model], their extent in code frames)."""
        return self.encoder(mel, extent)

    def encode(self, mel: Array, extent: E, num_quantizers: int | None = None) -> tuple[Array, E]:
        """mel [B, F, n_mels], its extent -> (codes [B, T, n] int32, 0 outside theirs; their extent in code frames).

        Args:
          mel: log-mel frames, see `frontend.log_mel`.
          extent: of the mel frames.
          num_quantizers: n, the first n codebooks; None = all.
        """
        features, extent = self.encoder(mel, extent)
        return self.quantizer.encode(features, extent, num_quantizers), extent

    def decode_features(self, quantized: Array, extent: E) -> tuple[Array, E]:
        """quantized [B, T, d_model], zero outside its extent -> (coarse mel [B, F, n_mels], its extent)."""
        return self.decoder(quantized, extent)

    def vocode(self, mel: Array, extent: E) -> Array:
        """Coarse mel [B, F, n_mels], its extent -> waveform [B, F * hop_length]."""
        return self.vocoder(mel, extent)

    def decode(self, codes: Array, extent: E) -> tuple[Array, E]:
        """codes [B, T, n] of the first n codebooks, their extent -> (waveform [B, S], its extent in samples)."""
        mel, extent = self.decoder(self.quantizer.decode(codes, extent), extent)
        return self.vocoder(mel, extent), stretched(extent, self.config.hop_length)

    def reconstruct(self, mel: Array, extent: E, num_quantizers: int | None = None) -> tuple[Array, E]:
        """Encode and decode: mel [B, F, n_mels], its extent -> (waveform, its extent in samples)."""
        return self.decode(*self.encode(mel, extent, num_quantizers))

    def __call__(self, mel: Array, extent: E) -> tuple[Array, E]:
        """`reconstruct`: touches every parameter, for `init`."""
        return self.reconstruct(mel, extent)
