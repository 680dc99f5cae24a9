"""Continuous batching: requests of any lengths come and go while others are being answered.

    batcher = Batcher(programs, params)
    ticket = batcher.submit(request)
    while batcher.busy:
        for update in batcher.turn():
            ...                        # update.ticket, its next positions, whether it ended

One `State` of fixed shape is on the device. A turn lets waiting requests in (their prompts are run in pieces, between
the turns of the others), makes some positions for all rows in one dispatch, and hands out what was made. Rows and
slots are powers of two; they grow when needed and shrink when a quarter would do, so few programs are compiled and
nobody pays for rows and positions that nobody uses.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from mimo_jax.inference import programs as device
from mimo_jax.inference import sampling
from mimo_jax.inference.programs import Params, Programs, Prompts, Rows, State
from mimo_jax.inference.requests import MAX_POSITIONS, MAX_STOP_TOKENS, Request, StopReason, Update

SMALLEST_SLOTS = 64
# Patches that the published vocoder needs for its first sound, where it waits for 40 mel frames (16 a patch).
FIRST_PATCHES = 3

# Positions that a dispatch can tell of, at least: whoever wants fewer at a time shares the program.
_NEWS = 32


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a batch may hold.

    Attributes:
      max_batch: rows that run together; further requests wait.
      least_rows: rows on the device even if fewer are used. With `max_batch` of them their number never changes: fewer
        programs to compile, and idle rows that are computed.
      max_positions: of a prompt and its answer together.
      room: slots for the answers that a batch starts with; they double when used up.
      positions: most positions a dispatch makes: as many come out at once.
      first_patches: patches of an answer that a vocoder needs before it gives sound: a dispatch ends with them, so that
        whoever listens hears of them at once. 0 = nobody listens.
      prefill_positions: of prompts, run between two dispatches of `decode`; longer prompts take several turns.
    """

    max_batch: int = 64
    least_rows: int = 1
    max_positions: int = MAX_POSITIONS
    room: int = 64
    positions: int = 32
    first_patches: int = 0
    prefill_positions: int = 2048

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "first_patches" else 1
            if getattr(self, field.name) < least:
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: must be at least {least}")


def power_of_two(at_least: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(0, at_least - 1).bit_length()


@dataclasses.dataclass(eq=False)
class _Row:
    """A request that is being answered."""

    ticket: int
    request: Request
    length: int  # positions that exist
    patches: int = 0  # of the answer

    def limit(self, longest: int) -> int:
        return min(len(self.request.text) + self.request.max_new, longest)

    def before_sound(self, patches: int) -> int:
        """Patches that the answer lacks to have so many."""
        return max(0, patches - self.patches)


@dataclasses.dataclass(eq=False)
class _Admission:
    """Requests whose prompts are being run."""

    rows: list[_Row]
    prompts: Prompts
    settings: Rows


class Batcher:
    """Answers requests together. Not for several threads at once: see `service`.

    Args:
      programs: the model's programs.
      params: its parameters, layers unstacked.
      limits: how much it may hold.
    """

    def __init__(self, programs: Programs, params: Params, limits: Limits = Limits()) -> None:  # noqa: B008
        self._programs, self._params, self.limits = programs, params, limits
        self._waiting: deque[_Row] = deque()
        self._admission: _Admission | None = None
        self._rows: list[_Row | None] = []  # as the rows on the device
        self._state: State | None = None
        self._tickets = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._admission or self.running)

    @property
    def waiting(self) -> int:
        """Requests that no row has been found for yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(row is not None for row in self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and slots on the device."""
        if self._state is None:
            return 0, 0
        rows, slots = self._state.text.shape
        return rows, slots

    def submit(self, request: Request) -> int:
        """Takes a request (checked by `Engine.check`) and returns its ticket."""
        self._tickets += 1
        self._waiting.append(_Row(self._tickets, request, len(request.text)))
        return self._tickets

    def cancel(self, ticket: int) -> bool:
        """Forgets a request; False where it has ended already. Its row is free from the next turn on."""
        for row in self._waiting:
            if row.ticket == ticket:
                self._waiting.remove(row)
                return True
        if self._admission is not None:
            for row in self._admission.rows:
                if row.ticket == ticket:
                    row.ticket = 0  # its prompt runs with the others' and is dropped
                    return True
        for number, held in enumerate(self._rows):
            if held is not None and held.ticket == ticket and self._state is not None:
                self._rows[number] = None
                self._state = self._state._replace(done=self._state.done.at[number].set(True))
                return True
        return False

    def turn(self) -> list[Update]:
        """One round: prompts in, positions made. What came out, in no particular order; may be nothing."""
        self._admit()
        if not self.running:
            return []
        self._fit(self.running, 0)
        assert self._state is not None
        self._state, news = device.decode(
            self._programs,
            self._params,
            self._state,
            power_of_two(max(_NEWS, self.limits.positions)),
            np.int32(self.limits.positions),
            np.bool_(bool(self._waiting or self._admission)),
            np.array([row.before_sound(self.limits.first_patches) if row else 0 for row in self._rows], np.int32),
        )
        news = jax.device_get(news)
        updates = []
        for number, row in enumerate(self._rows):
            if row is None:
                continue
            made = slice(0, int(news.length[number]) - row.length)
            row.length = int(news.length[number])
            text = news.text[number, made]
            reason: StopReason | None = None
            if news.done[number]:
                self._rows[number] = None
                reason = "stop" if news.stopped[number] else "length"
            codes = news.codes[number, made][text == self._programs.config.empty_token_id]
            row.patches += len(codes)
            updates.append(Update(row.ticket, text.copy(), codes, reason))
        return updates

    # ----- letting requests in ---------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Runs some of the prompts that wait; those that are through join the batch."""
        if self._admission is None:
            self._admission = self._next_admission()
        if self._admission is None:
            return
        admission = self._admission
        rows = admission.prompts.text.shape[0]
        # Nobody waits for a position while nothing runs.
        most = self.limits.prefill_positions if self.running else self.limits.max_positions * rows
        pieces = max(1, most // (rows * self._programs.chunk))
        admission.prompts = device.prefill(self._programs, self._params, admission.prompts, np.int32(pieces))
        if int(admission.prompts.start) < max(row.length for row in admission.rows) - 1:
            return
        self._admission = None
        kept = [row for row in admission.rows if row.ticket]
        if not kept:
            return
        self._fit(self.running + len(kept), admission.prompts.text.shape[1], kept)
        assert self._state is not None
        free = iter([number for number, row in enumerate(self._rows) if row is None])
        index = np.full(rows, len(self._rows), np.int32)  # beyond the end: nowhere
        for number, row in enumerate(admission.rows):
            if row.ticket:
                index[number] = next(free)
                self._rows[index[number]] = row
        self._state = device.insert(self._programs, self._state, admission.prompts, admission.settings, index)

    def _next_admission(self) -> _Admission | None:
        """The request that waits longest, and others behind it whose prompts have the same number of slots."""
        free = self.limits.max_batch - self.running
        if not self._waiting or free < 1:
            return None

        def slots(row: _Row) -> int:
            return max(self._programs.chunk, power_of_two(row.length))

        width = slots(self._waiting[0])
        chosen = [row for row in self._waiting if slots(row) == width][:free]
        taken = {row.ticket for row in chosen}
        self._waiting = deque(row for row in self._waiting if row.ticket not in taken)
        count = power_of_two(len(chosen))
        return _Admission(chosen, self._prompts(chosen, count, width), self._settings(chosen, count))

    def _prompts(self, rows: Sequence[_Row], count: int, slots: int) -> Prompts:
        config = self._programs.config
        text = np.zeros((count, slots), np.int32)
        audio = np.empty((count, slots, config.group_size, config.audio_channels), np.int32)
        audio[:] = config.speech_zeroemb_idx
        length = np.ones(count, np.int32)
        for i, row in enumerate(rows):
            length[i] = row.length
            text[i, : row.length] = row.request.text
            is_audio = np.flatnonzero(row.request.text == config.empty_token_id)
            audio[i, is_audio] = row.request.audio[is_audio]
        caches = device.empty_caches(self._programs, count, slots)
        return Prompts(caches, *jax.device_put((text, audio, length, np.int32(0))))

    def _settings(self, rows: Sequence[_Row], count: int) -> Rows:
        filled = [*rows, *[rows[-1]] * (count - len(rows))]
        requests = [row.request for row in filled]
        longest = self.limits.max_positions
        stop = np.full((count, MAX_STOP_TOKENS), -1, np.int32)
        for i, request in enumerate(requests):
            stop[i, : len(request.stop_tokens)] = request.stop_tokens
        first = [min(len(r.text) + r.min_new, longest) for r in requests]
        forced_end = [-1 if r.forced_end is None else r.forced_end for r in requests]
        last = [row.limit(longest) for row in filled]
        seeds = np.array([r.seed % 2**32 for r in requests], np.uint32)
        columns = (np.array(first, np.int32), np.array(last, np.int32), stop, np.array(forced_end, np.int32), seeds)
        text, audio = ([getattr(r, name) for r in requests] for name in ("text_sampling", "audio_sampling"))
        return Rows(*jax.device_put((*columns, *map(sampling.settings, (text, audio)))))

    # ----- shapes ----------------------------------------------------------------------------------------------------

    def _fit(self, count: int, least_slots: int, joining: Sequence[_Row] = ()) -> None:
        """Makes the state of a shape for `count` requests; moves the rows together where it changes."""
        held = [row for row in self._rows if row is not None]
        rows, slots = self.shape
        if not held:
            slots = 0
        start = max((row.length + min(self.limits.room, row.request.max_new) for row in joining), default=0)
        # A row without a free slot cannot go on.
        need = max([SMALLEST_SLOTS, least_slots, start, *(row.length + 1 for row in held)])
        need = power_of_two(need)
        wanted = power_of_two(max(count, self.limits.least_rows))
        most_rows = max(rows, wanted) if rows < 4 * wanted else wanted
        most_slots = max(slots, need) if slots < 4 * need else need
        if (most_rows, most_slots) == (rows, slots):
            return
        if not held:
            self._state, self._rows = device.empty_state(self._programs, most_rows, most_slots), [None] * most_rows
            return
        assert self._state is not None
        index = [number for number, row in enumerate(self._rows) if row is not None]
        index += [rows] * (most_rows - len(index))
        self._state = device.regroup(self._programs, self._state, np.array(index, np.int32), most_slots)
        self._rows = [*held, *[None] * (most_rows - len(held))]
