"""Hours of audio through the tokenizer: peak memory and the longest wait, against the length of the recording.

    python benchmarks/long_audio.py --tokenizer runs/quickstart/export/tokenizer --audio speech.flac --minutes 1 10 60

`streaming` reads the audio (the recordings, again and again) in blocks of a second, encodes it in segments and decodes
the codes as they come; `whole` holds all of it and uses `AudioCodec`. Each line is a process of its own. The longest
wait is the computing behind one block or behind the end, which has what no segment was full for. Both ways run once
before, on as much as it takes to compile everything: no figure of time holds compilation. Prints a table and, as the
last line, JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mimo_jax.models.tokenizer import TokenizerConfig


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="exported audio tokenizer")
    parser.add_argument("--audio", required=True, nargs="+", help="recordings, joined and repeated")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60])
    parser.add_argument("--ways", nargs="+", default=["streaming", "whole"], choices=["streaming", "whole"])
    parser.add_argument("--segment", type=int, default=6000, help="mel frames encoded at a time")
    parser.add_argument("--left", type=int, default=0)
    parser.add_argument("--right", type=int, default=0)
    parser.add_argument("--codebooks", type=int, default=8)
    options = parser.parse_args()

    print(
        f"{'way':<12}{'minutes':>10}{'peak RSS MB':>14}{'over start MB':>15}{'x real time':>13}{'longest wait s':>16}"
    )
    results = []
    for way, minutes in itertools.product(options.ways, options.minutes):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (way, minutes, options))
        print(
            "{way:<12}{minutes:>10g}{peak_mb:>14.0f}{over_mb:>15.0f}{x_real_time:>13.1f}{wait:>16.3f}".format(**result)
        )
        results.append(result)
    print(json.dumps(results))


def measure(way: str, minutes: float, options: argparse.Namespace) -> dict[str, float | str]:
    """One line of the table."""
    from mimo_jax.data import audio
    from mimo_jax.interop import hf

    config, variables = hf.load_tokenizer(options.tokenizer)
    rate = config.sampling_rate
    speech = np.concatenate([audio.load_audio(path, rate) for path in options.audio])
    seconds = max(1, round(minutes * 60))
    run = _stream if way == "streaming" else _whole
    before = _peak_mb()
    waits = run(config, variables, lambda: _blocks(speech, rate, seconds), options)
    return {
        "way": way,
        "minutes": minutes,
        "peak_mb": _peak_mb(),
        "over_mb": _peak_mb() - before,
        "x_real_time": seconds / sum(waits),
        "wait": max(waits),
    }


def _blocks(speech: np.ndarray, rate: int, seconds: int) -> Iterator[np.ndarray]:
    """Blocks of one second, without ever holding more than the recordings."""
    for second in range(seconds):
        index = (second * rate + np.arange(rate)) % len(speech)
        yield speech[index]


def _stream(
    config: TokenizerConfig, variables: Any, blocks: Callable[[], Iterator[np.ndarray]], options: argparse.Namespace
) -> list[float]:
    """Seconds of computing behind each block, and behind the end."""
    from mimo_jax.inference.streaming import StreamingDecoder
    from mimo_jax.inference.streaming_encoder import StreamingEncoder

    encoder = StreamingEncoder(
        config,
        variables,
        segment=options.segment,
        left=options.left,
        right=options.right,
        num_quantizers=options.codebooks,
    )
    decoder = StreamingDecoder(config, variables, chunk=25)

    def compute(block: np.ndarray | None) -> float:
        start = time.perf_counter()
        decoder(encoder(block, last=block is None), last=block is None)
        return time.perf_counter() - start

    compute(next(blocks()))  # compiles: segments and chunks have one shape each
    compute(None)
    return [compute(block) for block in itertools.chain(blocks(), [None])]


def _whole(
    config: TokenizerConfig, variables: Any, blocks: Callable[[], Iterator[np.ndarray]], options: argparse.Namespace
) -> list[float]:
    """Seconds of computing, all of it one wait."""
    from mimo_jax.inference.codec import AudioCodec

    codec = AudioCodec(config, variables)
    wave = np.concatenate(list(blocks()))
    codec.decode(codec.encode([wave], options.codebooks))  # compiles: only this length has all of its shapes
    start = time.perf_counter()
    codec.decode(codec.encode([wave], options.codebooks))
    return [time.perf_counter() - start]


def _peak_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
