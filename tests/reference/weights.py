"""Random models in the official layout: any configuration, every tensor large enough to be missed if it is not used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.reference.lm import numbers
from tests.reference.ops import Array

TOKENIZER: dict[str, Any] = {
    "activation_function": "gelu",
    "avg_pooler": 2,
    "codebook_size": [16, 12, 8, 8],
    "d_model": 16,
    "decoder_attention_heads": 4,
    "decoder_attn_window_size": [-1, -1],
    "decoder_causal": True,
    "decoder_ffn_dim": 40,
    "decoder_kernel_size": 3,
    "decoder_layers": 2,
    "decoder_stride_size": 2,
    "encoder_attention_heads": 2,
    "encoder_attn_window_size": [-1, -1],
    "encoder_causal": False,
    "encoder_ffn_dim": 24,
    "encoder_layers": 3,
    "encoder_skip_layer_id": 2,
    "fmax": None,
    "fmin": 0,
    "hop_length": 8,
    "kernel_size": 3,
    "ln_type": "LayerNorm",
    "n_mels": 6,
    "nfft": 32,
    "num_quantizers": 4,
    "rope_theta": 10000,
    "sampling_rate": 24000,
    "stride_size": 2,
    "vocoder_attention_heads": 3,
    "vocoder_attn_window_size": [4, 1],
    "vocoder_dim": 12,
    "vocoder_intermediate_dim": 20,
    "vocoder_num_layers": 2,
    "window_size": 32,
}

LM: dict[str, Any] = {
    "audio_channels": 3,
    "delay_pattern": "0-1-2",
    "group_size": 4,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 24,
    "input_full_attention": True,
    "input_local_dim": 16,
    "input_local_layers": 2,
    "intermediate_size": 40,
    "local_attn_heads": 4,
    "local_dim": 16,
    "local_ffn_dim": 20,
    "local_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 640000,
    "speech_vocab_size": "17-9-9",
    "speech_zeroemb_idx": "16-8-8",
    "vocab_size": 40,
}
EMPTY_ID = 37  # of `<|empty|>`


class Maker:
    """Collects tensors: linear maps N(0, 1 / inputs), norm weights 1 + 0.2 N, biases 0.1 N."""

    def __init__(self, seed: int):
        self.rng, self.tensors = np.random.default_rng(seed), dict[str, Array]()

    def add(self, name: str, value: Array) -> None:
        self.tensors[name] = np.asarray(value, np.float32)

    def linear(self, name: str, out: int, *inputs: int, bias: bool) -> None:
        """weight [out, *inputs]."""
        self.add(f"{name}.weight", self.rng.normal(size=(out, *inputs)) / np.sqrt(np.prod(inputs)))
        if bias:
            self.add(f"{name}.bias", 0.1 * self.rng.normal(size=out))

    def norm(self, name: str, size: int, bias: bool) -> None:
        self.add(f"{name}.weight", 1 + 0.2 * self.rng.normal(size=size))
        if bias:
            self.add(f"{name}.bias", 0.1 * self.rng.normal(size=size))


def tokenizer(config: Mapping[str, Any], seed: int) -> dict[str, Array]:
    """Tensors of an audio tokenizer."""
    make, width, pool, bias = Maker(seed), config["d_model"], config["avg_pooler"], config["ln_type"] == "LayerNorm"

    def stack(name: str, dim: int, ffn: int, layers: int) -> None:
        for layer in (f"{name}.layers.{n}" for n in range(layers)):
            for part in ("q", "k", "v", "out"):
                make.linear(f"{layer}.self_attn.{part}_proj", dim, dim, bias=part != "k")
            make.linear(f"{layer}.fc1", ffn, dim, bias=True)
            make.linear(f"{layer}.fc2", dim, ffn, bias=True)
            make.norm(f"{layer}.self_attn_layer_norm", dim, bias)
            make.norm(f"{layer}.final_layer_norm", dim, bias)
        make.norm(f"{name}.layer_norm", dim, bias)

    def upsample(name: str, out: int, size: int) -> None:
        make.linear(f"{name}.conv", width, out, size, bias=False)  # stored [in, out, size]
        make.add(f"{name}.conv.bias", 0.1 * make.rng.normal(size=out))
        make.norm(f"{name}.norm", out, True)

    make.linear("encoder.conv1", width, config["n_mels"], config["kernel_size"], bias=True)
    make.linear("encoder.conv2", width, width, config["kernel_size"], bias=True)
    stack("encoder", width, config["encoder_ffn_dim"], config["encoder_layers"])
    if pool > 1:
        make.linear("encoder.down_sample_layer.0", width, width, pool, bias=False)
        make.norm("encoder.down_sample_norm", width, bias)
        upsample("decoder.dconv1", width, pool)
    for n, size in enumerate(codebook_sizes(config)):
        book = f"encoder.quantizer.vq.layers.{n}._codebook"
        make.add(f"{book}.embed", 0.7**n * make.rng.normal(size=(size, width)))
        make.add(f"{book}.embed_avg", make.rng.normal(size=(size, width)))  # not read
        make.add(f"{book}.cluster_size", make.rng.uniform(1, 9, size=size))
        make.add(f"{book}.inited", np.ones(1))
    stack("decoder", width, config["decoder_ffn_dim"], config["decoder_layers"])
    upsample("decoder.dconv2", config["n_mels"], config["decoder_kernel_size"])
    dim, bins = config["vocoder_dim"], config["nfft"] // 2 + 1
    make.linear("decoder.vocoder.embeddings", dim, config["n_mels"], bias=False)
    stack("decoder.vocoder", dim, config["vocoder_intermediate_dim"], config["vocoder_num_layers"])
    make.linear("decoder.vocoder.head.out", 2 * bins, dim, bias=True)
    make.tensors["decoder.vocoder.head.out.bias"][: bins // 2] += 4  # some magnitudes are clipped, some are not
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config["nfft"]) / config["nfft"])
    make.add("decoder.vocoder.head.istft.window", hann)
    return make.tensors


def codebook_sizes(config: Mapping[str, Any]) -> list[int]:
    """One number for all codebooks; a short list goes on with its last value, the rest of a long one is left out."""
    given, count = config["codebook_size"], config["num_quantizers"]
    given = [given] if isinstance(given, int) else list(given)
    return (given + given[-1:] * count)[:count]


def lm(config: Mapping[str, Any], seed: int) -> dict[str, Array]:
    """Tensors of a language model."""
    make, width, vocabulary = Maker(seed), config["hidden_size"], config["vocab_size"]
    local, given = config["local_dim"], config["input_local_dim"]

    def stack(name: str, dim: int, ffn: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        for layer in (f"{name}.layers.{n}" for n in range(layers)):
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                make.linear(f"{layer}.self_attn.{part}_proj", count * head_dim, dim, bias=True)
            make.linear(f"{layer}.self_attn.o_proj", dim, heads * head_dim, bias=False)
            for part in ("gate", "up"):
                make.linear(f"{layer}.mlp.{part}_proj", ffn, dim, bias=False)
            make.linear(f"{layer}.mlp.down_proj", dim, ffn, bias=False)
            make.norm(f"{layer}.input_layernorm", dim, False)
            make.norm(f"{layer}.post_attention_layernorm", dim, False)
        make.norm(f"{name}.norm", dim, False)

    heads, small = (config["num_attention_heads"], config["num_key_value_heads"]), config["local_attn_heads"]
    make.add("model.embed_tokens.weight", 0.3 * make.rng.normal(size=(vocabulary, width)))
    stack("model", width, config["intermediate_size"], config["num_hidden_layers"], *heads, config["head_dim"])
    make.linear("lm_head", vocabulary, width, bias=False)
    stack("input_local_transformer", given, 4 * given, config["input_local_layers"], small, small, given // small)
    stack("local_transformer", local, config["local_ffn_dim"], config["local_layers"], small, small, local // small)
    make.linear("speech_group_downcast", width, config["group_size"] * given, bias=False)
    make.linear("hidden_states_downcast", local, width, bias=False)
    if given != local:
        make.linear("speech_embeddings_to_local", local, given, bias=False)
    for n, size in enumerate(numbers(config["speech_vocab_size"])):
        make.add(f"speech_embeddings.{n}.weight", 0.3 * make.rng.normal(size=(size, given)))  # the empty code too
        make.linear(f"local_transformer_lm_heads.{n}", size, local, bias=False)
    return make.tensors


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """The folder, with model.safetensors and config.json in it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
