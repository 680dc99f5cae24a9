"""The endpoint under a crowd: requests of all kinds at once, a fifth of them malformed, some clients that hang up.

    python benchmarks/serving.py [--requests 200] [--rounds 2] [--max_batch 16]

A tiny model of random weights that answers with words and speech is served by `python -m mimo_jax.serve` in a process
of its own. All requests of a round are sent at the same time. Every good one must be answered with what the same model
gives alone for the same seed (text and sound of whole answers bit for bit, streamed sound up to one step of 16 bits),
every bad one with 4xx and its reason, after every round nothing may be left running, and memory must not grow from one
round to the next. Prints a table and, as the last line, one JSON object; exits with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from crowd.cases import crowd, learn_voices  # beside this file
from crowd.sending import faults, idle, round_of
from crowd.tiny_model import LIMITS, start, write_model


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max_batch", type=int, default=16)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import psutil

    result: dict[str, Any] = {"requests": options.requests, "max_batch": options.max_batch}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        begun = time.perf_counter()
        process, url = start(folder, f"--max_batch={options.max_batch}", f"--max_requests={options.requests + 8}")
        try:
            result["start_seconds"] = round(time.perf_counter() - begun, 1)
            from mimo_jax.inference.tasks import MimoAudio

            model = MimoAudio.load(folder / "lm", folder / "tokenizer", max_positions=LIMITS["max_positions"])
            learn_voices(model, folder)
            cases = crowd(options.requests)
            expected = [None if case.alone is None else case.alone(model) for case in cases]
            memory = [psutil.Process(process.pid).memory_info().rss]
            print(f"{'round':<8}{'kind':<24}{'requests':>9}{'wrong':>7}{'median s':>10}{'longest s':>11}")
            found: list[str] = []
            for number in range(1, options.rounds + 1):
                begun = time.perf_counter()
                replies = asyncio.run(round_of(url, cases))
                seconds = time.perf_counter() - begun
                idle(url)
                memory.append(psutil.Process(process.pid).memory_info().rss)
                these = faults(cases, replies, expected)
                found += these
                by_kind: dict[str, list[float]] = collections.defaultdict(list)
                for case, (_, spent) in zip(cases, replies, strict=True):
                    by_kind[case.kind].append(spent)
                for kind, spent in sorted(by_kind.items()):
                    off = sum(f"({kind})" in fault for fault in these)
                    median = statistics.median(spent)
                    print(f"{number:<8}{kind:<24}{len(spent):>9}{off:>7}{median:>10.2f}{max(spent):>11.2f}")
                print(f"round {number}: {seconds:.1f} s, {options.requests / seconds:.1f} requests/s, ", end="")
                print(f"memory {memory[-1] / 1e6:.0f} MB, {len(these)} wrong")
                result[f"round{number}_seconds"], result[f"round{number}_wrong"] = round(seconds, 2), len(these)
            result["bad"] = sum(case.kind == "bad" for case in cases)
            result["hang_ups"] = sum(case.hang_up for case in cases)
            result["sound_samples"] = sum(len(r.sound) for r in expected if r is not None and r.sound is not None)
            result["memory_megabytes"] = [round(size / 1e6, 1) for size in memory]
        finally:
            process.terminate()
            result["exit_code"] = process.wait(60)
    for fault in found:
        print(fault, file=sys.stderr)
    print(json.dumps(result))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
