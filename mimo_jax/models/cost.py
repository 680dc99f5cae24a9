"""What a model costs, by arithmetic: parameters and model FLOPs per position, component by component.

Model FLOPs are twice the multiply-adds of the matrix products of a forward pass; training takes three times as many.
Recomputation does not count. An attention over T positions is counted in full (every pair) or causal (half of them);
published figures use either, so both are given.
"""

from __future__ import annotations

import dataclasses

from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import TransformerConfig

TRAINING = 3
"""Forward and backward passes over the forward pass alone: the gradients of inputs and of weights cost one each."""


def block_matrix_parameters(config: TransformerConfig) -> int:
    """Parameters of the matrices of one block: each takes part in one multiply-add per position."""
    queries, pairs = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = 2 * config.hidden_size * queries + 2 * config.hidden_size * pairs
    return attention + 3 * config.hidden_size * config.intermediate_size


def block_parameters(config: TransformerConfig) -> int:
    """All parameters of one block: matrices, biases of queries, keys and values, two norms."""
    biases = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return block_matrix_parameters(config) + biases + 2 * config.hidden_size


def stack_parameters(config: TransformerConfig) -> int:
    """Parameters of a stack with its last norm."""
    return config.num_layers * block_parameters(config) + config.hidden_size


def parameters(config: MimoAudioConfig) -> dict[str, int]:
    """Parameters by component; their sum is that of the model."""
    codes = sum(config.speech_vocab_size)
    wider = config.input_local_dim * config.local_dim if config.input_local_dim != config.local_dim else 0
    return {
        "llm": stack_parameters(config.llm),
        "embedding": config.vocab_size * config.hidden_size,
        "head": config.vocab_size * config.hidden_size,
        "patch_encoder": stack_parameters(config.patch_encoder),
        "patch_decoder": stack_parameters(config.patch_decoder),
        "code_embeddings": codes * config.input_local_dim,
        "patch_projection": config.group_size * config.input_local_dim * config.hidden_size,
        "hidden_projection": config.hidden_size * config.local_dim,
        "code_heads": codes * config.local_dim,
        # Where the widths differ, the patch decoder needs the embeddings in its own.
        "embedding_projection": wider,
    }


def attention_flops(config: TransformerConfig, length: float, causal: bool) -> float:
    """Forward FLOPs of the attention of a stack, of one position among ``length``: scores and weighted sum."""
    pairs = 4.0 * config.num_heads * config.head_dim * length * config.num_layers
    return pairs / 2 if causal else pairs


@dataclasses.dataclass(frozen=True)
class PositionFlops:
    """Forward FLOPs of one position; ``causal`` is counted causally, ``full`` with every pair of the LLM's attention.

    Attributes:
        text: of a text position.
        audio: of an audio position (one patch) with the patch decoder.
        audio_without_decoder: of an audio position where only text is predicted (the understanding stage).
    """

    text: float
    audio: float
    audio_without_decoder: float


def forward_flops(config: MimoAudioConfig, context: int, causal: bool = True) -> PositionFlops:
    """Forward FLOPs of a position in a row of ``context`` positions.

    The patch encoder sees the frames of one patch; the patch decoder takes `MimoAudioConfig.patch_steps` steps. Each
    codebook's head is computed once per frame.
    """
    llm = config.llm
    text = 2.0 * (llm.num_layers * block_matrix_parameters(llm) + config.vocab_size * config.hidden_size)
    text += attention_flops(llm, context, causal)
    encoder, decoder = config.patch_encoder, config.patch_decoder
    encode = config.group_size * _short(encoder, config.group_size, causal and not config.input_full_attention)
    encode += 2.0 * config.group_size * config.input_local_dim * config.hidden_size
    decode = config.patch_steps * _short(decoder, config.patch_steps, causal)
    decode += 2.0 * config.hidden_size * config.local_dim
    decode += 2.0 * config.group_size * sum(config.speech_vocab_size) * config.local_dim
    return PositionFlops(text=text, audio=text + encode + decode, audio_without_decoder=text + encode)


def _short(config: TransformerConfig, length: int, causal: bool) -> float:
    """Forward FLOPs of one step of a short sequence through a stack."""
    return 2.0 * config.num_layers * block_matrix_parameters(config) + attention_flops(config, length, causal)


def training_flops(
    config: MimoAudioConfig, context: int, text: float, audio: float, *, decoder: bool = True, causal: bool = True
) -> float:
    """Model FLOPs of training on so many text and audio positions in rows of ``context``.

    ``decoder``: whether the patch decoder is trained.
    """
    each = forward_flops(config, context, causal)
    return TRAINING * (text * each.text + audio * (each.audio if decoder else each.audio_without_decoder))
