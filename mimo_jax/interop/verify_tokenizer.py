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
from mimo_jax.interop.golden import Golden
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig
from mimo_jax.models.tokenizer.encoder import hidden_lengths

Arrays = dict[str, np.ndarray]


def compute(weights: Folder, golden: Golden) -> Arrays:
    """Every output array of the golden folder that can be computed, by name."""
    config, variables = hf.load_tokenizer(weights)
    model = MimoAudioTokenizer(config)
    prefixes = {name.split(".")[0] for name in golden.outputs}
    result: Arrays = {}

    # Inputs by the prefix of what becomes of each alone; the reference's batches are compared with these too.
    mels = {
        re.sub(r"(edge_)?mel_(\d+)", r"enc_\1single_\2", name): mel
        for name, mel in golden.inputs.items()
        if re.fullmatch(r"(edge_)?mel_\d+", name)
    }
    if "e2e" in prefixes:
        mels["e2e"] = golden.inputs["e2e_mel"]
    if mels:
        result |= _encode(model, variables, config, mels)
    if "enc_partial.codes" in golden.outputs:
        count = golden.run.get("partial_n_q", golden.outputs["enc_partial.codes"].shape[0])
        mel, lengths = _padded([golden.inputs["mel_0"]])
        codes, frames = jax.jit(lambda v, m, n: model.apply(v, m, n, count, method="encode"))(variables, mel, lengths)
        result["enc_partial.codes"] = np.asarray(codes[0, : int(frames[0])]).T

    codes_of = {
        name.replace("dec_codes", "dec_single"): codes.T
        for name, codes in golden.inputs.items()
        if re.fullmatch(r"dec_codes_\d+", name)
    }
    if codes_of:
        result |= _decode(model, variables, config, codes_of)
    if "dec_partial" in prefixes:
        count = golden.run.get("partial_n_q", config.num_quantizers)
        result |= _decode(model, variables, config, {"dec_partial": golden.inputs["dec_codes_0"].T[:, :count]})
    if "dec_batch_equal" in prefixes:
        pair = [golden.inputs[f"dec_codes_{i}"].T for i in range(len(golden.outputs["dec_batch_equal.wav"]))]
        shortest = min(
            len(c) for c in [golden.inputs[f"dec_codes_{i}"].T for i in range(len(golden.inputs["dec_lens"]))]
        )
        parts = _decode(model, variables, config, {f"equal_{i}": codes[:shortest] for i, codes in enumerate(pair)})
        for array in ("wav", "coarse_mel", "valid_samples", "valid_mel_frames"):
            result[f"dec_batch_equal.{array}"] = np.concatenate([parts[f"equal_{i}.{array}"] for i in range(len(pair))])
    if "e2e.wav_out" in golden.outputs and "e2e.codes" in result:
        result["e2e.wav_out"] = _decode(model, variables, config, {"e2e": result["e2e.codes"].T})["e2e.wav"]
    result |= batches.encoded(golden, config, result)
    result |= batches.decoded(golden, config, result)
    for stream in batches.streams(golden):
        result |= batches.streamed(config, variables, golden, stream)
    return result


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
    before_pool = np.asarray(hidden_lengths(jnp.asarray(lengths), config))
    books = [np.asarray(variables["codebooks"]["quantizer"][f"layers_{i}"]["embed"]) for i in range(codes.shape[-1])]
    result: Arrays = {}
    for b, prefix in enumerate(mels):
        n, hidden = int(frames[b]), int(before_pool[b])
        arrays = {
            "features_packed": features[b, :n],
            "features_unpacked": features[b : b + 1, :n],
            "lengths": np.asarray([n]),
            "lengths_before_pool": np.asarray([hidden]),
            "codes": codes[b, :n].T,
            "quantized_packed": quantized[b, :n],
            "quantized_unpacked": quantized[b : b + 1, :n],
            "margin": _margins(features[b, :n], codes[b, :n], books),
            "dbg_conv1": inner["conv1_output"][0][b : b + 1, : lengths[b]].swapaxes(1, 2),
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
