"""Preparation: hours of audio per core-hour of each stage, and how two workers compare with one.

    python benchmarks/preparation.py [--hours 1] [--gin_file gin/preparation/web_audio.gin] [--leave_out recognise]

Makes recordings of five minutes from synthesised utterances and pauses (in several voices, at several noise levels),
curates them with the chain of the gin file and encodes what is left with an audio tokenizer of the quickstart's size
(random weights: the work is the same). Each once with one worker and once with two. Prints the tables that the pipeline
itself prints, and as the last line one JSON object; `scaling` is one worker's wall seconds over two workers', and its
entry `machine` that of two processes that only compute: two cores may be two threads of one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from mimo_jax import cli
from mimo_jax.data import audio
from mimo_jax.data.corpus.build import build_corpus
from mimo_jax.data.manifest import Record
from mimo_jax.data.manifest_files import read_manifest, write_manifest
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.interop import hf
from mimo_jax.preparation import curated, shards
from mimo_jax.preparation.codes import CodesSink, Tokenize
from mimo_jax.preparation.elements import Stage
from mimo_jax.preparation.runner import LocalRunner
from mimo_jax.preparation.sources.opening import open_source

SECONDS = 300.0


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="of recordings")
    parser.add_argument("--gin_file", default="preparation/web_audio.gin", help="gives the chain")
    parser.add_argument("--leave_out", nargs="*", default=["recognise"], help="names of stages")
    options = parser.parse_args()
    place = pathlib.Path(tempfile.mkdtemp(prefix="preparation-"))
    try:
        make_recordings(place / "recordings", round(options.hours * 3600 / SECONDS))
        tokenizer = make_tokenizer(place / "tokenizer")
        chain, decode = stages(options.gin_file, options.leave_out)
        result: dict[str, Any] = {"hours": options.hours, "cores": len(os.sched_getaffinity(0))}
        for workers in (1, 2):
            out = place / f"workers{workers}"
            result[f"workers{workers}"] = measure(place / "recordings", out, chain, decode, tokenizer, workers)
        one, two = result["workers1"], result["workers2"]
        result["scaling"] = {
            name: round(one[name]["wall_seconds"] / two[name]["wall_seconds"], 2) for name in ("curate", "encode")
        }
        result["scaling"]["machine"] = round(2 * busy(1) / busy(2), 2)
        print(json.dumps(result))
    finally:
        shutil.rmtree(place)


def make_recordings(out: pathlib.Path, count: int) -> None:
    """``count`` recordings of five minutes, and their manifest."""
    sizes = {"core_validation": 0, "core_test_voices": 0, "wide_validation": 0, "wide_test_voices": 0, "texts": 1}
    with contextlib.redirect_stderr(io.StringIO()):
        build_corpus(out / "parts", core_utterances=1, wide_utterances=120 * count, **sizes)
    parts = [r for r in read_manifest(out / "parts") if r.subset == "wide"]
    rng = np.random.default_rng(0)
    samples = int(SECONDS * audio.SAMPLE_RATE)
    records = []
    for number in range(count):
        waves, length = [], 0
        while length < samples:
            wave = audio.load_audio(out / "parts" / parts[int(rng.integers(len(parts)))].audio)
            pause = np.zeros(int(rng.uniform(0.2, 1.5) * audio.SAMPLE_RATE), np.float32)
            waves += [wave, pause]
            length += len(wave) + len(pause)
        whole = np.concatenate(waves)[:samples]
        whole += (10 ** (-rng.uniform(35, 70) / 20) * rng.standard_normal(samples)).astype(np.float32)
        audio.write_flac(out / f"{number}.flac", whole)
        records.append(Record(f"{number}", f"{number}.flac", split="train"))
    write_manifest(out / "manifest.jsonl", records)


def make_tokenizer(out: pathlib.Path) -> pathlib.Path:
    """A random audio tokenizer of the quickstart's size, in the released layout."""
    import jax
    import jax.numpy as jnp

    from mimo_jax.models.layers import unbox
    from mimo_jax.models.tokenizer import MimoAudioTokenizer

    cli.parse_gin(["models/tokenizer_tiny.gin"], [])
    config = bound("%TOKENIZER")
    mel = jnp.zeros((1, 64, config.n_mels))
    variables = unbox(MimoAudioTokenizer(config).init(jax.random.key(0), mel, jnp.full((1,), 64)))
    hf.save_tokenizer(out, config, jax.device_get(variables))
    return out


def bound(name: str) -> Any:
    """What a gin parameter is bound to, made."""
    import gin

    value = gin.query_parameter(name)
    return (
        tuple(one.scoped_configurable_fn() for one in value)
        if isinstance(value, tuple)
        else value.scoped_configurable_fn()
    )


def stages(gin_file: str, leave_out: list[str]) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """(stages of curation, stages before the audio tokenizer) as the gin file binds them."""
    import gin

    with gin.unlock_config():
        cli.parse_gin([gin_file], [])
    curate, decode = (bound(f"prepare.prepare.{name}") for name in ("curate", "decode"))
    return tuple(stage for stage in curate if stage.name not in leave_out), decode


def busy(processes: int) -> float:
    """Wall seconds of so many processes that each do the same Fourier transforms."""
    code = "import numpy as np; x = np.ones(1 << 14)\nfor _ in range(20000): np.fft.rfft(x)"
    start = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    for process in running:
        process.wait()
    return time.perf_counter() - start


def measure(
    source: pathlib.Path,
    out: pathlib.Path,
    chain: tuple[Stage, ...],
    decode: tuple[Stage, ...],
    tokenizer: pathlib.Path,
    workers: int,
) -> dict[str, Any]:
    """Both passes with so many workers: wall seconds and what each stage took."""
    first = shards.Pass("curate", open_source(source, items_per_shard=1), chain, curated.CuratedSink(out / "curated"))
    names, curate = timed(first, workers)
    curated.finish(out / "curated", names, 1 << 18)
    tokenize = Tokenize(functools.partial(AudioCodec.load, str(tokenizer)), (1024, 1024, *[128] * 6), "random", 64)
    spoken = curated.CuratedSource(out / "curated", tuple(names))
    _, encode = timed(shards.Pass("encode", spoken, (*decode, tokenize), CodesSink(out / "codes")), workers)
    return {"curate": curate, "encode": encode}


def timed(one: shards.Pass, workers: int) -> tuple[list[str], dict[str, Any]]:
    """Runs a pass and prints its table; (names of its shards, figures)."""
    found = one.source.shards()
    names = [shard.name for shard in found]
    start = time.perf_counter()
    LocalRunner().run(one, found, workers, lambda account: None)
    wall = time.perf_counter() - start
    times = shards.read_times(one.sink.folder, names)
    account = shards.total_account(one.sink.folder, names)
    print(f"{one.name}, {workers} worker(s), {wall:.1f} s: {account}\n{shards.speed_table(times)}\n", flush=True)
    speeds = {
        name: round(meter.audio_seconds / meter.core_seconds, 1)
        for name, meter in times.items()
        if meter.core_seconds and meter.audio_seconds
    }
    return names, {"wall_seconds": round(wall, 1), "audio_hours_per_core_hour": speeds}


if __name__ == "__main__":
    main()
