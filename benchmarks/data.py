"""Rows per second of the loader against seqio's packing over tf.data and grain's packing of the same records.

    python benchmarks/data.py [--prepared DIR --task tts] [--context 8192] [--batch_rows 8] [--seconds 10]

Without a prepared folder it makes records of its own: log-normal lengths, half of the positions audio. Every contender
runs in a process of its own, reads every record from its file each time, and is measured after a warm-up in CPU
seconds of all its threads, so that neither waiting nor idle cores count; the median of three runs in turns. Prints a
table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimo_jax.data import packing
from mimo_jax.data.iterate import prefetch
from mimo_jax.data.loader import PackedSource
from mimo_jax.data.prepared import MANIFEST, Prepared
from mimo_jax.data.records import Example, from_bytes, to_bytes, write_records
from mimo_jax.data.sequence import Layout, SpecialTokens, expand_audio

# What 8 GPUs of 100,000 positions a second each ask for.
NEEDED = 8 * 100_000
SPECIAL = SpecialTokens(
    end_of_text=151643,
    im_start=151644,
    im_end=151645,
    sosp=151665,
    eosp=151666,
    empty=151667,
    sostm=151670,
    eostm=151671,
    eot=151672,
)
BINS = 64  # rows that grain's packing fills at a time
ROUNDS = 3
WINDOW = 256  # examples that seqio's packing sees at a time


def make_records(folder: pathlib.Path, task: str, count: int, context: int, seed: int = 0) -> None:
    """A prepared folder of ``count`` examples: text, patches, text."""
    rng = np.random.Generator(np.random.Philox(seed))
    layout = Layout(SPECIAL)
    lengths = np.clip(rng.lognormal(6.2, 1.0, count), 16, context).astype(np.int64).tolist()
    counts = [(n - n // 2, n // 2) for n in lengths]

    def examples() -> Iterator[bytes]:
        for number, (text, audio) in enumerate(counts):
            ids = rng.integers(0, SPECIAL.end_of_text, text + audio).astype(np.int32)
            start = text // 2
            ids[start : start + audio] = SPECIAL.empty
            # As skewed as codes are, so that they compress as codes do.
            shape = (audio, layout.group_size, layout.channels)
            codes = np.minimum(rng.geometric(0.01, shape), np.asarray(layout.empty_codes) - 1).astype(np.uint16)
            loss = (np.arange(text + audio) >= start).astype(np.uint8)
            yield to_bytes(Example(str(number), task, ids, codes, loss, (0, start, start + audio)))

    examples_folder = folder / "examples" / task
    examples_folder.mkdir(parents=True)
    write_records(examples_folder / "train-00000-of-00001.array_record", examples())
    np.save(examples_folder / "train-lengths.npy", np.asarray(counts, np.int32))
    manifest = {"layout": dataclasses.asdict(layout), "examples": {task: {"train": count}}}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def ours(folder: str, task: str, context: int, batch_rows: int) -> Iterator[tuple[int, int]]:
    """(rows, used positions) of each batch."""
    source = PackedSource(folder, task, batch_rows, context, cache_bytes=0)
    for _, batch in prefetch(source.batch, 0, depth=2):
        yield len(batch["text"]), np.count_nonzero(batch["segment_ids"])


def grain_packing(folder: str, task: str, context: int, batch_rows: int, kind: str) -> Iterator[tuple[int, int]]:
    """A plain grain pipeline: shuffle, decode, pack, batch."""
    import grain

    prepared = Prepared(folder)
    layout = prepared.layout

    def decode(data: bytes) -> dict[str, np.ndarray]:
        example = from_bytes(data)
        audio = expand_audio(example.text, example.codes, layout)
        return {"text": example.text[:context], "audio": audio[:context], "loss": example.loss[:context]}

    source = grain.sources.ArrayRecordDataSource([str(path) for path in prepared.shards(task, "train")])
    examples = grain.MapDataset.source(source).seed(0).shuffle().repeat(None).map(decode)
    packer: Any = {
        "first-fit": grain.experimental.FirstFitPackIterDataset,
        "best-fit": grain.experimental.BestFitPackIterDataset,
    }[kind]
    rows = packer(
        # Threads that read ahead cost grain CPU time too, and bring it no more rows.
        examples.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct={"text": context, "audio": context, "loss": context},
        num_packing_bins=BINS,
    )
    for batch in rows.batch(batch_rows):
        yield len(batch["text"]), np.count_nonzero(batch["text_segment_ids"])


def seqio_packing(folder: str, task: str, context: int, batch_rows: int) -> Iterator[tuple[int, int]]:
    """seqio's task, trimmed and packed by seqio; it takes 0 for padding, hence ids + 1, and flat features alone.

    Its packing pads as many examples at a time as the longest feature is long, 260 GB here: it gets a window at a time.
    """
    import seqio
    import tensorflow as tf

    from mimo_jax.data import tasks

    tasks.set_prepared(folder)
    layout = Prepared(folder).layout
    dataset = seqio.get_mixture_or_task(tasks.PREFIX + task).get_dataset(
        None, "train", shuffle=True, num_epochs=None, seed=0
    )
    dataset = dataset.map(
        lambda one: {name: tf.reshape(one[name] + 1, [-1]) for name in ("text", "audio", "loss")},
        num_parallel_calls=1,
    )
    lengths = {"text": context, "audio": context * layout.group_size * layout.channels, "loss": context}

    def pack(window: dict[str, tf.data.Dataset]) -> tf.data.Dataset:
        return seqio.utils.trim_and_pack_dataset(tf.data.Dataset.zip(window), lengths)

    packed = dataset.window(WINDOW, drop_remainder=True).flat_map(pack).batch(batch_rows).prefetch(2)
    for batch in packed.as_numpy_iterator():
        yield len(batch["text"]), np.count_nonzero(batch["text_segment_ids"])


CONTENDERS = {
    "this loader": ours,
    "grain, first fit": lambda *a: grain_packing(*a, kind="first-fit"),
    "grain, best fit": lambda *a: grain_packing(*a, kind="best-fit"),
    "seqio": seqio_packing,
}


def cpu_seconds() -> float:
    """User and system time of this process and of those it waited for."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Rates of one contender, after a warm-up of an eighth of the time."""
    batches = CONTENDERS[name](options.prepared, options.task, options.context, options.batch_rows)
    begin = time.perf_counter()
    next(batches)
    while time.perf_counter() - begin < options.seconds / 8:
        next(batches)
    rows = used = 0
    wall, cpu = time.perf_counter(), cpu_seconds()
    while time.perf_counter() - wall < options.seconds:
        more_rows, more_used = next(batches)
        rows, used = rows + more_rows, used + more_used
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {
        "rows_per_second": rows / wall,
        "tokens_per_second": used / wall,
        "tokens_per_cpu_second": used / cpu,
        "fill": used / (rows * options.context),
    }


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """`measure` in a process of its own."""
    arguments = [f"--{key}={value}" for key, value in vars(options).items() if value is not None]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, f"--contender={name}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run of median CPU time."""
    return sorted(runs, key=lambda one: one["tokens_per_cpu_second"])[len(runs) // 2]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", help="prepared folder; by default one is made")
    parser.add_argument("--task", default="tts", help="task whose training examples are packed")
    parser.add_argument("--examples", type=int, default=6000, help="examples to make")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--batch_rows", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of three measurements")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options)), flush=True)
        os._exit(0)  # threads that still make batches would be waited for

    with tempfile.TemporaryDirectory() as scratch:
        if options.prepared is None:
            options.prepared = scratch
            make_records(pathlib.Path(scratch), options.task, options.examples, options.context)
        counts = Prepared(options.prepared).counts(options.task, "train")
        begin = cpu_seconds()
        packing.plan_rows(counts, options.context)
        planning = cpu_seconds() - begin
        # In turns, so that what else the machine does falls on all of them.
        rounds = [{name: run(name, options) for name in CONTENDERS} for _ in range(ROUNDS)]
    results = {name: median([one[name] for one in rounds]) for name in CONTENDERS}

    own = results["this loader"]
    print(f"{len(counts)} examples, mean length {counts.sum(axis=1).mean():.0f}, context {options.context}")
    print(f"{'':<20}{'rows/s':>10}{'tokens/s':>14}{'tokens/CPU s':>16}{'fill':>10}{'ours is x':>12}")
    for name, one in results.items():
        ratio = own["tokens_per_cpu_second"] / one["tokens_per_cpu_second"]
        print(
            f"{name:<20}{one['rows_per_second']:>10.1f}{one['tokens_per_second']:>14.0f}"
            f"{one['tokens_per_cpu_second']:>16.0f}{one['fill']:>10.4f}{ratio:>12.2f}"
        )
    cores = NEEDED / own["tokens_per_cpu_second"]
    print(f"planning the rows, once: {1e6 * planning / len(counts):.1f} CPU s per million examples")
    print(f"8 GPUs at 100,000 positions/s each need {cores:.2f} cores")
    best = max(one["tokens_per_cpu_second"] for name, one in results.items() if name != "this loader")
    figures = {
        "ratio_per_core": own["tokens_per_cpu_second"] / best,
        "fill": own["fill"],
        "tokens_per_second": own["tokens_per_second"],
        "tokens_per_cpu_second": own["tokens_per_cpu_second"],
        "cores_for_8_gpus": cores,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
