"""Where a run's figures go: TensorBoard scalars, `metrics.jsonl` (one object a line) and one log line."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import jax

from mimo_jax.cli import not_written
from mimo_jax.files import write_text

JSONL = "metrics.jsonl"


class MetricWriter:
    """Writes scalars of a step to `MODEL_DIR/metrics.jsonl` and TensorBoard event files; the first process alone does.

    After a restart, lines beyond the restored step are dropped: they will be written again.
    """

    def __init__(self, model_dir: str | Path, restored_step: int):
        self._path = Path(model_dir) / JSONL
        self._file: TextIO | None = None
        self._tensorboard = None
        if jax.process_index() != 0:
            return
        self._truncate(restored_step)
        self._file = self._path.open("a")
        try:
            from tensorboardX import SummaryWriter
        except ImportError:  # a bare accelerator machine: the JSONL file still has everything
            return
        self._tensorboard = SummaryWriter(str(model_dir), purge_step=restored_step + 1, max_queue=1000, flush_secs=30)

    def _truncate(self, restored_step: int) -> None:
        if not self._path.exists():
            return
        kept = [line for line, record in _records(self._path) if record["step"] <= restored_step]
        write_text(self._path, "".join(line + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """One record; strings and what is not finite go to the JSONL file only."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise not_written(f"{self._path} could not be written ({error})", error) from error
        if self._tensorboard is not None:
            for name, value in values.items():
                if not isinstance(value, str) and math.isfinite(value):
                    self._tensorboard.add_scalar(name, value, step)

    def sync(self) -> None:
        """What was written is safe from the loss of the machine; on a mounted bucket, from then on in the bucket."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a file system that cannot; the next write says what is wrong
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(model_dir: str | Path) -> list[dict]:
    """All records of a run, [] if it has none yet; one that a kill has cut short is left out."""
    path = Path(model_dir) / JSONL
    return [record for _, record in _records(path)] if path.exists() else []


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    """(line, record) of the lines that are whole."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield line, json.loads(line)
