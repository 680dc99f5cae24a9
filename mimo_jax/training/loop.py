"""The loop that every stage shares: batches in order, one jitted step, evaluation, checkpoints, log lines."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.data.iterate import prefetch
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training.checkpoints import Checkpoints, Meta
from mimo_jax.training.metrics import MetricWriter
from mimo_jax.training.schedule import Budget
from mimo_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Batches as a pure function of the step."""

    def batch(self, step: int) -> dict[str, np.ndarray]: ...

    def token_counts(self, step: int) -> tuple[int, int]:
        """(text positions, audio patches) of the global batch of a step."""
        ...


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps; 0 = only at the end.

    Attributes:
      log: a line, a JSONL record.
      evaluate: held-out evaluation over `evaluation_batches` batches.
      checkpoint: a checkpoint.
      prefetch: batches that lie on the device ahead of their step.
      workers: processes that make batches; 0 makes them in threads of this one.
      threads: that make batches, of each such process; see `data.iterate.prefetch`.
    """

    log: int = 20
    evaluate: int = 0
    evaluation_batches: int = 4
    checkpoint: int = 500
    prefetch: int = 3
    workers: int = 0
    threads: int = 1


class StopRequest:
    """Set by SIGTERM (preemption) or Ctrl-C: the loop saves and exits. A second Ctrl-C kills at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        self.event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Evaluation:
    """Held-out evaluation: sums and counts over fixed batches."""

    def __init__(self, evaluate: Callable[..., Any], sources: Mapping[str, Source], batches: int, mesh: Mesh):
        self._evaluate, self._sources, self._batches, self._mesh = evaluate, sources, batches, mesh

    def __call__(self, state: TrainState) -> dict[str, float]:
        results: dict[str, float] = {}
        for name, source in self._sources.items():
            sums: dict[str, float] = collections.defaultdict(float)
            counts: dict[str, float] = collections.defaultdict(float)
            for step in range(self._batches):
                batch = mesh_lib.put_batch(source.batch(step), self._mesh)
                for key, (total, count) in jax.device_get(self._evaluate(state.params, state.mutable, batch)).items():
                    sums[key] += float(np.sum(total))
                    counts[key] += float(np.sum(count))
            results |= {f"{name}/{key}": sums[key] / counts[key] for key in sums if counts[key] > 0}
        return results


def run(
    state: TrainState,
    meta: Meta,
    *,
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    source: Source,
    evaluation: Evaluation,
    budget: Budget,
    intervals: Intervals,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    mesh: Mesh,
    name: str,
    max_skipped: int = 50,
) -> TrainState:
    """Trains until the budget is spent, then evaluates and saves.

    Raises:
      UserError: more than `max_skipped` updates had a non-finite loss or gradient.
      SystemExit: code 75 after a requested stop; the state is saved.
    """
    bar = _ProgressBar(name, budget)
    text_tokens, audio_tokens = meta.text_tokens, meta.audio_tokens
    window_start, window_steps = time.perf_counter(), 0

    def meta_now(step: int, finished: bool) -> Meta:
        return dataclasses.replace(
            meta, step=step, text_tokens=text_tokens, audio_tokens=audio_tokens, finished=finished
        )

    def evaluate(step: int) -> None:
        results = evaluation(state)
        if results:
            writer.write(step, _counters(name, text_tokens, audio_tokens) | results)
            logger.info("%s step %d held out: %s", name, step, _format(results))

    step = meta.step
    place = functools.partial(mesh_lib.put_batch, mesh=mesh)
    reading = prefetch(source.batch, step, intervals.prefetch, intervals.workers, place, intervals.threads)
    with StopRequest() as stop, contextlib.closing(reading) as batches:
        while budget.progress(step, text_tokens + audio_tokens) < 1.0:
            progress = budget.progress(step, text_tokens + audio_tokens)
            number, batch = next(batches)
            state, metrics = train_step(state, batch, np.float32(progress))
            text, audio = source.token_counts(number)
            text_tokens, audio_tokens, step = text_tokens + text, audio_tokens + audio, number + 1
            window_steps += 1

            if intervals.log and step % intervals.log == 0:
                values = {f"train/{key}": float(value) for key, value in jax.device_get(metrics).items()}
                seconds = (time.perf_counter() - window_start) / window_steps
                window_start, window_steps = time.perf_counter(), 0
                if values["train/skipped"] > max_skipped:
                    raise UserError(
                        f"{name}: {int(values['train/skipped'])} updates had a non-finite loss or gradient (limit "
                        f"{max_skipped}); lower the learning rate or inspect the batches before step {step}"
                    )
                writer.write(
                    step, _counters(name, text_tokens, audio_tokens) | values | {"train/step_seconds": seconds}
                )
                bar.update(budget.progress(step, text_tokens + audio_tokens), step, values["train/loss"], seconds)
            done = budget.progress(step, text_tokens + audio_tokens) >= 1.0
            if intervals.evaluate and step % intervals.evaluate == 0 and not done:
                evaluate(step)
            if stop.event.is_set() and not done:
                checkpoints.save(state, meta_now(step, finished=False))
                checkpoints.wait()
                logger.warning("%s: asked to stop; saved at step %d, start again to go on", name, step)
                sys.exit(EXIT_PREEMPTED)
            if intervals.checkpoint and step % intervals.checkpoint == 0 and not done:
                checkpoints.save(state, meta_now(step, finished=False))
    evaluate(step)
    checkpoints.save(state, meta_now(step, finished=True))
    checkpoints.wait()
    bar.close()
    return state


def _counters(name: str, text_tokens: int, audio_tokens: int) -> dict[str, float | int | str]:
    return {"stage": name, "text_tokens": text_tokens, "audio_tokens": audio_tokens}


def _format(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in values.items())


class _ProgressBar:
    """Share of the budget, step, loss, seconds a step."""

    def __init__(self, name: str, budget: Budget):
        from tqdm import tqdm

        self._bar = tqdm(
            total=1.0,
            desc=name,
            bar_format="{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=2.0,
        )

    def update(self, progress: float, step: int, loss: float, seconds: float) -> None:
        self._bar.set_postfix_str(f"step {step} loss {loss:.4f} {seconds:.3f} s/step", refresh=False)
        self._bar.update(progress - self._bar.n)

    def close(self) -> None:
        self._bar.update(1.0 - self._bar.n)
        self._bar.close()
