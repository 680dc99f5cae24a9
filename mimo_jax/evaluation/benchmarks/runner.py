"""Answers the items of a benchmark with a model, in batches; what a line of answers holds decides nothing but itself.

An answer follows from the model, the item and the run's seed: not from the batch, the number of workers, or where a
run was interrupted.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mimo_jax.evaluation.benchmarks.base import Benchmark, Builder, Item, integer_of, readable
from mimo_jax.evaluation.benchmarks.store import AnswerStore, file_name
from mimo_jax.inference.decoding import Decoding
from mimo_jax.inference.jobs import Job, Jobs

WAVES = "wav"
_KEPT_RECORDINGS = 2048


class Model(Protocol):
    """What a benchmark asks of a model: a `MimoAudio`, or what stands in for one."""

    @property
    def sample_rate(self) -> int:
        """Of waveforms in and out, Hz."""

    @property
    def config(self) -> Any:
        """Has `group_size`."""

    @property
    def codec(self) -> Any:
        """Has `decode`: lists of codes [frames, C] -> waveforms."""

    def encode(self, audios: Sequence[Any]) -> list[np.ndarray]:
        """Codes [frames, C] of waveforms float32 [samples]."""

    def answer(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """An `Answer` for each job. Raises ValueError for a job that cannot run."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a run.

    Attributes:
      seed: of the random choices; each item's own seed follows from it, the task and the item's id.
      batch: items answered together.
      worker, workers: this process answers every `workers`-th item from the `worker`-th on.
      max_new: longest answer in positions where the task's own limit is higher; None = the task's own.
    """

    seed: int = 0
    batch: int = 32
    worker: int = 0
    workers: int = 1
    max_new: int | None = None


class Recordings:
    """Codes of recordings by path, the last ones kept."""

    def __init__(self, model: Model):
        self._model = model
        self._codes: OrderedDict[str, np.ndarray] = OrderedDict()
        self._errors: dict[str, str] = {}

    def load(self, paths: Sequence[str]) -> None:
        """Encodes those that are not there yet, all together."""
        from mimo_jax.data.audio import AudioError, load_audio

        waves = {}
        for path in dict.fromkeys(paths):
            if path in self._codes:
                self._codes.move_to_end(path)
            elif path not in self._errors:
                try:
                    waves[path] = load_audio(path, self._model.sample_rate)
                except AudioError as error:
                    self._errors[path] = str(error)
        if waves:
            self._codes.update(zip(waves, self._model.encode(list(waves.values())), strict=True))

    def trim(self) -> None:
        """Forgets the oldest."""
        while len(self._codes) > _KEPT_RECORDINGS:
            self._codes.popitem(last=False)

    def codes(self, path: str) -> np.ndarray:
        """Codes int32 [frames, C]. Raises ValueError for a recording that cannot be used."""
        if path in self._errors:
            raise ValueError(self._errors[path])
        return self._codes[path]

    def encode(self, audios: Sequence[Any]) -> list[np.ndarray]:
        """Codes of recordings by path; codes pass through."""
        return [audio if isinstance(audio, np.ndarray) else self.codes(str(audio)) for audio in audios]


def settings(benchmark: Benchmark, options: Options, **identities: Any) -> dict[str, Any]:
    """What decides the answers of a run: goes to run.json. `identities`: of model and data."""
    return {
        "task": benchmark.name,
        "seed": options.seed,
        "decoding": dataclasses.asdict(_limited(benchmark.decoding, options.max_new)),
        **identities,
    }


def generate(
    model: Model, benchmark: Benchmark, items: Sequence[Item], store: AnswerStore, options: Options
) -> dict[str, str]:
    """Answers the items that have no answer yet.

    Returns:
      id -> reason, of this worker's items that cannot be answered; the store keeps them for scoring.
    """
    done = store.answers()
    mine = [item for item in items[options.worker :: options.workers] if item.id not in done]
    recordings = Recordings(model)
    builder = Builder(Jobs(recordings.encode, model.config.group_size), recordings.codes)
    failures: dict[str, str] = {}
    started = time.monotonic()
    for start in range(0, len(mine), options.batch):
        chunk = mine[start : start + options.batch]
        recordings.load([path for item in chunk for path in item.audio])
        if benchmark.build is None:
            lines = _reconstructed(model, benchmark, chunk, recordings, store.folder, failures)
        else:
            lines = _answered(model, benchmark, chunk, builder, store.folder, failures, options)
        store.add(lines)
        recordings.trim()
        count = start + len(chunk)
        rate = count / (time.monotonic() - started)
        print(f"{benchmark.name}: {count} of {len(mine)} items, {rate:.1f}/s", file=sys.stderr)
    store.fail(failures)
    return failures


def item_seed(benchmark: Benchmark, item: Item, seed: int) -> int:
    """The seed of an item's random choices."""
    return integer_of(seed, benchmark.name, item.id)


def _limited(decoding: Decoding, max_new: int | None) -> Decoding:
    if max_new is None or (decoding.max_new is not None and decoding.max_new <= max_new):
        return decoding
    return dataclasses.replace(decoding, max_new=max_new, min_new=min(decoding.min_new, max_new - 1))


def _answered(
    model: Model,
    benchmark: Benchmark,
    chunk: Sequence[Item],
    builder: Builder,
    folder: Path,
    failures: dict[str, str],
    options: Options,
) -> list[dict[str, Any]]:
    assert benchmark.build is not None
    jobs: dict[str, Job] = {}
    for item in chunk:
        try:
            job = benchmark.build(item, builder, item_seed(benchmark, item, options.seed))
        except ValueError as error:
            failures[item.id] = str(error)
            continue
        jobs[item.id] = dataclasses.replace(job, decoding=_limited(benchmark.decoding, options.max_new))
    answers = dict(zip(jobs, _each(model, jobs, failures), strict=True))
    lines = []
    for name, made in answers.items():
        if made is None:
            continue
        job = jobs[name]
        line = {
            **_line(benchmark, name, job.seed),
            "prompt": readable(job.segments),
            "decoding": dataclasses.asdict(job.decoding),
            "text": made.text,
            "thinking": made.thinking,
            "positions": made.positions,
            "stop_reason": made.stop_reason,
        }
        try:
            lines.append(line | _sound(made.wave if job.decoding.spoken else None, name, folder, model.sample_rate))
        except ValueError as error:  # a wave that is not finite
            failures[name] = str(error)
    return lines


def _each(model: Model, jobs: Mapping[str, Job], failures: dict[str, str]) -> list[Any]:
    """Answers of all jobs; where one cannot run, it is found by asking one by one."""
    if not jobs:
        return []
    try:
        return list(model.answer(list(jobs.values())))
    except ValueError:
        out: list[Any] = []
        for name, job in jobs.items():
            try:
                out += model.answer([job])
            except ValueError as error:
                failures[name] = str(error)
                out.append(None)
        return out


def _reconstructed(
    model: Model,
    benchmark: Benchmark,
    chunk: Sequence[Item],
    recordings: Recordings,
    folder: Path,
    failures: dict[str, str],
) -> list[dict[str, Any]]:
    codes = {}
    for item in chunk:
        try:
            codes[item.id] = recordings.codes(item.audio[0])
        except ValueError as error:
            failures[item.id] = str(error)
    waves = model.codec.decode(list(codes.values())) if codes else []
    lines = []
    for name, wave in zip(codes, waves, strict=True):
        try:
            sound = _sound(wave, name, folder, model.sample_rate)
        except ValueError as error:  # a wave that is not finite
            failures[name] = str(error)
        else:
            lines.append({**_line(benchmark, name, 0), "text": "", **sound})
    return lines


def _line(benchmark: Benchmark, name: str, seed: int) -> dict[str, Any]:
    return {"id": name, "task": benchmark.name, "seed": seed, "parser": benchmark.parser}


def _sound(wave: np.ndarray | None, name: str, folder: Path, sample_rate: int) -> dict[str, Any]:
    """The recording of an answer is written before its line, so that a line's recording is always there."""
    from mimo_jax.data.audio import write_wav

    values: dict[str, Any] = {"sample_rate": sample_rate}
    if wave is not None:
        values["seconds"] = round(len(wave) / sample_rate, 6)
        if len(wave):
            values["audio"] = f"{WAVES}/{file_name(name)}.wav"
            write_wav(folder / values["audio"], wave, sample_rate)
    return values
