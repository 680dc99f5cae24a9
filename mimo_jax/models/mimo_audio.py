"""MiMo-Audio: text tokens and audio patches through one causal LLM (arXiv 2512.23808, section 3).

A sequence has T positions; each is a text token or an audio patch of G frames x C codebooks. An audio position carries
the special text id `<|empty|>` and real codes; a text position carries a text id and *empty* codes (the last id of each
codebook's vocabulary). Frames of a patch are embedded (sum over codebooks), run through the bidirectional patch
encoder, concatenated and projected to the LLM's width. The LLM's hidden state at t predicts the text id of t + 1; if
that is `<|empty|>`, the patch decoder turns the projected hidden state into the patch, codebook r delayed by d_r steps.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mimo_jax.models import embedding, layers, patches, transformer
from mimo_jax.models.transformer import Cache, Compute

Array = jax.Array

# Logical axes of the short sequences of patch encoder and decoder: a device keeps those of its rows.
PATCH_AXES = ("patches", None)
TABLE_AXES = ("table_rows", "table_columns")


@dataclasses.dataclass(frozen=True)
class MimoAudioConfig:
    """Shape of a model, in the field names of the released `config.json`. Defaults: the released 7B.

    `empty_token_id` (id of `<|empty|>`) is not part of `config.json`: it comes from the text tokenizer.
    `released_text_embedding` reproduces the released fine-tuning code, which adds the text embedding of `<|empty|>` at
    audio positions in training; the default leaves it out there as inference does.
    """

    vocab_size: int = 151680
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rope_theta: float = 640000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    group_size: int = 4
    audio_channels: int = 8
    delay_pattern: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    speech_vocab_size: tuple[int, ...] = (1025, 1025, 129, 129, 129, 129, 129, 129)
    speech_zeroemb_idx: tuple[int, ...] = (1024, 1024, 128, 128, 128, 128, 128, 128)
    local_dim: int = 1024
    local_layers: int = 16
    local_attn_heads: int = 64
    local_ffn_dim: int = 4096
    input_local_layers: int = 6
    input_local_dim: int = 1024
    input_full_attention: bool = True
    empty_token_id: int = 151667
    released_text_embedding: bool = False

    def __post_init__(self) -> None:
        for field in ("delay_pattern", "speech_vocab_size", "speech_zeroemb_idx"):
            value = tuple(getattr(self, field))
            object.__setattr__(self, field, value)
            if len(value) != self.audio_channels:
                raise ValueError(
                    f"{field} has {len(value)} entries for audio_channels = {self.audio_channels}: {value}"
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        for width in ("local_dim", "input_local_dim"):
            if getattr(self, width) % (2 * self.local_attn_heads):
                raise ValueError(
                    f"{width} = {getattr(self, width)} over local_attn_heads = {self.local_attn_heads}: "
                    "the head dimension must be a whole, even number"
                )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even")
        if not 0 <= self.empty_token_id < self.vocab_size:
            raise ValueError(f"empty_token_id = {self.empty_token_id} is outside the vocabulary of {self.vocab_size}")

    @property
    def patch_steps(self) -> int:
        """Steps of the patch decoder: frames of a patch plus the longest delay."""
        return self.group_size + max(self.delay_pattern)

    @property
    def llm(self) -> transformer.TransformerConfig:
        return transformer.TransformerConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            rope_theta=self.rope_theta,
            rms_norm_eps=self.rms_norm_eps,
            causal=True,
            initializer_range=self.initializer_range,
        )

    def _local(self, width: int, ffn: int, depth: int, causal: bool) -> transformer.TransformerConfig:
        return transformer.TransformerConfig(
            hidden_size=width,
            intermediate_size=ffn,
            num_layers=depth,
            num_heads=self.local_attn_heads,
            num_kv_heads=self.local_attn_heads,
            head_dim=width // self.local_attn_heads,
            rope_theta=self.rope_theta,
            rms_norm_eps=self.rms_norm_eps,
            causal=causal,
            initializer_range=self.initializer_range,
        )

    @property
    def patch_encoder(self) -> transformer.TransformerConfig:
        width = self.input_local_dim
        return self._local(width, 4 * width, self.input_local_layers, causal=not self.input_full_attention)

    @property
    def patch_decoder(self) -> transformer.TransformerConfig:
        return self._local(self.local_dim, self.local_ffn_dim, self.local_layers, causal=True)


class CodeEmbedding(nn.Module):
    """Table [V, D] of one codebook. The row of the empty code never receives a gradient."""

    vocab_size: int
    features: int
    empty_id: int
    compute: Compute
    initializer_range: float

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), ("code_vocab", "code_embed")),
            (self.vocab_size, self.features),
            jnp.dtype(self.compute.param_dtype),
        )

    def __call__(self, codes: Array, zero_empty: bool) -> Array:
        """codes [...] -> [..., D]; empty codes give 0 (`zero_empty`) or their row as stored, without gradient."""
        axes = ("patches", *(None for _ in codes.shape[1:]))
        vectors = embedding.lookup(self.embedding, codes, ("code_vocab", "code_embed"), axes, self.compute.dtype)
        is_empty = (codes == self.empty_id)[..., None]
        return jnp.where(is_empty, 0.0 if zero_empty else jax.lax.stop_gradient(vectors), vectors)


class MimoAudio(nn.Module):
    """The language model. Entry points are the methods, e.g. `model.apply(variables, ..., method="embed")`."""

    config: MimoAudioConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        config, compute = self.config, self.compute
        dtypes = {"dtype": compute.dtype, "param_dtype": compute.param_dtype}
        init = nn.initializers.normal(config.initializer_range)
        linear: dict[str, Any] = {"kernel_init": init, **dtypes}
        patch_linear = {"row_axes": PATCH_AXES, **linear}
        self.embed_tokens = self.param(
            "embed_tokens",
            nn.with_logical_partitioning(init, TABLE_AXES),
            (config.vocab_size, config.hidden_size),
            jnp.dtype(compute.param_dtype),
        )
        self.speech_embeddings = [
            CodeEmbedding(size, config.input_local_dim, empty, compute, config.initializer_range)
            for size, empty in zip(config.speech_vocab_size, config.speech_zeroemb_idx, strict=True)
        ]
        self.patch_encoder = transformer.Transformer(config.patch_encoder, compute.of_patches, row_axes=PATCH_AXES)
        self.speech_group_downcast = layers.Linear(config.hidden_size, ("patch", "embed"), **patch_linear)
        self.llm = transformer.Transformer(config.llm, compute)
        self.lm_head = layers.Linear(config.vocab_size, ("embed", "vocab"), **linear)
        self.hidden_states_downcast = layers.Linear(config.local_dim, ("embed", "local_embed"), **patch_linear)
        if config.input_local_dim != config.local_dim:
            self.speech_embeddings_to_local = layers.Linear(config.local_dim, ("embed", "local_embed"), **patch_linear)
        self.patch_decoder = transformer.Transformer(config.patch_decoder, compute.of_patches, row_axes=PATCH_AXES)
        self.local_heads = [
            layers.Linear(size, ("local_embed", "code_vocab"), **patch_linear) for size in config.speech_vocab_size
        ]

    def __call__(self, text: Array, audio: Array) -> tuple[Array, list[Array]]:
        """Text logits [B, T, V] and teacher-forced code logits per codebook [B * T, G, V_r] of a dense batch.

        text [B, T], audio [B, T, G, C]. Touches every parameter, hence the entry point for `init`.
        """
        hidden, _ = self.backbone(self.embed(text, audio), jnp.arange(text.shape[1])[None, :])
        codes = audio.reshape(-1, *audio.shape[2:])
        local_hidden = self.local_hidden(hidden).reshape(-1, self.config.local_dim)
        return self.text_logits(hidden), self.patch_logits(local_hidden, codes)

    # ----- input ---------------------------------------------------------------------------------------------------

    def patch_encoder_input(self, codes: Array) -> Array:
        """Sum over codebooks of the code embeddings, empty codes counting 0. codes [N, G, C] -> [N, G, D]."""
        vectors = [table(codes[..., c], zero_empty=True) for c, table in enumerate(self.speech_embeddings)]
        return functools.reduce(jnp.add, vectors)

    def encode_patches(self, codes: Array) -> Array:
        """Patches [N, G, C] -> their input embeddings [N, hidden_size] (patch encoder, then projection)."""
        frames, _ = self.patch_encoder(self.patch_encoder_input(codes), jnp.arange(codes.shape[1])[None, :])
        return self.project_patches(frames)

    def project_patches(self, frames: Array) -> Array:
        """Outputs of the patch encoder [N, G, D] -> input embeddings [N, hidden_size]."""
        return self.speech_group_downcast(frames.reshape(frames.shape[0], -1))

    def embed_text(self, text: Array) -> Array:
        """Text ids [B, T] -> [B, T, hidden_size]; zero at audio positions (unless `released_text_embedding`)."""
        axes = ("batch", "length")
        vectors = embedding.lookup(self.embed_tokens, text, TABLE_AXES, axes, self.compute.dtype)
        if self.config.released_text_embedding:
            return vectors
        return jnp.where((text == self.config.empty_token_id)[..., None], 0.0, vectors)

    def embed(self, text: Array, audio: Array) -> Array:
        """Input embeddings [B, T, hidden_size] of a dense batch: text [B, T], audio [B, T, G, C].

        Runs the patch encoder on every position; `embed_gathered` spares the text positions.
        """
        return self.embed_encoded(text, self.encode_patches(audio.reshape(-1, *audio.shape[2:])))

    def embed_encoded(self, text: Array, encoded: Array) -> Array:
        """As `embed`, from the input embeddings [B * T, hidden_size] of each position's patch."""
        is_audio = (text == self.config.empty_token_id)[..., None]
        return self.embed_text(text) + jnp.where(is_audio, encoded.reshape(*text.shape, -1), 0.0)

    def embed_gathered(self, text: Array, codes: Array, patch_index: Array) -> Array:
        """As `embed`, from a buffer of gathered patches.

        Args:
          text: [B, T] text ids.
          codes: [N, G, C] patches.
          patch_index: [B, T] index of each position's patch, N (out of range) at text positions; where rows are split
            over devices, within the part of the buffer that belongs to them (`patches.gather`).
        """
        return self.embed_text(text) + patches.place(self.encode_patches(codes), patch_index)

    # ----- LLM -----------------------------------------------------------------------------------------------------

    def backbone(
        self,
        x: Array,
        positions: Array,
        segment_ids: Array | None = None,
        cache: Cache | None = None,
        return_layers: bool = False,
    ) -> tuple[Array, Cache | Array | None]:
        """The LLM: input embeddings [B, T, hidden_size] -> (hidden of the same shape, cache); see `Transformer`."""
        return self.llm(x, positions, segment_ids, cache, return_layers)

    def text_logits(self, hidden: Array) -> Array:
        """hidden [..., hidden_size] -> logits [..., vocab_size] of the next position's text id."""
        return self.lm_head(hidden)

    def local_hidden(self, hidden: Array) -> Array:
        """hidden [..., hidden_size] -> [..., local_dim], the state that drives the next position's patch."""
        return self.hidden_states_downcast(hidden)

    # ----- patch decoder -------------------------------------------------------------------------------------------

    def _code_input(self, codes: Array, codebook: int) -> Array:
        return self.speech_embeddings[codebook](codes, zero_empty=False)

    def _to_local(self, x: Array) -> Array:
        return self.speech_embeddings_to_local(x) if self.config.input_local_dim != self.config.local_dim else x

    def patch_step_inputs(self, local_hidden: Array, codes: Array) -> Array:
        """Teacher-forced inputs of the patch decoder's steps. [N, local_dim], [N, G, C] -> [N, steps, local_dim].

        Step 0 takes `local_hidden`; step s + 1 the sum over codebooks r of the embedding of frame s - d_r.
        """
        config, steps = self.config, self.config.patch_steps
        inputs = []
        for codebook, delay in enumerate(config.delay_pattern):
            vectors = self._code_input(codes[..., codebook], codebook)
            after = steps - 1 - delay - config.group_size
            # The last step's tokens are never an input: the slowest codebook loses its last frame here.
            vectors = jnp.pad(vectors, ((0, 0), (delay, max(after, 0)), (0, 0)))[:, : steps - 1]
            inputs.append(vectors)
        return jnp.concatenate([local_hidden[:, None], self._to_local(functools.reduce(jnp.add, inputs))], axis=1)

    def patch_hidden(self, local_hidden: Array, codes: Array) -> Array:
        """Teacher-forced outputs of the patch decoder [N, steps, local_dim]."""
        hidden, _ = self.patch_decoder(
            self.patch_step_inputs(local_hidden, codes), jnp.arange(self.config.patch_steps)[None, :]
        )
        return hidden

    def patch_logits(self, local_hidden: Array, codes: Array) -> list[Array]:
        """Teacher-forced logits of each codebook: C arrays [N, G, V_r], from [N, local_dim] and [N, G, C]."""
        hidden, group = self.patch_hidden(local_hidden, codes), self.config.group_size
        return [
            head(hidden[:, delay : delay + group])
            for head, delay in zip(self.local_heads, self.config.delay_pattern, strict=True)
        ]

    def patch_step(self, step_input: Array, step: Array, cache: Cache) -> tuple[list[Array], Cache]:
        """One step of generation: [N, local_dim] -> (logits of every codebook, each [N, V_r]; updated cache).

        `step` is a scalar; the caller samples only the codebooks r with 0 <= step - d_r < G and feeds
        `step_input_from_codes` of what it sampled to the next step.
        """
        positions = jnp.broadcast_to(step, (step_input.shape[0], 1))
        hidden, cache = self.patch_decoder(step_input[:, None], positions, None, cache)
        return self.code_logits(hidden[:, 0]), cache

    def code_logits(self, hidden: Array) -> list[Array]:
        """Output of the patch decoder at one step [N, local_dim] -> logits of every codebook, each [N, V_r]."""
        return [head(hidden) for head in self.local_heads]

    def step_input_from_codes(self, codes: Array, active: Array) -> Array:
        """Sum of embeddings of the codes sampled at one step. codes [N, C], active [C] bool -> [N, local_dim]."""
        vectors = [
            jnp.where(active[c], self._code_input(codes[:, c], c), 0.0) for c in range(self.config.audio_channels)
        ]
        return self._to_local(functools.reduce(jnp.add, vectors))
