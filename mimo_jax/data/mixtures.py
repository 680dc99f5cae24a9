"""Mixtures of tasks, with rates by tokens, as a table; and the schedules that turn rates into rows.

All rows have the context length and are filled to about 99 %, so a task's share of the rows is its share of the tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Tasks with their rates by tokens.

    Attributes:
        rates: task -> rate, relative to each other. Tasks without examples are left out by the loader, loudly.
        text_share: wanted share of text positions among all positions; the rates are then tilted by as little as
            possible to reach it. None takes the rates as they are.
    """

    rates: Mapping[str, float]
    text_share: float | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A mixture for a number of tokens.

    Attributes:
        mixture: name of a mixture or task, or a `Mixture`.
        tokens: positions (text and audio) of the phase; None for a last phase without an end.
    """

    mixture: str | Mixture
    tokens: float | None = None


# The report names the formats of each stage and the token totals by modality (1.2 T text : 1.4 T audio, 2.6 T : 2.4 T)
# but no rates by task: the rates below are ours, the shares of text are the report's.
MIXTURES: dict[str, Mixture] = {
    "understanding": Mixture({"interleaved": 4, "asr": 3, "captioning": 1, "text": 4}, text_share=1.2 / 2.6),
    "joint": Mixture(
        {
            "interleaved": 4,
            "asr": 3,
            "tts": 4,
            "continuation": 1,
            "captioning": 1,
            "instruct_tts": 1,
            "conversion": 1,
            "text": 4,
        },
        text_share=2.6 / 5.0,
    ),
    "sft": Mixture(
        {
            "sft_asr": 3,
            "sft_tts": 3,
            "sft_understanding": 2,
            "sft_understanding_thinking": 1,
            "sft_spoken_dialogue": 2,
            "sft_spoken_dialogue_multiturn": 1,
            "sft_speech_text_dialogue": 1,
            "sft_instruct_tts": 2,
            "sft_text_dialogue": 1,
        }
    ),
}


def get_mixture(name_or_mixture: str | Mixture) -> Mixture:
    """A mixture by name (a task's name is the mixture of it alone), or the mixture itself.

    Raises:
        KeyError: neither a mixture nor a task has that name.
    """
    from mimo_jax.data.all_formats import formats

    if isinstance(name_or_mixture, Mixture):
        return name_or_mixture
    if name_or_mixture in MIXTURES:
        return MIXTURES[name_or_mixture]
    if name_or_mixture in formats():
        return Mixture({name_or_mixture: 1.0})
    raise KeyError(f"no mixture or task {name_or_mixture!r}; mixtures: {sorted(MIXTURES)}; tasks: {sorted(formats())}")


def tilt(rates: np.ndarray, shares: np.ndarray, wanted: float) -> np.ndarray:
    """Rates -> rates times exp(lambda * share), with the lambda at which the mean share is ``wanted``.

    Of all rates with that mean share these are the closest to the given ones in relative entropy.

    Args:
        rates: float [N], positive.
        shares: float [N], share of text positions of each task.
        wanted: mean share to reach.

    Returns:
        float [N], summing to 1.

    Raises:
        ValueError: a share outside what the tasks can give.
    """
    rates = rates / rates.sum()
    low, high = shares.min(), shares.max()
    if not low < wanted < high:
        raise ValueError(
            f"text share {wanted:.3f} cannot be reached: the tasks' own shares lie in {low:.3f}..{high:.3f}; "
            "add a task on the other side, or set text_share to None"
        )

    def tilted(strength: float) -> np.ndarray:
        logits = np.log(rates) + strength * shares
        out = np.exp(logits - logits.max())
        return out / out.sum()

    below, above = -1.0, 1.0
    while tilted(below) @ shares > wanted:
        below *= 2
    while tilted(above) @ shares < wanted:
        above *= 2
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (middle, above) if tilted(middle) @ shares < wanted else (below, middle)
    return tilted((below + above) / 2)


class RateSchedule:
    """Which task each row is of, at given rates: evenly spread, in constant time, for any row number.

    Within a period the j-th of a task's n rows is due at (j + 1/2) / n, and rows go by due time; so after any number of
    rows each task is within about one row of its rate.
    """

    def __init__(self, rates: np.ndarray, period: int = 1 << 16):
        shares = np.asarray(rates, np.float64) / np.sum(rates)
        counts = np.floor(shares * period).astype(np.int64)
        short = np.argsort(-(shares * period - counts), kind="stable")[: period - counts.sum()]
        counts[short] += 1
        due = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        task = np.repeat(np.arange(len(counts)), counts)
        nth = np.concatenate([np.arange(n) for n in counts])
        order = np.lexsort((task, due))
        self._counts, self._task, self._nth = counts, task[order], nth[order]
        self._period = period

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers int64 [n] -> (task [n], how many rows of that task came before [n])."""
        cycle, place = np.divmod(np.asarray(numbers, np.int64), self._period)
        task = self._task[place]
        return task, cycle * self._counts[task] + self._nth[place]

    def counts(self, rows: int) -> np.ndarray:
        """How many of the first ``rows`` rows are of each task, int64 [N]."""
        cycle, place = divmod(rows, self._period)
        return cycle * self._counts + np.bincount(self._task[:place], minlength=len(self._counts))


class Curriculum:
    """Which task each row is of, phase after phase; in constant time, for any row number.

    A phase's tokens become rows by the mean tokens per row at its rates, so that the row at which it ends is known in
    advance: the tokens really counted up to there differ by the luck of the draw, less than 0.5 % from a few hundred
    rows on. A task's rows go on in the next phase where they stopped.

    Args:
        rates: float [phases, N], 0 where a phase does without a task.
        tokens_per_row: float [N], mean over the rows of each task.
        tokens: of each phase; None for the last, which has no end.
    """

    def __init__(self, rates: np.ndarray, tokens_per_row: np.ndarray, tokens: Sequence[float | None]):
        if any(not n or n < 0 for n in tokens[:-1]) or tokens[-1] is not None:
            raise ValueError(
                f"tokens of the phases are {list(tokens)}: each but the last needs some, the last has None"
            )
        self._schedules: list[RateSchedule] = []
        self._tasks: list[np.ndarray] = []
        starts = [0]
        before = [np.zeros(rates.shape[1], np.int64)]
        for phase, budget in zip(rates, tokens, strict=True):
            # Only the phase's own tasks, in their order: then it is spread as it would be by itself.
            tasks = np.flatnonzero(phase)
            schedule = RateSchedule(phase[tasks])
            self._schedules.append(schedule)
            self._tasks.append(tasks)
            if budget is not None:
                rows = int(np.ceil(budget / (tokens_per_row @ phase / phase.sum())))
                starts.append(starts[-1] + rows)
                before.append(before[-1].copy())
                before[-1][tasks] += schedule.counts(rows)
        self.starts = np.asarray(starts, np.int64)
        self._before = before

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers int64 [n] -> (task [n], how many rows of that task came before [n])."""
        numbers = np.asarray(numbers, np.int64)
        task, before = np.empty_like(numbers), np.empty_like(numbers)
        phases = np.searchsorted(self.starts, numbers, side="right") - 1
        for phase in np.unique(phases).tolist():
            here = phases == phase
            own, nth = self._schedules[phase].rows(numbers[here] - self.starts[phase])
            task[here] = self._tasks[phase][own]
            before[here] = nth + self._before[phase][task[here]]
        return task, before
