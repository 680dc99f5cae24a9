"""The audio tokenizer: log-mel front end, encoder, residual vector quantiser, decoder, vocoder and discriminators."""

from mimo_jax.models.tokenizer.config import TokenizerConfig
from mimo_jax.models.tokenizer.model import MimoAudioTokenizer

__all__ = ["MimoAudioTokenizer", "TokenizerConfig"]
