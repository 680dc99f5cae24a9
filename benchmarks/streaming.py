"""Streaming encode and decode against offline: latency, speed, and how far codes and waveforms are apart.

    python benchmarks/streaming.py --tokenizer runs/quickstart/export/tokenizer --audio speech.flac [--chunk 8]

Each row of the first table decodes the same codes; `signal to difference` is the power of the offline waveform over
that of what it is off by, in dB. Each row of the second encodes the same speech in segments, each alone or with what is
round it, and decodes the codes as a whole: how many of codebook 1 and of all codes are those of the whole, and the
quality of what they decode to; its first row is the whole. Prints both and, as the last line, one JSON object. For
hours of audio there is benchmarks/long_audio.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mimo_jax.data import audio
from mimo_jax.evaluation.metrics import speech_quality
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.streaming import OverlapDecoder, StreamingDecoder, offline_statistics
from mimo_jax.inference.streaming_encoder import StreamingEncoder
from mimo_jax.interop import hf


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="exported audio tokenizer")
    parser.add_argument("--audio", required=True, nargs="+", help="recordings, joined up to a minute")
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=8, help="code frames that come at a time")
    options = parser.parse_args()

    config, variables = hf.load_tokenizer(options.tokenizer)
    codec = AudioCodec(config, variables)
    wave = np.concatenate([audio.load_audio(path, config.sampling_rate) for path in options.audio])[
        : 59 * config.sampling_rate
    ]
    codes = codec.encode([wave], options.codebooks)[0]
    whole = codec.decode([codes])[0]
    seconds = len(whole) / config.sampling_rate
    start = time.perf_counter()
    codec.decode([codes])
    offline = time.perf_counter() - start

    own = offline_statistics(config, variables, codes)
    prompt = offline_statistics(config, variables, codes[: int(3 * config.frame_rate)])
    rows: dict[str, Callable[[], StreamingDecoder | OverlapDecoder]] = {
        "statistics of the whole": lambda: StreamingDecoder(config, variables, chunk=options.chunk, statistics=own),
        "statistics of the first 3 s": lambda: StreamingDecoder(
            config, variables, chunk=options.chunk, statistics=prompt
        ),
        "statistics so far": lambda: StreamingDecoder(config, variables, chunk=options.chunk),
        "of the whole, lookahead 20": lambda: StreamingDecoder(
            config, variables, chunk=options.chunk, statistics=own, lookahead=20
        ),
        "of the whole, lookahead 4": lambda: StreamingDecoder(
            config, variables, chunk=options.chunk, statistics=own, lookahead=4
        ),
        "overlapping windows 60, 10": lambda: OverlapDecoder(config, variables, left_overlap=60, right_overlap=10),
    }
    print(f"{seconds:.1f} s of speech, chunks of {options.chunk} frames; offline decoding takes {offline:.2f} s")
    print(f"{'decoder':<30}{'latency s':>12}{'x real time':>14}{'signal to difference dB':>26}")
    result = {"seconds": round(seconds, 2), "chunk": options.chunk, "offline_x_real_time": round(seconds / offline, 1)}
    for name, make in rows.items():
        run(make(), codes, options.chunk)  # compiles
        made, spent, first = run(make(), codes, options.chunk)
        difference = np.mean(np.square(made - whole))
        decibel = 10 * np.log10(np.mean(np.square(whole)) / max(difference, 1e-20))
        latency = first / config.frame_rate
        print(f"{name:<30}{latency:>12.2f}{seconds / spent:>14.1f}{decibel:>26.1f}")
        result[name] = {
            "latency_seconds": round(latency, 3),
            "x_real_time": round(seconds / spent, 2),
            "decibel": round(float(decibel), 1),
        }
    result["encode"] = compare_encoders(codec, variables, wave, codes, options.codebooks)
    print(json.dumps(result))


# segment, left, right in seconds; the first is what the released tokenizer does.
ENCODERS = ((60.0, 0.0, 0.0), (10.0, 0.0, 0.0), (2.0, 0.0, 0.0), (2.0, 4.0, 0.0), (2.0, 4.0, 1.0), (0.4, 4.0, 0.4))


def compare_encoders(
    codec: AudioCodec, variables: dict[str, Any], wave: np.ndarray, whole: np.ndarray, codebooks: int
) -> dict[str, dict[str, float]]:
    """One row per way to cut the stream."""
    names = ("latency s", "x real time", "codebook 1", "all codes", "PESQ-WB", "STOI", "mel distance")
    print(f"\n{'encoder: segment, left, right in s':<36}" + "".join(f"{name:>14}" for name in names))
    rows = {}
    for sizes in ENCODERS:
        mel_rate = codec.sample_rate / codec.config.hop_length
        segment, left, right = (round(mel_rate * seconds) for seconds in sizes)
        encoder = StreamingEncoder(
            codec.config, variables, segment=segment, left=left, right=right, num_quantizers=codebooks
        )
        encode(encoder, wave)  # compiles
        start = time.perf_counter()
        codes = encode(encoder, wave)
        spent = time.perf_counter() - start
        quality = speech_quality(wave, codec.decode([codes])[0], codec.sample_rate)
        values = (
            encoder.latency / codec.sample_rate,
            len(wave) / codec.sample_rate / spent,
            float((codes[:, 0] == whole[:, 0]).mean()),
            float((codes == whole).mean()),
            quality.pesq_wb,
            quality.stoi,
            quality.mel_distance,
        )
        name = ", ".join(f"{seconds:g}" for seconds in sizes)
        print(f"{name:<36}" + "".join(f"{value:>14.3f}" for value in values))
        rows[name] = {key: round(value, 4) for key, value in zip(names, values, strict=True)}
    return rows


def encode(encoder: StreamingEncoder, wave: np.ndarray, block: int = 2400) -> np.ndarray:
    """Codes of a wave that comes in blocks."""
    return np.concatenate([*(encoder(wave[i : i + block]) for i in range(0, len(wave), block)), encoder(last=True)])


def run(decoder: StreamingDecoder | OverlapDecoder, codes: np.ndarray, chunk: int) -> tuple[np.ndarray, float, int]:
    """(waveform, seconds, code frames that had to come before the first sample)."""
    start, parts, first = time.perf_counter(), [], 0
    for position in range(0, len(codes), chunk):
        parts.append(decoder(codes[position : position + chunk], last=position + chunk >= len(codes)))
        if not first and parts[-1].size:
            first = min(position + chunk, len(codes))
    return np.concatenate(parts), time.perf_counter() - start, first


if __name__ == "__main__":
    main()
