"""The output arrays of a tokenizer's golden folder, computed with our model: all sequences in one padded batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.interop import hf
from mimo_jax.interop import verify_batches as batches
from mimo_jax.interop.configs import Folder
from mimo_jax.interop.golden import Arrays, Computed, Golden, Unfit, entry
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig
from mimo_jax.models.tokenizer.encoder import PADDING, hidden_extent


def compute(weights: Folder, golden: Golden) -> Computed:
    """Every output array of the golden folder that can be computed."""
    config, variables = hf.load_tokenizer(weights)
    model, computed = MimoAudioTokenizer(config), Computed()
    _encoder_arrays(model, variables, golden, computed)
    _decoder_arrays(model, variables, golden, computed)
    for prefix in golden.prefixes:
        if prefix.startswith("stream_"):
            with computed.group(prefix):
                computed.arrays |= batches.streamed(golden, config, variables, prefix)
    return computed


def _encoder_arrays(model: MimoAudioTokenizer, variables: Any, golden: Golden, computed: Computed) -> None:
    config, prefixes = model.config, golden.prefixes
    mels: Arrays = {}  # by the prefix of what becomes of each alone; the reference's batches are compared with it too
    for prefix, name in _alone(golden, [("enc_", "mel_"), ("enc_edge_", "edge_mel_")]).items():
        with computed.group(prefix):
            mels[prefix] = golden.input(name, None, config.n_mels).astype(np.float32)
    if "e2e" in prefixes:
        with computed.group("e2e"):
            mels["e2e"] = golden.input("e2e_mel", None, config.n_mels).astype(np.float32)
    if mels:
        with computed.group(*mels):
            computed.arrays |= _encode(model, variables, config, mels)
    for kind in ("", "edge_"):
        if f"enc_{kind}batch" in prefixes:
            with computed.group(f"enc_{kind}batch"):
                computed.arrays |= batches.encoded(golden, config, variables, kind, computed)
    if "enc_partial" in prefixes:
        with computed.group("enc_partial"):
            count = _partial(golden, config)
            mel, lengths = _padded([golden.input("mel_0", None, config.n_mels).astype(np.float32)])
            run = jax.jit(lambda v, m, n: model.apply(v, m, n, count, method="encode"))
            codes, frames = run(variables, mel, lengths)
            computed.arrays["enc_partial.codes"] = np.asarray(codes[0, : int(frames[0])]).T


def _decoder_arrays(model: MimoAudioTokenizer, variables: Any, golden: Golden, computed: Computed) -> None:
    config, prefixes = model.config, golden.prefixes
    codes_of: Arrays = {}
    for prefix, name in _alone(golden, [("dec_", "dec_codes_")]).items():
        with computed.group(prefix):
            codes_of[prefix] = batches.codes_of(golden, config, name)
    if "dec_partial" in prefixes:
        with computed.group("dec_partial"):
            codes_of["dec_partial"] = batches.codes_of(golden, config, "dec_codes_0")[:, : _partial(golden, config)]
    for count in sorted({codes.shape[1] for codes in codes_of.values()}, reverse=True):
        alike = {prefix: codes for prefix, codes in codes_of.items() if codes.shape[1] == count}
        with computed.group(*alike):
            computed.arrays |= _decode(model, variables, config, alike)
    if "dec_batch" in prefixes:
        with computed.group("dec_batch"):
            computed.arrays |= batches.decoded(golden, computed)
    if "dec_batch_equal" in prefixes:
        with computed.group("dec_batch_equal"):
            alone = [
                {name.removeprefix("row."): array for name, array in _decode(model, variables, config, row).items()}
                for row in ({"row": codes} for codes in batches.equal_rows(golden, config))
            ]
            computed.arrays |= batches.equal(golden, alone)
    if "e2e.wav_out" in golden.outputs and "e2e.codes" in computed.arrays:
        with computed.group("e2e.wav_out"):
            parts = _decode(model, variables, config, {"e2e": computed.arrays["e2e.codes"].T})
            computed.arrays["e2e.wav_out"] = parts["e2e.wav"]


def _alone(golden: Golden, kinds: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Input names by the prefix of what becomes of each alone, where the folder has that or a batch of them."""
    result: dict[str, str] = {}
    for prefix, source in kinds:
        found = [re.fullmatch(rf"{prefix}single_(\d+)", name) for name in golden.prefixes]
        numbers = {match[1] for match in found if match}
        if f"{prefix}batch" in golden.prefixes:
            numbers |= set(golden.numbers(source))
        result |= {f"{prefix}single_{number}": f"{source}{number}" for number in sorted(numbers, key=int)}
    return result


def _partial(golden: Golden, config: TokenizerConfig) -> int:
    count = entry(golden.run, "partial_n_q", int)
    if not 1 <= count <= config.num_quantizers:
        raise Unfit(f"run.json: partial_n_q is {count}, this tokenizer has 1..{config.num_quantizers}")
    return count


def _padded(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    batch = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch, np.asarray([len(array) for array in arrays], np.int32)


def _encode(model: MimoAudioTokenizer, variables: Any, config: TokenizerConfig, mels: Arrays) -> Arrays:
    def run(module: MimoAudioTokenizer, mel: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
        features, frames = module.encoder(mel, lengths)
        codes = module.quantizer.encode(features, frames, None)
        return features, frames, codes, module.quantizer.decode(codes, frames)

    mel, lengths = _padded(list(mels.values()))
    apply = jax.jit(lambda v, m, n: model.apply(v, m, n, method=run, mutable="intermediates"))
    (features, frames, codes, quantized), state = jax.device_get(apply(variables, mel, lengths))
    inner = state["intermediates"]["encoder"]
    before_pool = np.asarray(hidden_extent(jnp.asarray(lengths), config))
    books = batches.books_of(config, variables)
    result: Arrays = {}
    for b, prefix in enumerate(mels):
        n, hidden, first = int(frames[b]), int(before_pool[b]), lengths[b] + 2 * PADDING - config.kernel_size + 1
        arrays = {
            "features_packed": features[b, :n],
            "features_unpacked": features[b : b + 1, :n],
            "lengths": np.asarray([n]),
            "lengths_before_pool": np.asarray([hidden]),
            "codes": codes[b, :n].T,
            "quantized_packed": quantized[b, :n],
            "quantized_unpacked": quantized[b : b + 1, :n],
            "margin": _margins(features[b, :n], codes[b, :n], books),
            "dbg_conv1": inner["conv1_output"][0][b : b + 1, :first].swapaxes(1, 2),
            "dbg_conv2": inner["conv2_output"][0][b : b + 1, :hidden].swapaxes(1, 2),
            "dbg_layer_norm": inner["layer_norm_output"][0][b, :hidden],
        }
        if config.avg_pooler > 1:
            arrays["dbg_down_sample"] = inner["down_sample_output"][0][b : b + 1, :n].swapaxes(1, 2)
        for layer, x in enumerate(inner["transformer"]["layers"]["output"][0]):
            arrays[f"dbg_layer{layer}"] = x[b, :hidden]
        result |= {f"{prefix}.{name}": array for name, array in arrays.items()}
    return result


def _margins(features: np.ndarray, codes: np.ndarray, books: Sequence[np.ndarray]) -> np.ndarray:
    """[n_q, T] relative gap between the squared distances of the second nearest and the nearest code."""
    residual, margins = features.astype(np.float64), []
    for book, code in zip(books, codes.T, strict=True):
        distances = np.square(residual[:, None] - book[None].astype(np.float64)).sum(-1)
        nearest, second = np.partition(distances, 1, axis=-1)[:, :2].T
        margins.append((second - nearest) / nearest)
        residual = residual - book[code]
    return np.stack(margins)


def _decode(model: MimoAudioTokenizer, variables: Any, config: TokenizerConfig, codes_of: Arrays) -> Arrays:
    def run(module: MimoAudioTokenizer, codes: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
        hidden = module.quantizer.decode(codes, lengths)
        mel, frames = module.decoder(hidden, lengths)
        return hidden, mel, module.vocoder(mel, frames)

    codes, lengths = _padded([codes.astype(np.int32) for codes in codes_of.values()])
    apply = jax.jit(lambda v, c, n: model.apply(v, c, n, method=run, mutable="intermediates"))
    (hidden, mel, wave), state = jax.device_get(apply(variables, codes, lengths))
    decoder, vocoder = state["intermediates"]["decoder"], state["intermediates"]["vocoder"]
    result: Arrays = {}
    for b, prefix in enumerate(codes_of):
        n = int(lengths[b])
        middle = n * config.avg_pooler
        frames = middle * config.decoder_stride_size
        samples = frames * config.hop_length
        arrays = {
            "hidden": hidden[b, :n],
            "coarse_mel": mel[b : b + 1, :frames],
            "wav": wave[b : b + 1, None, :samples],
            "valid_samples": np.asarray([samples]),
            "valid_mel_frames": np.asarray([frames]),
            "dbg_layer_norm": decoder["layer_norm_output"][0][b, :middle],
            "dbg_voc_embeddings": vocoder["embeddings_output"][0][b, :frames],
            "dbg_voc_layer_norm": vocoder["layer_norm_output"][0][b, :frames],
            "dbg_head_out": vocoder["head_out_output"][0][b : b + 1, :frames],
        }
        if config.avg_pooler > 1:
            arrays["dbg_dconv1"] = decoder["dconv1_output"][0][b : b + 1, :middle]
        for layer, x in enumerate(decoder["transformer"]["layers"]["output"][0]):
            arrays[f"dbg_layer{layer}"] = x[b, :middle]
        for layer, x in enumerate(vocoder["transformer"]["layers"]["output"][0]):
            arrays[f"dbg_voc_layer{layer}"] = x[b, :frames]
        result |= {f"{prefix}.{name}": array for name, array in arrays.items()}
    return result
