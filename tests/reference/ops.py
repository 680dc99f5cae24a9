"""What the models are made of, for one sequence [T, ...] in float64."""

import math
from collections.abc import Mapping

import numpy as np

Array = np.ndarray
Tensors = Mapping[str, Array]

erf = np.vectorize(math.erf, otypes=[np.float64])


def double(tensors: Tensors) -> dict[str, Array]:
    return {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}


def linear(x: Array, tensors: Tensors, name: str) -> Array:
    """weight [out, in]; with the bias that is stored, if one is."""
    y = x @ tensors[f"{name}.weight"].T
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) * weight + bias


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rotated(x: Array, theta: float) -> Array:
    """RoPE of x [T, d]: at position t, entries i and i + d/2 turn by the angle t theta^(-2i/d)."""
    length, dim = x.shape
    y = np.empty_like(x)
    for i in range(dim // 2):
        angle = np.arange(length) * theta ** (-2 * i / dim)
        a, b = x[:, i], x[:, i + dim // 2]
        y[:, i] = a * np.cos(angle) - b * np.sin(angle)
        y[:, i + dim // 2] = b * np.cos(angle) + a * np.sin(angle)
    return y


def attend(query: Array, key: Array, value: Array, heads: int, kv_heads: int, window: tuple[int, int]) -> Array:
    """Softmax attention: query [T, heads d], key and value [T, kv_heads d].

    Query i sees the keys i - left .. i + right (-1 = no limit), consecutive query heads share a key head.
    """
    length, dim = len(query), query.shape[1] // heads
    out = np.empty_like(query)
    for h in range(heads):
        mine = slice(h * dim, (h + 1) * dim)
        shared = h // (heads // kv_heads)
        theirs = slice(shared * dim, (shared + 1) * dim)
        for i in range(length):
            first = 0 if window[0] < 0 else max(0, i - window[0])
            end = length if window[1] < 0 else min(length, i + window[1] + 1)
            scores = key[first:end, theirs] @ query[i, mine] / math.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out[i, mine] = weights @ value[first:end, theirs] / weights.sum()
    return out


def self_attention(
    x: Array, tensors: Tensors, name: str, heads: int, kv_heads: int, theta: float, window: tuple[int, int]
) -> Array:
    """Attention of x [T, D] to itself with RoPE, without the output projection."""

    def turned(y: Array, count: int) -> Array:
        return np.concatenate([rotated(part, theta) for part in np.split(y, count, axis=1)], axis=1)

    query = turned(linear(x, tensors, f"{name}.q_proj"), heads)
    key = turned(linear(x, tensors, f"{name}.k_proj"), kv_heads)
    return attend(query, key, linear(x, tensors, f"{name}.v_proj"), heads, kv_heads, window)


def convolution(x: Array, weight: Array, bias: Array | None, stride: int, padding: int) -> Array:
    """x [T, in], weight [out, in, size] -> [T', out]."""
    size = weight.shape[2]
    x = np.pad(x, ((padding, padding), (0, 0)))
    y = np.zeros((max(0, (len(x) - size) // stride + 1), weight.shape[0]))
    for t in range(len(y)):
        for j in range(size):
            y[t] += weight[:, :, j] @ x[t * stride + j]
    return y if bias is None else y + bias


def transposed_convolution(x: Array, weight: Array, bias: Array, stride: int) -> Array:
    """x [T, in], weight [in, out, size] -> [(T - 1) stride + size, out]."""
    size = weight.shape[2]
    y = np.zeros(((len(x) - 1) * stride + size, weight.shape[1]))
    for t in range(len(x)):
        for j in range(size):
            y[t * stride + j] += x[t] @ weight[:, :, j]
    return y + bias


def layers_of(tensors: Tensors, name: str) -> int:
    """How many `name`.layers.N are stored."""
    return 1 + max(int(key[len(name) :].split(".")[2]) for key in tensors if key.startswith(f"{name}.layers."))
