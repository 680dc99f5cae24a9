"""The loop that every stage shares: batches in order, one jitted step, evaluation, checkpoints, log lines."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.data.iterate import prefetch
from mimo_jax.parallel import mesh as mesh_lib
from mimo_jax.training import guards as guards_lib
from mimo_jax.training.checkpoints import Checkpoints
from mimo_jax.training.evaluation import Evaluation
from mimo_jax.training.guards import Guards, Verdict
from mimo_jax.training.meta import Meta
from mimo_jax.training.metrics import MetricWriter
from mimo_jax.training.profiling import Profiler
from mimo_jax.training.progress import Display, Flops, Speed
from mimo_jax.training.retention import Keep
from mimo_jax.training.schedule import Budget
from mimo_jax.training.state import TrainState
from mimo_jax.training.stopping import MaintenanceNotice, StopRequest
from mimo_jax.training.watchdog import Watchdog

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
      evaluate_tokens: evaluation at the first step behind each multiple of so many positions (text and audio), too.
      checkpoint: a checkpoint.
      prefetch: batches that lie on the device ahead of their step.
      workers: processes that make batches; 0 makes them in threads of this one.
      threads: that make batches, of each such process; see `data.iterate.prefetch`.
    """

    log: int = 20
    evaluate: int = 0
    evaluate_tokens: float | None = None
    evaluation_batches: int = 4
    checkpoint: int = 500
    prefetch: int = 3
    workers: int = 0
    threads: int = 1


@dataclasses.dataclass
class _Step:
    """A dispatched step whose figures have not been looked at.

    Attributes:
      metrics: device arrays until they are fetched.
      positions: (text, audio) that are still to be counted for its speed.
      logs: whether a line is still to be written.
    """

    step: int
    data_step: int
    counters: dict[str, float | int | str]
    progress: float
    metrics: dict[str, Any]
    positions: tuple[int, int] | None = None
    logs: bool = False


@dataclasses.dataclass
class Loop:
    """One run of a stage. `run` trains until the budget is spent.

    Attributes:
      state, meta: where to begin.
      train_step: `step(state, batch, progress, loss_limit) -> (state, metrics)`; takes over the state's memory.
      abstract_state: what a rollback restores into.
      batch_rows: rows of a global batch.
      open_writer: `open_writer(step)` gives the writer of figures behind a restored step.
      flops: see `progress.Flops`.
    """

    name: str
    model_dir: str
    state: TrainState
    meta: Meta
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    abstract_state: TrainState
    source: Source
    batch_rows: int
    evaluation: Evaluation
    budget: Budget
    intervals: Intervals
    guards: Guards
    checkpoints: Checkpoints
    keep: Keep
    open_writer: Callable[[int], MetricWriter]
    profiler: Profiler
    flops: Flops
    mesh: Mesh

    def __post_init__(self) -> None:
        self._writer = self.open_writer(self.meta.step)
        self._display = Display(self.name)
        self._watchdog = Watchdog(self.model_dir, self.guards.watchdog_seconds, self.guards.watchdog_exit)
        if not self.meta.started:
            self.meta = dataclasses.replace(self.meta, started=time.time())
        # A batch of another size begins behind the rows that were used: at most one batch of them is passed over.
        used = self.meta.data_rows
        self._data_step = self.meta.step if used is None else -(-used // self.batch_rows)
        self._speed = Speed(self.flops, self.meta.started, self.meta.useful_seconds, self._spent())
        self._first, self._saving_due, self._saved_step = True, False, self.meta.step
        self._remember(self.meta)

    def _remember(self, meta: Meta) -> None:
        """Goes on from what a checkpoint remembers."""
        self.meta = dataclasses.replace(meta, metrics={})
        self._monitor = guards_lib.Monitor(self.guards, meta.guards)
        self._pending = collections.deque(
            _Step(0, int(data_step), {}, 0.0, {"loss": loss, "skipped": skipped})
            for data_step, loss, skipped in meta.pending
        )

    def _spent(self) -> float:
        return self.budget.progress(self.meta.step, self.meta.text_tokens, self.meta.audio_tokens)

    def run(self) -> TrainState:
        """Trains until the budget is spent, then evaluates and saves.

        Raises:
          UserError: too many updates were skipped, or a checkpoint could not be written.
          SystemExit: code 75 after a requested stop; the state is saved.
        """
        intervals, place = self.intervals, functools.partial(mesh_lib.put_batch, mesh=self.mesh)
        reading = prefetch(
            self.source.batch, self._data_step, intervals.prefetch, intervals.workers, place, intervals.threads
        )
        with (
            contextlib.closing(self),
            self._watchdog,
            StopRequest() as stop,
            MaintenanceNotice(),
            contextlib.closing(reading) as batches,
        ):
            while True:
                done = self._spent() >= 1.0
                verdict = self._look(0 if done else guards_lib.LAG)
                if verdict is not Verdict.FINE:
                    self._go_back_or_stop(verdict)
                elif done:
                    break
                else:
                    self._one_step(batches)
                    if self._spent() < 1.0:
                        self._between_steps(stop)
            self._evaluate()
            self._save(finished=True)
            self.checkpoints.wait()
            self._write_save_figures()
        return self.state

    def close(self) -> None:
        """Ends the display, the figures' files and an open trace."""
        self._display.close()
        self._writer.close()
        self.profiler.close()

    def _one_step(self, batches: Iterator[tuple[int, Any]]) -> None:
        start = time.perf_counter()
        data_step, batch = next(batches)
        self._speed.waited(time.perf_counter() - start)
        progress, limit, number = self._spent(), self._monitor.loss_limit(), self.meta.step
        if self._first:
            logger.info("%s: compiling the step, which may take minutes the first time", self.name)
            compiling = time.monotonic()
        with self.profiler.step(number):
            self.state, metrics = self.train_step(self.state, batch, np.float32(progress), np.float32(limit))
        self.profiler.after(number, metrics)
        text, audio = self.source.token_counts(data_step)
        self._data_step = data_step + 1
        self.meta = dataclasses.replace(
            self.meta,
            step=number + 1,
            text_tokens=self.meta.text_tokens + text,
            audio_tokens=self.meta.audio_tokens + audio,
            data_rows=self._data_step * self.batch_rows,
            metrics={},
        )
        logs = bool(self.intervals.log) and self.meta.step % self.intervals.log == 0
        figures: dict[str, Any] = metrics | ({"loss_limit": limit} if math.isfinite(limit) else {})
        step = _Step(number + 1, data_step, self._counters(), self._spent(), figures, (text, audio), logs)
        self._pending.append(step)
        if self._first:  # it was compiled: its time tells nothing
            jax.block_until_ready(metrics)
            self._speed.compiled()
            logger.info(
                "%s: step %d done, %.0f s with compilation", self.name, number + 1, time.monotonic() - compiling
            )
            self._first, step.positions = False, None
        self._watchdog.beat(self.meta.step)

    def _counters(self) -> dict[str, float | int | str]:
        return {"stage": self.name, "text_tokens": self.meta.text_tokens, "audio_tokens": self.meta.audio_tokens}

    def _between_steps(self, stop: StopRequest) -> None:
        self.checkpoints.check()
        self._write_save_figures()
        if self._evaluation_due():
            self._evaluate()
        # Data steps only rise, also when the run goes back: all processes agree about them.
        if stop.asked(self._data_step):
            self._save()
            self.checkpoints.wait()
            logger.warning("%s: asked to stop; saved at step %d, start again to go on", self.name, self.meta.step)
            sys.exit(EXIT_PREEMPTED)
        interval = self.intervals.checkpoint
        self._saving_due |= bool(interval) and self.meta.step % interval == 0
        # The way back is to lead before skipped updates: while some have not been looked at, a save waits.
        if self._saving_due and not self._skips_pending():
            self._save()

    def _evaluation_due(self) -> bool:
        every, milestone = self.intervals.evaluate, self.intervals.evaluate_tokens
        if every and self.meta.step % every == 0:
            return True
        if not milestone:
            return False
        text, audio = self.source.token_counts(self._data_step - 1)
        seen = self.meta.text_tokens + self.meta.audio_tokens
        return seen // milestone > (seen - text - audio) // milestone

    # --- figures of steps: fetched and looked at some steps late ---

    def _fetch(self, steps: Iterable[_Step]) -> None:
        for step in steps:
            wanted = step.metrics if step.logs else {key: step.metrics[key] for key in ("loss", "skipped")}
            step.metrics = {key: float(value) for key, value in jax.device_get(wanted).items()}
            if step.positions is not None:  # it is done only now: the loop runs ahead of the devices
                self._speed.step(*step.positions)
                step.positions = None
            if step.logs:
                self._log(step)
                step.logs = False

    def _log(self, step: _Step) -> None:
        values = step.counters | {f"train/{key}": value for key, value in step.metrics.items()}
        values |= self._speed.figures(step.progress)
        self._writer.write(step.step, values)
        self._display.update(step.step, step.progress, values)

    def _skips_pending(self) -> bool:
        self._fetch(self._pending)
        return self._pending[-1].metrics["skipped"] > self._monitor.skipped

    def _look(self, leave: int) -> Verdict:
        """Looks at the steps under way but the last `leave`; ends at the first with a verdict."""
        while len(self._pending) > leave:
            self._looked_at = step = self._pending.popleft()
            self._fetch([step])
            loss, skipped = step.metrics["loss"], int(step.metrics["skipped"])
            if skipped > self._monitor.skipped:
                logger.warning(
                    "%s: update skipped, loss %.6g, data step %d; %d skipped so far",
                    *(self.name, loss, step.data_step, skipped),
                )
            verdict = self._monitor.look(loss, skipped)
            if verdict is not Verdict.FINE:
                return verdict
        return Verdict.FINE

    def _go_back_or_stop(self, verdict: Verdict) -> None:
        self._watchdog.pause()
        self.checkpoints.wait()
        if verdict is Verdict.IN_ROW and self.meta.rollbacks < self.guards.rollbacks and self._go_back():
            return
        bad = self._looked_at.data_step
        path = guards_lib.save_batch(self.model_dir, bad, self.source.batch(bad))
        in_row, skipped = self._monitor.in_row, self._monitor.skipped
        limit = (
            f"{in_row} updates in a row (limit {self.guards.max_in_row})"
            if verdict is Verdict.IN_ROW
            else f"{skipped} updates (limit {self.guards.max_skipped})"
        )
        raise UserError(
            f"{self.name}: {limit} were skipped for a non-finite loss or gradient, or a loss above the limit; the last "
            f"had loss {self._looked_at.metrics['loss']:.6g} on data step {bad}. Its batch is saved: {path}; to see it "
            f"run python -m mimo_jax.replay --model_dir={self.model_dir} --data_step={bad}. Lower the learning rate, "
            "mend the data, or set guards.Guards.rollbacks to pass over them"
        )

    def _go_back(self) -> bool:
        """To the last checkpoint; the data since are passed over. False without a checkpoint."""
        self.profiler.close()
        restored = self.checkpoints.restore_latest(self.abstract_state)
        if restored is None:
            return False
        rollbacks, failed = self.meta.rollbacks + 1, self.meta.step
        self.state, meta = restored
        self._remember(meta)
        self._monitor.in_row = 0
        self._saved_step, self._saving_due = meta.step, False
        self.meta = dataclasses.replace(self.meta, rollbacks=rollbacks, data_rows=self._data_step * self.batch_rows)
        self._speed.restored(meta.useful_seconds)
        self._writer.close()
        self._writer = self.open_writer(meta.step)
        logger.warning(
            "%s: back from step %d to the checkpoint of step %d (%d of %d times); goes on with data step %d",
            *(self.name, failed, meta.step, rollbacks, self.guards.rollbacks, self._data_step),
        )
        return True

    # --- what happens between steps ---

    def _evaluate(self) -> None:
        self._watchdog.pause()
        self._fetch(self._pending)
        start = time.perf_counter()
        results = self.evaluation(self.state)
        self._speed.away(time.perf_counter() - start)
        if results:
            self.keep.check_metric(results)
            self.meta = dataclasses.replace(self.meta, metrics=results)
            self._writer.write(self.meta.step, self._counters() | results)
            shown = "  ".join(f"{key} {value:.4f}" for key, value in results.items())
            logger.info("%s step %d held out: %s", self.name, self.meta.step, shown)

    def _save(self, finished: bool = False) -> None:
        if self.meta.step == self._saved_step:  # a budget that was lowered to what is already done
            return
        self._fetch(self._pending)
        pending = [[step.data_step, step.metrics["loss"], int(step.metrics["skipped"])] for step in self._pending]
        start = time.perf_counter()
        self.checkpoints.save(
            self.state,
            dataclasses.replace(
                self.meta,
                finished=finished,
                guards=self._monitor.record(),
                pending=pending,
                useful_seconds=self._speed.useful_seconds,
            ),
        )
        self._speed.away(time.perf_counter() - start)
        self._saved_step, self._saving_due = self.meta.step, False

    def _write_save_figures(self) -> None:
        figures = self.checkpoints.take_figures()
        if figures:
            self._writer.write(self.meta.step, self._counters() | figures)
            self._writer.sync()  # the log reaches as far as the checkpoint that a restart begins with
            logger.info(
                "%s: checkpoint of step %d written: %.3g GB in %.3g s, training waited %.3g s, host memory +%.3g GB",
                *(self.name, figures["checkpoint/step"]),
                *(figures[f"checkpoint/{name}"] for name in ("gigabytes", "seconds", "blocked_seconds")),
                figures["checkpoint/host_memory_gigabytes"],
            )
