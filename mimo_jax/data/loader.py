"""Training batches of packed rows: ``batch(step)`` is a pure function of (seed, mixture, step).

There is no iterator state. Row ``r`` of step ``s`` is number ``s * batch_size + r`` of an endless list; the rate
schedule says which task that row is of and how many rows of the task came before; a keyed permutation per epoch says
which packed row that is. So any host reads its own rows alone, a resume needs the step number alone, and neither the
number of hosts nor the depth of prefetching changes a byte.
"""

import copy
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mimo_jax.data.dealing import dealt_order
from mimo_jax.data.mixtures import Curriculum, Mixture, Phase, get_mixture, tilt
from mimo_jax.data.packing import Overlong, Rows
from mimo_jax.data.permutation import key_of, permute
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import Example, RecordReader, from_bytes, part_of
from mimo_jax.data.sequence import empty_audio

Batch = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


class Places(NamedTuple):
    """Where rows of a step come from: number of the task, epoch of the task, its packed row (-1 behind the end)."""

    tasks: np.ndarray
    epochs: np.ndarray
    rows: np.ndarray


class PackedSource:
    """Batches of a mixture (or task) of a prepared folder. Can be pickled; files are opened anew.

    Args:
        folder: a prepared folder.
        mixture: name of a mixture or task, or a `Mixture`; or phases of them, each but the last with its tokens. A text
            share out of reach of its tasks is warned of, and the rates stay as declared.
        batch_size: rows of the global batch.
        context: positions of a row.
        split: "train", "validation" or "test_voices".
        seed: of the order.
        host_index, host_count: this host's slice of the batch, rows ``host_index * B / host_count`` and on.
        repeat: False gives one pass; rows behind its end are empty (segment id 0 everywhere).
        cache_bytes: records kept in memory, over all tasks.
        before: what earlier stages have read with the same seed and context; every task goes on where they stopped in
            its epoch. Their tokens count as rows by the tasks' means, see `mixtures.Curriculum`.
        overlong: what becomes of examples longer than the context, see `packing.plan_rows`.

    Raises:
        UserError: no prepared folder.
        ValueError: no task of a phase has examples, phases without tokens, or a batch that the hosts do not divide.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        mixture: str | Mixture | Sequence[Phase],
        batch_size: int,
        context: int,
        split: str = "train",
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        repeat: bool = True,
        cache_bytes: int = 512 << 20,
        before: Sequence[Phase] = (),
        overlong: Overlong = "split",
    ):
        if batch_size % host_count or not 0 <= host_index < host_count:
            raise ValueError(f"batch of {batch_size} rows, host {host_index} of {host_count}: the hosts must divide it")
        self._prepared = Prepared(folder)
        self._layout = self._prepared.layout
        self._batch_size, self._context, self._seed, self._repeat = batch_size, context, seed, repeat
        self._empty_row = empty_audio((context,), self._layout)
        per_host = batch_size // host_count
        self._host_rows = np.arange(host_index * per_host, (host_index + 1) * per_host)
        self._dealing = (1, 1)

        own = [Phase(mixture)] if isinstance(mixture, (str, Mixture)) else list(mixture)
        phases = [*before, *own]
        specs = [get_mixture(phase.mixture) for phase in phases]
        plans = self._plans(specs, split, overlong)
        self.tasks: tuple[str, ...] = tuple(plans)
        self._rows: tuple[Rows, ...] = tuple(plans.values())
        self._num_rows = np.asarray([rows.num_rows for rows in self._rows])
        self._readers: tuple[RecordReader, ...] = tuple(
            self._prepared.reader(task, split, cache_bytes // len(self.tasks)) for task in self.tasks
        )
        # By name, so that a task's order does not depend on which other tasks are there.
        self._task_keys = [
            int.from_bytes(hashlib.blake2b(task.encode(), digest_size=8).digest(), "little") for task in self.tasks
        ]
        # float [phases, tasks]; text and audio positions of a mean row, float [tasks, 2].
        self._means = np.asarray([rows.positions for rows in self._rows]) / self._num_rows[:, None]
        rates = np.stack([self._rates_of(spec) for spec in specs])
        self._curriculum = Curriculum(rates, self._means.sum(axis=1), [phase.tokens for phase in phases])
        self._first_row = int(self._curriculum.starts[len(before)])
        self.rates: np.ndarray = rates[-1]
        self._declared = specs[-1]

    def _plans(self, specs: Sequence[Mixture], split: str, overlong: Overlong) -> dict[str, Rows]:
        """The plans of all tasks that have examples, each phase's in its mixture's order, the first phase first."""
        there = self._prepared.tasks(split)
        wanted = list(dict.fromkeys(task for spec in specs for task, rate in spec.rates.items() if rate > 0))
        plans = {task: self._prepared.rows(task, split, self._context, overlong) for task in wanted if task in there}
        plans = {task: rows for task, rows in plans.items() if rows.num_rows}
        for spec in specs:
            if not any(spec.rates.get(task, 0) > 0 for task in plans):
                raise ValueError(
                    f"{self._prepared.folder}: none of {[t for t, rate in spec.rates.items() if rate > 0]} has {split} "
                    f"examples of up to {self._context} positions; there are {sorted(there)}"
                )
        if missing := [task for task in wanted if task not in plans]:
            logger.warning("no %s examples for: %s; the other tasks take their share", split, ", ".join(missing))
        for task, rows in plans.items():
            if len(rows.dropped):
                logger.warning("%s: %d examples do not fit %d positions", task, len(rows.dropped), self._context)
        return plans

    def _rates_of(self, spec: Mixture) -> np.ndarray:
        """Rates of a mixture's rows over all tasks, summing to 1, tilted to its share of text."""
        declared = np.asarray([max(spec.rates.get(task, 0), 0) for task in self.tasks], np.float64)
        if spec.text_share is None:
            return declared / declared.sum()
        mine = np.flatnonzero(declared)
        totals, rates = self._means[mine], declared[mine]
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
            return declared / declared.sum()
        tilted = tilt(rates, shares, spec.text_share)
        declared[mine] = tilted
        if starved := [
            self.tasks[t] for t, new, old in zip(mine, tilted, rates / rates.sum(), strict=True) if 8 * new < old
        ]:
            logger.warning(
                "text share %.3f leaves %s less than an eighth of the declared rate: it is near the end of what the "
                "tasks hold; prepare more material on that side, or choose another text_share",
                *(spec.text_share, ", ".join(starved)),
            )
        return declared

    @property
    def num_examples(self) -> int:
        """Packed pieces of all tasks."""
        return sum(rows.num_pieces for rows in self._rows)

    @property
    def num_rows(self) -> int:
        """Packed rows of all tasks."""
        return int(self._num_rows.sum())

    @property
    def task_rows(self) -> dict[str, int]:
        """Packed rows per task."""
        return dict(zip(self.tasks, self._num_rows.tolist(), strict=True))

    @property
    def fill(self) -> dict[str, float]:
        """Share of used positions per task."""
        return {task: rows.fill for task, rows in zip(self.tasks, self._rows, strict=True)}

    @property
    def declared_rates(self) -> dict[str, float]:
        """Rate of each task in the last phase as declared, summing to 1; `rates` are tilted to the share of text."""
        declared = {task: max(self._declared.rates.get(task, 0), 0) for task in self.tasks}
        return {task: rate / sum(declared.values()) for task, rate in declared.items()}

    @property
    def text_share(self) -> float:
        """Share of text positions that the last phase asks for; where it asks for none, what its rates will give."""
        if self._declared.text_share is not None:
            return self._declared.text_share
        text, audio = self.mean_positions
        return text / (text + audio)

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self._batch_size

    @property
    def mean_positions(self) -> tuple[float, float]:
        """Text and audio positions of a row, on average at the rates of the last phase."""
        text, audio = self.rates @ self._means
        return float(text), float(audio)

    def steps_per_pass(self) -> int:
        """Steps after which every row of every task has come at least once (exactly once for a single task).

        At the rates of the last phase.
        """
        needed = [rows / rate for rows, rate in zip(self._num_rows, self.rates, strict=True) if rate]
        return int(-(-max(needed) // self._batch_size))

    def places(self, step: int, rows: np.ndarray | None = None) -> Places:
        """Where the given rows of a step's global batch (all by default) come from."""
        rows = np.arange(self._batch_size) if rows is None else rows
        tasks, before = self._curriculum.rows(self._first_row + step * self._batch_size + rows)
        epochs, nth = np.divmod(before, self._num_rows[tasks])
        packed = np.full(len(rows), -1, np.int64)
        for task, epoch in sorted(set(zip(tasks.tolist(), epochs.tolist(), strict=True))):
            if epoch and not self._repeat:
                continue
            here = (tasks == task) & (epochs == epoch)
            key = key_of(self._seed, self._task_keys[task], epoch)
            packed[here] = permute(nth[here], int(self._num_rows[task]), key)
        return Places(tasks, epochs, packed)

    def dealt(self, shards: int, microbatches: int) -> "PackedSource":
        """The same stream with the rows of each batch in an order that gives every device's microbatch about as many
        patches; the batch holds the same rows, whatever the numbers.

        Args:
            shards: parts of the batch that lie on devices of their own.
            microbatches: of each part.
        """
        if self._batch_size % (shards * microbatches):
            raise ValueError(
                f"a batch of {self._batch_size} rows cannot be dealt to {shards} shards x {microbatches} microbatches"
            )
        source = copy.copy(self)
        source._dealing = (shards, microbatches)
        return source

    def _dealt_rows(self, step: int) -> np.ndarray:
        """This host's rows of the step's global batch, dealt; every host computes the same deal."""
        tasks, _, rows = self.places(step)
        patches = np.zeros(len(rows), np.int64)
        for task in np.unique(tasks).tolist():
            mine = (tasks == task) & (rows >= 0)
            patches[mine] = self._rows[task].counts[rows[mine], 1]
        return dealt_order(patches, *self._dealing)[self._host_rows]

    def _counts(self, step: int) -> np.ndarray:
        """Text and audio positions of the global batch by task, int64 [tasks, 2], from the packing plans alone."""
        tasks, _, rows = self.places(step)
        counts = np.zeros((len(self.tasks), 2), np.int64)
        for task in np.unique(tasks).tolist():
            mine = rows[(tasks == task) & (rows >= 0)]
            counts[task] = self._rows[task].counts[mine].sum(axis=0, dtype=np.int64)
        return counts

    def token_counts(self, step: int) -> tuple[int, int]:
        """(text, audio) positions of the whole global batch of a step, without reading it."""
        text, audio = self._counts(step).sum(axis=0).tolist()
        return text, audio

    def task_counts(self, step: int) -> dict[str, tuple[int, int]]:
        """(text, audio) positions of the global batch by task."""
        return {
            task: (text, audio) for task, (text, audio) in zip(self.tasks, self._counts(step).tolist(), strict=True)
        }

    def batch(self, step: int) -> Batch:
        """This host's rows of a step.

        Returns:
            text int32 [B, T] (0 at padding), audio int32 [B, T, G, C] (empty ids at text and padding), segment_ids
            int32 [B, T] (0 at padding), positions int32 [B, T] (from 0 in every segment), loss_mask bool [B, T] (the
            position is a target; never the first of its segment).
        """
        places = self.places(step, self._host_rows if self._dealing == (1, 1) else self._dealt_rows(step))
        shape = (len(self._host_rows), self._context)
        out: Batch = {
            "text": np.zeros(shape, np.int32),
            "audio": np.empty((shape[0], *self._empty_row.shape), np.int32),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "loss_mask": np.zeros(shape, bool),
        }
        # Row by row, so that what one row needs stays in the processor's cache.
        for line, (task, row) in enumerate(zip(places.tasks.tolist(), places.rows.tolist(), strict=True)):
            view = {name: array[line] for name, array in out.items()}
            view["audio"][:] = self._empty_row
            if row >= 0:
                self._fill(view, self._read(task, row))
        return out

    def _read(self, task: int, row: int) -> list[Example]:
        """What lies in a packed row of a task."""
        pieces = self._rows[task].pieces(row)
        records = self._readers[task].read([piece.example for piece in pieces])
        empty = self._layout.special.empty
        return [part_of(from_bytes(record), piece.span, empty) for record, piece in zip(records, pieces, strict=True)]

    def _fill(self, row: Batch, examples: Sequence[Example]) -> None:
        """Write examples one behind the other into views of one row of a batch."""
        lengths = np.asarray([len(example.text) for example in examples])
        starts = np.cumsum(lengths) - lengths
        used = int(lengths.sum())
        text = np.concatenate([example.text for example in examples], out=row["text"][:used])
        row["audio"][np.flatnonzero(text == self._layout.special.empty)] = np.concatenate(
            [example.codes for example in examples]
        )
        row["segment_ids"][:used] = np.repeat(np.arange(1, len(examples) + 1), lengths)
        row["positions"][:used] = np.arange(used) - np.repeat(starts, lengths)
        np.concatenate([example.loss for example in examples], out=row["loss_mask"][:used], casting="unsafe")
        row["loss_mask"][starts] = False


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
