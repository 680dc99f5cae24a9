"""Configuration of the audio tokenizer, with the field names of the released `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

# What the layout can say and this model computes in one way only.
_FIXED = {
    "activation_function": "gelu",
    "position_embedding_type": "rope",
    "rope_type": "default",
    "vocoder_padding": "same",
}
# Fields that the released layout stores and nothing reads: they are kept for the way back.
_BOOKKEEPING = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Shape of the tokenizer (arXiv 2512.23808, section 2; defaults are the released 1.2 B model).

    Lengths of windows are [left, right] in positions, -1 = no limit. `codebook_size` may be shorter than
    `num_quantizers` (its last value is repeated) or longer (the rest is ignored), see `codebook_sizes`.
    `encoder_skip_layer_id` = n adds the output of the first n encoder layers to the output of the last; None = no skip.

    Raises:
      ValueError: a value that the model cannot compute.
    """

    max_audio_seconds: float = 1800
    stride_size: int = 2
    avg_pooler: int = 2
    d_model: int = 1280
    scale_embedding: bool = False
    kernel_size: int = 3
    activation_function: str = "gelu"
    encoder_layers: int = 32
    encoder_skip_layer_id: int | None = 3
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    encoder_causal: bool = False
    encoder_attn_window_size: tuple[int, int] = (-1, -1)
    decoder_layers: int = 32
    decoder_attention_heads: int = 20
    decoder_ffn_dim: int = 5120
    decoder_kernel_size: int = 3
    decoder_stride_size: int = 2
    decoder_causal: bool = True
    decoder_attn_window_size: tuple[int, int] = (-1, -1)
    nfft: int = 960
    window_size: int = 960
    hop_length: int = 240
    n_mels: int = 128
    fmin: float = 0
    fmax: float | None = None
    sampling_rate: int = 24000
    vocoder_dim: int = 256
    vocoder_intermediate_dim: int = 1024
    vocoder_num_layers: int = 16
    vocoder_attention_heads: int = 16
    vocoder_attn_window_size: tuple[int, int] = (40, 10)
    vocoder_padding: str = "same"
    num_quantizers: int = 20
    codebook_size: tuple[int, ...] = (1024, 1024, 128)
    threshold_ema_dead_code: float = 2
    position_embedding_type: str = "rope"
    rope_theta: float = 10000
    rope_type: str = "default"
    ln_type: str = "LayerNorm"
    # Fields of a config.json that this version does not know, as (name, JSON text): kept for the way back, unused.
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("encoder_attn_window_size", "decoder_attn_window_size", "vocoder_attn_window_size"):
            window = tuple(int(v) for v in getattr(self, name))
            if len(window) != 2 or min(window) < -1:
                raise ValueError(f"{name} is {list(window)}: give [left, right], each -1 (no limit) or more")
            object.__setattr__(self, name, window)
        sizes = self.codebook_size
        object.__setattr__(self, "codebook_size", tuple(sizes) if isinstance(sizes, Sequence) else (int(sizes),))
        if not self.codebook_size or min(self.codebook_size) < 1 or self.num_quantizers < 1:
            raise ValueError(
                f"codebook_size {list(self.codebook_size)} with num_quantizers {self.num_quantizers}: "
                "at least one codebook of at least one code is needed"
            )
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}: only {value!r} is supported")
        if self.ln_type not in ("LayerNorm", "RMSNorm"):
            raise ValueError(f"ln_type is {self.ln_type!r}: use 'LayerNorm' or 'RMSNorm'")
        for width, heads in (
            ("d_model", "encoder_attention_heads"),
            ("d_model", "decoder_attention_heads"),
            ("vocoder_dim", "vocoder_attention_heads"),
        ):
            if getattr(self, width) % (2 * getattr(self, heads)):
                raise ValueError(
                    f"{width} {getattr(self, width)} over {heads} {getattr(self, heads)}: "
                    "the head dimension must be a whole, even number"
                )
        if self.encoder_skip_layer_id is not None and not 1 <= self.encoder_skip_layer_id <= self.encoder_layers:
            raise ValueError(
                f"encoder_skip_layer_id is {self.encoder_skip_layer_id}: give null or 1..{self.encoder_layers}"
            )
        if self.window_size > self.nfft:
            raise ValueError(f"window_size {self.window_size} is longer than nfft {self.nfft}")
        if self.decoder_kernel_size < self.decoder_stride_size:
            raise ValueError(
                f"decoder_kernel_size {self.decoder_kernel_size} is smaller than "
                f"decoder_stride_size {self.decoder_stride_size}: frames in between would be empty"
            )
        # Half of the head's nfft + 2 values are phases; a Hann window reaches zero where frames do not overlap.
        if self.nfft % 2 or self.hop_length % 2 or self.nfft <= self.hop_length:
            raise ValueError(f"nfft {self.nfft}, hop_length {self.hop_length}: both must be even, and nfft the larger")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each of the `num_quantizers` codebooks."""
        given = self.codebook_size[: self.num_quantizers]
        return given + (given[-1],) * (self.num_quantizers - len(given))

    @property
    def samples_per_frame(self) -> int:
        """Samples that one code frame decodes to."""
        return self.avg_pooler * self.decoder_stride_size * self.hop_length

    @property
    def frame_rate(self) -> float:
        """Code frames per second."""
        return self.sampling_rate / (self.hop_length * self.stride_size * self.avg_pooler)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerConfig:
        """From the contents of a released `config.json`; absent fields take the defaults of this class."""
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        used: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        if used.get("codebook_size", ()) is None:
            del used["codebook_size"]
        extra = tuple((k, json.dumps(v)) for k, v in sorted(values.items()) if k not in known and k not in _BOOKKEEPING)
        return cls(**used, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Contents of a `config.json` in the released layout (JSON types only)."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        values |= {name: json.loads(text) for name, text in self.extra}
        return {
            "architectures": ["MiMoAudioTokenizer"],
            "model_type": "mimo_audio_tokenizer",
            "torch_dtype": "float32",
        } | values
