"""Streaming decode against offline decode: latency, speed, and how far the waveforms are apart.

    python benchmarks/streaming.py --tokenizer runs/quickstart/export/tokenizer --audio speech.flac [--chunk 8]

Each row decodes the same codes; `signal to difference` is the power of the offline waveform over that of what it is off
by, in dB. Prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from mimo_jax.data import audio
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.streaming import OverlapDecoder, StreamingDecoder, offline_statistics
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
    wave = np.concatenate([audio.load_audio(path) for path in options.audio])[: 59 * config.sampling_rate]
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
        made, spent, first = run(make(), codes, options.chunk)
        made, spent, first = run(make(), codes, options.chunk)  # the first run compiled
        difference = np.mean(np.square(made - whole))
        decibel = 10 * np.log10(np.mean(np.square(whole)) / max(difference, 1e-20))
        latency = first / config.frame_rate
        print(f"{name:<30}{latency:>12.2f}{seconds / spent:>14.1f}{decibel:>26.1f}")
        result[name] = {
            "latency_seconds": round(latency, 3),
            "x_real_time": round(seconds / spent, 2),
            "decibel": round(float(decibel), 1),
        }
    print(json.dumps(result))


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
