"""MiMo-Audio-Tokenizer: waveform -> log-mel -> features -> codes -> hidden -> coarse mel -> waveform."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.reference import ops
from tests.reference.ops import Array


def log_mel(wave: Array, config: Mapping[str, Any]) -> Array:
    """Magnitude STFT, centred with reflect padding; HTK triangles of height 1; natural log, not below 1e-7."""
    nfft, hop, size, rate = (config[name] for name in ("nfft", "hop_length", "window_size", "sampling_rate"))
    left = (nfft - size) // 2
    window = np.zeros(nfft)
    window[left : left + size] = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]
    padded = np.pad(np.asarray(wave, np.float64), nfft // 2, mode="reflect")
    low, high = config["fmin"] or 0, rate / 2 if config["fmax"] is None else config["fmax"]
    low, high = (2595 * math.log10(1 + f / 700) for f in (low, high))
    edges = [700 * (10 ** (mel / 2595) - 1) for mel in np.linspace(low, high, config["n_mels"] + 2)]
    bins = [rate / 2 * i / (nfft // 2) for i in range(nfft // 2 + 1)]
    bank = np.zeros((len(bins), config["n_mels"]))
    for m in range(config["n_mels"]):
        a, b, c = edges[m : m + 3]
        for i, f in enumerate(bins):
            bank[i, m] = max(0.0, min((f - a) / (b - a), (c - f) / (c - b)))
    frames = [padded[t * hop : t * hop + nfft] * window for t in range(1 + len(wave) // hop)]
    return np.log(np.maximum(np.abs(np.fft.rfft(frames)) @ bank, 1e-7))


class Tokenizer:
    """The tokenizer of official tensors and a `config.json`."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Array]):
        self.config, self.tensors = config, ops.double(tensors)
        books = range(config["num_quantizers"])
        self.books = [self.tensors[f"encoder.quantizer.vq.layers.{i}._codebook.embed"] for i in books]

    def norm(self, x: Array, name: str) -> Array:
        weight = self.tensors[f"{name}.weight"]
        if self.config["ln_type"] == "RMSNorm":
            return ops.rms_norm(x, weight, 1e-6)
        return ops.layer_norm(x, weight, self.tensors[f"{name}.bias"], 1e-5)

    def stack(self, x: Array, name: str, heads: int, causal: bool, window: list[int], skip: int | None) -> Array:
        """Pre-norm layers; with skip = n the output of the first n is added to that of the last."""
        window = (window[0], 0) if causal else tuple(window)
        theta, kept = self.config["rope_theta"], 0.0
        for n in range(ops.layers_of(self.tensors, name)):
            layer = f"{name}.layers.{n}"
            h = self.norm(x, f"{layer}.self_attn_layer_norm")
            h = ops.self_attention(h, self.tensors, f"{layer}.self_attn", heads, heads, theta, window)
            x = x + ops.linear(h, self.tensors, f"{layer}.self_attn.out_proj")
            h = self.norm(x, f"{layer}.final_layer_norm")
            h = ops.gelu(ops.linear(h, self.tensors, f"{layer}.fc1"))
            x = x + ops.linear(h, self.tensors, f"{layer}.fc2")
            if n + 1 == skip:
                kept = x
        return self.norm(x + kept, f"{name}.layer_norm")

    def features(self, mel: Array) -> Array:
        """mel [F, n_mels] -> [T, d_model]; no frame where a kernel does not fit into its padded input."""
        config, tensors, x = self.config, self.tensors, np.asarray(mel, np.float64)
        for name, stride in (("encoder.conv1", 1), ("encoder.conv2", config["stride_size"])):
            x = ops.gelu(ops.convolution(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride, 1))
            if not len(x):
                return np.zeros((0, config["d_model"]))
        x = self.stack(
            x,
            "encoder",
            config["encoder_attention_heads"],
            config["encoder_causal"],
            config["encoder_attn_window_size"],
            config["encoder_skip_layer_id"],
        )
        pool = config["avg_pooler"]
        if pool == 1:
            return x
        x = np.pad(x, ((0, -len(x) % pool), (0, 0)))
        x = ops.gelu(ops.convolution(x, tensors["encoder.down_sample_layer.0.weight"], None, pool, 0))
        return self.norm(x, "encoder.down_sample_norm")

    def codes(self, features: Array, count: int | None = None) -> tuple[Array, Array]:
        """features [T, D] -> codes [n, T] and, per code, (second - best) / best of the squared distances."""
        residual, codes, margins = np.asarray(features, np.float64), [], []
        for book in self.books[:count]:
            distance = ((residual[:, None] - book) ** 2).sum(axis=-1)
            codes.append(distance.argmin(axis=1))
            best, second = np.sort(distance, axis=1)[:, :2].T
            margins.append((second - best) / best)
            residual = residual - book[codes[-1]]
        return np.stack(codes), np.stack(margins)

    def hidden(self, codes: Array) -> Array:
        """codes [n, T] of the first n codebooks -> [T, d_model]."""
        return sum(book[row] for book, row in zip(self.books, codes, strict=False))

    def upsampled(self, x: Array, name: str, stride: int) -> Array:
        """Transposed convolution, GroupNorm over all that it gives, then the frames behind T * stride are cut."""
        tensors = self.tensors
        y = ops.transposed_convolution(x, tensors[f"{name}.conv.weight"], tensors[f"{name}.conv.bias"], stride)
        y = (y - y.mean()) / math.sqrt(y.var() + 1e-5) * tensors[f"{name}.norm.weight"] + tensors[f"{name}.norm.bias"]
        return y[: len(x) * stride]

    def coarse_mel(self, hidden: Array) -> Array:
        """hidden [T, d_model] -> [F, n_mels]."""
        config, x = self.config, hidden
        if config["avg_pooler"] > 1:
            x = self.upsampled(x, "decoder.dconv1", config["avg_pooler"])
        x = self.stack(
            x,
            "decoder",
            config["decoder_attention_heads"],
            config["decoder_causal"],
            config["decoder_attn_window_size"],
            None,
        )
        return self.upsampled(x, "decoder.dconv2", config["decoder_stride_size"])

    def head(self, mel: Array) -> Array:
        """Coarse mel [F, n_mels] -> log-magnitudes and phases [F, nfft + 2]."""
        config = self.config
        x = ops.linear(mel, self.tensors, "decoder.vocoder.embeddings")
        heads, window = config["vocoder_attention_heads"], config["vocoder_attn_window_size"]
        x = self.stack(x, "decoder.vocoder", heads, False, window, None)
        return ops.linear(x, self.tensors, "decoder.vocoder.head.out")

    def wave(self, mel: Array) -> Array:
        """Coarse mel [F, n_mels] -> waveform [F hop]."""
        nfft, hop = self.config["nfft"], self.config["hop_length"]
        window = self.tensors["decoder.vocoder.head.istft.window"]
        head = self.head(mel)
        magnitude, phase = np.minimum(np.exp(head[:, : nfft // 2 + 1]), 1e2), head[:, nfft // 2 + 1 :]
        total = np.zeros((len(mel) - 1) * hop + nfft)
        envelope = np.zeros_like(total)
        for t, spectrum in enumerate(magnitude * np.exp(1j * phase)):
            total[t * hop : t * hop + nfft] += np.fft.irfft(spectrum, nfft) * window
            envelope[t * hop : t * hop + nfft] += window**2
        inside = slice((nfft - hop) // 2, (nfft - hop) // 2 + len(mel) * hop)
        return total[inside] / envelope[inside]
