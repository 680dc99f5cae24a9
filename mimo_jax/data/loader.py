"""Training batches of packed rows: ``batch(step)`` is a pure function of (seed, mixture, step).

There is no iterator state. Row ``r`` of step ``s`` is number ``s * batch_size + r`` of an endless list; the rate
schedule says which task that row is of and how many rows of the task came before; a keyed permutation per epoch says
which packed row that is. So any host reads its own rows alone, a resume needs the step number alone, and neither the
number of hosts nor the depth of prefetching changes a byte.
"""

import hashlib
import logging
import os
from collections.abc import Mapping

import numpy as np

from mimo_jax.data.mixtures import Mixture, RateSchedule, get_mixture, tilt
from mimo_jax.data.packing import Rows
from mimo_jax.data.permutation import key_of, permute
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import Example, RecordReader, from_bytes
from mimo_jax.data.sequence import empty_audio

Batch = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


class PackedSource:
    """Batches of a mixture (or task) of a prepared folder.

    Args:
        folder: a prepared folder.
        mixture: name of a mixture or task, or a `Mixture`. A text share out of reach of its tasks is warned of, and
            the rates stay as declared.
        batch_size: rows of the global batch.
        context: positions of a row.
        split: "train", "validation" or "test_voices".
        seed: of the order.
        host_index, host_count: this host's slice of the batch, rows ``host_index * B / host_count`` and on.
        repeat: False gives one pass; rows behind its end are empty (segment id 0 everywhere).
        cache_bytes: records kept in memory, over all tasks.

    Raises:
        FileNotFoundError: no prepared folder.
        ValueError: no task of the mixture has examples, or a batch that the hosts do not divide.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        mixture: str | Mixture,
        batch_size: int,
        context: int,
        split: str = "train",
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        repeat: bool = True,
        cache_bytes: int = 512 << 20,
    ):
        if batch_size % host_count or not 0 <= host_index < host_count:
            raise ValueError(f"batch of {batch_size} rows, host {host_index} of {host_count}: the hosts must divide it")
        self._prepared = Prepared(folder)
        self._layout = self._prepared.layout
        self._batch_size, self._context, self._seed, self._repeat = batch_size, context, seed, repeat
        per_host = batch_size // host_count
        self._host_rows = np.arange(host_index * per_host, (host_index + 1) * per_host)

        spec = get_mixture(mixture)
        plans = self._plans(spec, split)
        self.tasks: tuple[str, ...] = tuple(plans)
        self._rows: tuple[Rows, ...] = tuple(plans.values())
        self._readers: tuple[RecordReader, ...] = tuple(
            self._prepared.reader(task, split, cache_bytes // len(self.tasks)) for task in self.tasks
        )
        # By name, so that a task's order does not depend on which other tasks are there.
        self._task_keys = [
            int.from_bytes(hashlib.blake2b(task.encode(), digest_size=8).digest(), "little") for task in self.tasks
        ]
        self._row_counts = [np.stack(rows.row_counts(), axis=1) for rows in self._rows]
        self.rates: np.ndarray = self._rates(spec)
        self._schedule = RateSchedule(self.rates)

    def _plans(self, spec: Mixture, split: str) -> dict[str, Rows]:
        there = self._prepared.tasks(split)
        wanted = [task for task, rate in spec.rates.items() if rate > 0]
        plans = {task: self._prepared.rows(task, split, self._context) for task in wanted if task in there}
        plans = {task: rows for task, rows in plans.items() if rows.num_rows}
        if not plans:
            raise ValueError(
                f"{self._prepared.folder}: none of {wanted} has {split} examples of up to {self._context} positions; "
                f"there are {sorted(there)}"
            )
        if missing := [task for task in wanted if task not in plans]:
            logger.warning("%s has no %s examples; the other tasks take their share", ", ".join(missing), split)
        for task, rows in plans.items():
            if len(rows.dropped):
                logger.warning("%s: %d examples do not fit %d positions", task, len(rows.dropped), self._context)
        return plans

    def _rates(self, spec: Mixture) -> np.ndarray:
        rates = np.asarray([spec.rates[task] for task in self.tasks], np.float64)
        if spec.text_share is None:
            return rates / rates.sum()
        totals = np.asarray([counts.mean(axis=0) for counts in self._row_counts])
        # A tilt over rows reaches a share over positions when each task's excess over the wanted share is weighed by
        # how many positions its rows hold: sum rate * (text - wanted * all) = 0.
        excess = totals[:, 0] - spec.text_share * totals.sum(axis=1)
        shares = spec.text_share + excess / totals.sum(axis=1).max()
        if not shares.min() < spec.text_share < shares.max():
            own = totals[:, 0] / totals.sum(axis=1)
            logger.warning(
                "text share %.3f is out of reach: the tasks' own shares lie in %.3f..%.3f; the rates stay as declared",
                *(spec.text_share, own.min(), own.max()),
            )
            return rates / rates.sum()
        return tilt(rates, shares, spec.text_share)

    @property
    def num_examples(self) -> int:
        """Packed pieces of all tasks."""
        return sum(len(rows.example) for rows in self._rows)

    @property
    def num_rows(self) -> int:
        """Packed rows of all tasks."""
        return sum(rows.num_rows for rows in self._rows)

    @property
    def fill(self) -> dict[str, float]:
        """Share of used positions per task."""
        return {task: rows.fill for task, rows in zip(self.tasks, self._rows, strict=True)}

    def steps_per_pass(self) -> int:
        """Steps after which every row of every task has come at least once (exactly once for a single task)."""
        needed = [rows.num_rows / rate for rows, rate in zip(self._rows, self.rates, strict=True)]
        return int(-(-max(needed) // self._batch_size))

    def _locate(self, step: int, rows: np.ndarray) -> list[tuple[int, int]]:
        """(task number, packed row, or -1 behind the end) of the given rows of a step."""
        tasks, before = self._schedule.rows(step * self._batch_size + rows)
        sizes = np.asarray([r.num_rows for r in self._rows])[tasks]
        epochs, places = np.divmod(before, sizes)
        packed = np.full(len(rows), -1, np.int64)
        for task, epoch in sorted(set(zip(tasks.tolist(), epochs.tolist(), strict=True))):
            if epoch and not self._repeat:
                continue
            here = (tasks == task) & (epochs == epoch)
            key = key_of(self._seed, self._task_keys[task], epoch)
            packed[here] = permute(places[here], self._rows[task].num_rows, key)
        return list(zip(tasks.tolist(), packed.tolist(), strict=True))

    def token_counts(self, step: int) -> tuple[int, int]:
        """(text, audio) positions of the whole global batch of a step, from the packing plan alone."""
        located = self._locate(step, np.arange(self._batch_size))
        counts = [self._row_counts[task][row] for task, row in located if row >= 0]
        text, audio = np.sum(counts, axis=0) if counts else (0, 0)
        return int(text), int(audio)

    def task_counts(self, step: int) -> dict[str, tuple[int, int]]:
        """(text, audio) positions of the global batch by task."""
        out = dict.fromkeys(self.tasks, (0, 0))
        for task, row in self._locate(step, np.arange(self._batch_size)):
            if row >= 0:
                name = self.tasks[task]
                text, audio = self._row_counts[task][row].tolist()
                out[name] = (out[name][0] + text, out[name][1] + audio)
        return out

    def batch(self, step: int) -> Batch:
        """This host's rows of a step.

        Returns:
            text int32 [B, T] (0 at padding), audio int32 [B, T, G, C] (empty ids at text and padding), segment_ids
            int32 [B, T] (0 at padding), positions int32 [B, T] (from 0 in every segment), loss_mask bool [B, T] (the
            position is a target; never the first of its segment).
        """
        located = self._locate(step, self._host_rows)
        shape = (len(located), self._context)
        out: Batch = {
            "text": np.zeros(shape, np.int32),
            "audio": empty_audio(shape, self._layout),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "loss_mask": np.zeros(shape, bool),
        }
        examples = self._read(located)
        for line, (task, row) in enumerate(located):
            if row >= 0:
                self._fill(out, line, task, row, examples[task])
        return out

    def _pieces(self, task: int, row: int) -> range:
        offsets = self._rows[task].offsets
        return range(int(offsets[row]), int(offsets[row + 1]))

    def _read(self, located: list[tuple[int, int]]) -> list[dict[int, Example]]:
        """Per task: the examples its rows need, each read once."""
        found: list[dict[int, Example]] = []
        for task, (rows, reader) in enumerate(zip(self._rows, self._readers, strict=True)):
            mine = [row for t, row in located if t == task and row >= 0]
            numbers = sorted({int(rows.example[p]) for row in mine for p in self._pieces(task, row)})
            found.append(dict(zip(numbers, map(from_bytes, reader.read(numbers)), strict=True)))
        return found

    def _fill(self, out: Batch, line: int, task: int, row: int, examples: dict[int, Example]) -> None:
        rows = self._rows[task]
        at = 0
        for segment, piece in enumerate(self._pieces(task, row), start=1):
            example = examples[int(rows.example[piece])]
            start, stop = int(rows.start[piece]), int(rows.stop[piece])
            here = slice(at, at + stop - start)
            text = example.text[start:stop]
            is_audio = text == self._layout.special.empty
            first = int((example.text[:start] == self._layout.special.empty).sum()) if start else 0
            out["text"][line, here] = text
            out["audio"][line, here][is_audio] = example.codes[first : first + int(is_audio.sum())]
            out["segment_ids"][line, here] = segment
            out["positions"][line, here] = np.arange(stop - start)
            out["loss_mask"][line, here] = example.loss[start:stop]
            out["loss_mask"][line, at] = False
            at += stop - start


def held_out_sources(
    folder: str | os.PathLike[str],
    tasks: Mapping[str, str | Mixture],
    batch_size: int,
    context: int,
    split: str = "validation",
    repeat: bool = True,
) -> dict[str, PackedSource]:
    """Held-out rows by a name for the curves; a task or mixture without such examples is left out, with a word.

    Args:
        folder: a prepared folder.
        tasks: name -> task or mixture.
        batch_size, context, split, repeat: as in `PackedSource`.
    """
    there = Prepared(folder).tasks(split)
    found = {name: task for name, task in tasks.items() if any(one in there for one in get_mixture(task).rates)}
    if missing := [name for name in tasks if name not in found]:
        logger.warning("no %s examples for %s: no held-out loss of it", split, ", ".join(missing))
    return {name: PackedSource(folder, task, batch_size, context, split, repeat=repeat) for name, task in found.items()}
