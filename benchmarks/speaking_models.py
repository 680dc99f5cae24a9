"""What `generate.py` measures: sizes of models, weights with which they speak, and what a position must read.

That an answer is speech is a matter of weights: see `speaking_params`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.ahead_of_time.machines import DEVICES
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.interop import hf
from mimo_jax.models import cost, layers
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured: shapes of the language model and of the audio tokenizer."""

    model: MimoAudioConfig
    tokenizer: TokenizerConfig
    dtype: str = "float32"


SMALL = MimoAudioConfig(
    vocab_size=4096,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    local_dim=256,
    local_layers=4,
    local_attn_heads=16,
    local_ffn_dim=1024,
    input_local_layers=2,
    input_local_dim=256,
    empty_token_id=4095,
)
SMALL_TOKENIZER = TokenizerConfig(
    d_model=256,
    encoder_layers=3,
    encoder_skip_layer_id=1,
    encoder_attention_heads=4,
    encoder_ffn_dim=768,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=768,
    n_mels=80,
    vocoder_dim=256,
    vocoder_intermediate_dim=768,
    vocoder_num_layers=4,
    vocoder_attention_heads=4,
)
TINY = MimoAudioConfig(
    vocab_size=1536,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=96,
    local_dim=128,
    local_layers=1,
    local_attn_heads=2,
    local_ffn_dim=384,
    input_local_layers=1,
    input_local_dim=128,
    empty_token_id=1535,
)
SIZES = {
    "tiny": Size(TINY, dataclasses.replace(SMALL_TOKENIZER, d_model=128, encoder_layers=2, vocoder_dim=128)),
    "small": Size(SMALL, SMALL_TOKENIZER),
    "7b": Size(MimoAudioConfig(), TokenizerConfig(), "bfloat16"),
}

# Bytes/s of a device's memory by the beginning of jax's `device_kind`; the first entry that fits applies. Makers' data
# sheets; those of `ahead_of_time.machines` where it has the device.
BANDWIDTHS: tuple[tuple[str, float], ...] = (
    ("TPU7", DEVICES["tpu7x"].hbm_bandwidth),
    ("TPU v4", DEVICES["v4"].hbm_bandwidth),
    ("TPU v5 lite", DEVICES["v5e"].hbm_bandwidth),
    ("TPU v5e", DEVICES["v5e"].hbm_bandwidth),
    ("TPU v5", DEVICES["v5p"].hbm_bandwidth),
    ("TPU v6", DEVICES["v6e"].hbm_bandwidth),
    ("NVIDIA H200", 4800e9),
    ("NVIDIA H100 NVL", 3900e9),
    ("NVIDIA H100 PCIe", 2000e9),
    ("NVIDIA H100", DEVICES["h100"].hbm_bandwidth),
    ("NVIDIA A100-SXM4-80GB", 2039e9),
    ("NVIDIA A100 80GB PCIe", 1935e9),
    ("NVIDIA A100", 1555e9),
    ("NVIDIA L4", 300e9),
)


def speaking_params(config: MimoAudioConfig, dtype: str, seed: int = 0) -> dict[str, Any]:
    """Random parameters of a model that answers with speech, whatever it is asked.

    Every layer's output has a standard deviation of about 1. A bias of the last layer's values passes attention as it
    is, since the weights of attention add up to 1, and comes out as one vector c that is in every hidden state; the
    text head's column of `<|empty|>` points along c.
    """
    rng = np.random.default_rng(seed)

    def values(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        kind = path[-1].key
        if kind == "scale":
            return jnp.ones(shape.shape, dtype)
        spread = {"bias": 0.1, "kernel": shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 1.0}.get(kind, 1.0)
        return jnp.asarray(spread * rng.standard_normal(shape.shape, np.float32), dtype)

    params = jax.tree_util.tree_map_with_path(values, hf.lm_shapes(config))
    attention = params["llm"]["layers"]["attention"]
    bias = rng.standard_normal((config.num_key_value_heads, config.head_dim), np.float32)
    by_query = np.repeat(bias, config.num_attention_heads // config.num_key_value_heads, axis=0).reshape(-1)
    constant = by_query @ np.asarray(attention["out_proj"]["kernel"][-1], np.float32)
    scale = 2 * np.sqrt(constant.size) / np.linalg.norm(constant)
    added = jnp.asarray(scale * bias.reshape(-1), dtype)
    attention["v_proj"]["bias"] = attention["v_proj"]["bias"].at[-1].set(added)
    column = jnp.asarray(2 * constant / np.linalg.norm(constant), dtype)
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, config.empty_token_id].set(column)
    return params


def random_codec(config: TokenizerConfig) -> AudioCodec:
    """An audio tokenizer of random weights."""
    frames = 4 * config.stride_size * config.avg_pooler
    mel = jnp.zeros((1, frames, config.n_mels))
    variables = jax.jit(MimoAudioTokenizer(config).init)(jax.random.key(0), mel, jnp.array([frames]))
    return AudioCodec(config, layers.unbox(variables))


def prompts(config: MimoAudioConfig, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Text ids [rows, length] and codes [rows, length, G, C]: a quarter text, then speech."""
    rng = np.random.default_rng(1)
    text = rng.integers(0, config.empty_token_id, (rows, length)).astype(np.int32)
    text[:, length // 4 :] = config.empty_token_id
    shape = (rows, length, config.group_size)
    codes = [rng.integers(0, size - 1, shape) for size in config.speech_vocab_size]
    return text, np.stack(codes, -1).astype(np.int32)


def bytes_of_position(config: MimoAudioConfig, dtype: str, rows: int, context: float) -> float:
    """Bytes that a spoken position of each of `rows` rows reads at least: weights in use, and a cache of `context`.

    Patch decoder and its heads count once per step that uses them: between steps, the rest of the decoder is read.
    """
    parts = cost.parameters(config)
    once = ("llm", "head", "patch_encoder", "patch_projection", "hidden_projection")
    weights = sum(parts[name] for name in once) + config.patch_steps * parts["patch_decoder"]
    weights += config.group_size * parts["code_heads"]
    if parts["embedding_projection"]:
        weights += (config.patch_steps - 1) * parts["embedding_projection"]
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * context * rows
    return (weights + cache) * jnp.dtype(dtype).itemsize


def bandwidth_of(device: jax.Device) -> float | None:
    """Bytes/s of a device's memory; None where unknown, such as a CPU's."""
    return next((rate for kind, rate in BANDWIDTHS if device.device_kind.startswith(kind)), None)
