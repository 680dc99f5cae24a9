"""The measured part in which the model speaks as an instruction says: the words, and how they are said.

What is measured is rate (words heard a second) and volume (RMS, dB of full scale). The records' attributes say which
level an instruction asks for ("slow", "fast"); speech follows it if it is nearer to what training recordings of that
level have than to those of the other levels. Only levels other than "normal" are asked for: speech that is the same
whatever the instruction follows them no more often than shuffled instructions. Pitch is not measured: voices differ
more than its levels. Of 61 held-out recordings of the built-in corpus 0.59 followed theirs, and the median of low ones
lay above that of normal ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.judge import Judge
from mimo_jax.evaluation.parts import Part, figures_of, nothing, rows_of
from mimo_jax.evaluation.selection import Item, stable_order
from mimo_jax.evaluation.speech_parts import Samples, ids_of, item_seeds
from mimo_jax.evaluation.systems import SpeechModel, Systems, Wave
from mimo_jax.objectives.transcripts import normalise_text

DIMENSIONS = ("rate", "volume")
NORMAL = "normal"
EXAMPLES = 320  # training recordings that the levels are learned from
_FEWEST = 5  # recordings that a level needs
_LOUD_ENOUGH = 0.1  # of the loudest frame's amplitude: what is between the first and the last such frame is speech
Manner = dict[str, float | None]  # a value of each dimension, None where it is undefined


def manner(wave: Wave, sample_rate: int, heard: str) -> Manner:
    """How a wave [samples] sounds whose words were heard: logarithm of words a second, volume in dB."""
    span = _speech(np.asarray(wave, np.float32), sample_rate)
    words = len(normalise_text(heard).split())
    if not len(span):
        return dict.fromkeys(DIMENSIONS)
    return {
        # Ratios count, not differences: twice as fast is one step, wherever it begins.
        "rate": float(np.log(words * sample_rate / len(span))) if words else None,
        "volume": float(20 * np.log10(np.sqrt(np.mean(span.astype(np.float64) ** 2)))),
    }


def _speech(wave: Wave, sample_rate: int) -> Wave:
    """From the first loud frame (20 ms) to the last; empty where there is none."""
    frame = max(1, round(0.02 * sample_rate))
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    level = np.sqrt(np.mean(frames.astype(np.float64) ** 2, axis=1)) if len(frames) else np.zeros(0)
    if not level.any():
        return wave[:0]
    loud = np.flatnonzero(level >= _LOUD_ENOUGH * level.max())
    return wave[loud[0] * frame : (loud[-1] + 1) * frame]


@dataclasses.dataclass(frozen=True)
class Levels:
    """What is typical of each level of each dimension: the median over training recordings, as `manner` measures it."""

    medians: Mapping[str, Mapping[str, float]]

    @classmethod
    def learn(cls, judge: Judge, items: Sequence[Item], sample_rate: int) -> Levels:
        """From recordings with attributes; a dimension without two levels of some recordings each is left out."""
        heard = judge.transcribe([item.wave for item in items])
        manners = [manner(item.wave, sample_rate, h) for item, h in zip(items, heard, strict=True)]
        medians = {}
        for dimension in DIMENSIONS:
            found: dict[str, list[float]] = {}
            for item, measured in zip(items, manners, strict=True):
                value, level = measured[dimension], item.record.attributes.get(dimension)
                if value is not None and isinstance(level, str):
                    found.setdefault(level, []).append(value)
            typical = {level: float(np.median(v)) for level, v in sorted(found.items()) if len(v) >= _FEWEST}
            if len(typical) > 1:
                medians[dimension] = typical
        return cls(medians)

    def asked(self, record: Record) -> dict[str, str]:
        """The levels that a record's instruction asks for, by dimension."""
        named = {dimension: str(record.attributes.get(dimension)) for dimension in self.medians}
        return {d: level for d, level in named.items() if level != NORMAL and level in self.medians[d]}

    def followed(self, dimension: str, level: str, measured: Manner) -> bool:
        """Whether speech is nearest to the level; speech of which nothing can be measured is not."""
        value, typical = measured[dimension], self.medians[dimension]
        return value is not None and min(typical, key=lambda name: abs(typical[name] - value)) == level


def examples(records: Sequence[Record]) -> list[Record]:
    """Training records with an instruction, from which `Levels` are learned: a stable choice by id."""
    found = [record for record in records if record.split == "train" and record.instruction]
    return sorted(found, key=lambda record: stable_order(record.id))[:EXAMPLES]


def instructed_speech(
    systems: Systems, model: SpeechModel, items: Sequence[Item], levels: Levels, samples: Samples, seed: int
) -> Part:
    """Speech in described styles: words heard, and levels followed beside those of the recordings and by chance.

    ``..._recordings`` are the same figures of the recordings themselves, ``..._shuffled`` those of the speech against
    the instructions of other items.
    """
    if not items:
        return nothing()
    texts, instructions = [item.text for item in items], [item.record.instruction or "" for item in items]
    seeds = item_seeds(seed, "instructed_speech", ids_of(items))
    spoken = model.speak_as_instructed(texts, instructions, seeds=seeds)
    waves, recordings = [one.answer for one in spoken], [item.wave for item in items]
    heard, heard_recordings = systems.judge.transcribe(waves), systems.judge.transcribe(recordings)
    manners = [manner(w, systems.sample_rate, h) for w, h in zip(waves, heard, strict=True)]
    real = [manner(w, systems.sample_rate, h) for w, h in zip(recordings, heard_recordings, strict=True)]
    asked = [levels.asked(item.record) for item in items]
    return {
        "figures": figures_of(
            recogniser_wer_instructed=metrics.word_error_rate(texts, heard),
            recogniser_wer_instructed_recordings=metrics.word_error_rate(texts, heard_recordings),
            instructed_spoken=metrics.mean_estimate([len(wave) > 0 for wave in waves]),
            **_followed("", levels, asked, manners, seed),
            **_followed("_recordings", levels, asked, real, None),
        ),
        "items": rows_of(
            id=ids_of(items),
            instruction=instructions,
            reference=texts,
            thought=[one.thought for one in spoken],
            heard=heard,
            asked=asked,
            followed=[_scores(levels, a, m) for a, m in zip(asked, manners, strict=True)],
            manner=manners,
            recording=real,
            seed=seeds,
            file=samples.write("instructed", ids_of(items), waves),
        ),
    }


def _scores(levels: Levels, asked: Mapping[str, str], measured: Manner) -> dict[str, bool]:
    return {dimension: levels.followed(dimension, level, measured) for dimension, level in asked.items()}


def _followed(
    suffix: str, levels: Levels, asked: Sequence[Mapping[str, str]], manners: Sequence[Manner], seed: int | None
) -> dict[str, Any]:
    """Shares of asked levels that are followed, of all and by dimension; with a seed, of shuffled ones too."""
    estimates: dict[str, metrics.Estimate] = {}
    scores = [_scores(levels, a, m) for a, m in zip(asked, manners, strict=True)]
    chance: list[dict[str, bool]] = [{} for _ in asked]
    for dimension in levels.medians:
        places = [i for i, a in enumerate(asked) if dimension in a]
        if seed is not None and len(places) > 1:
            # Among the items that ask for something of this dimension: what is asked is as often each level.
            shuffled = metrics.permutation_texts([asked[i][dimension] for i in places], seed)
            for i, level in zip(places, shuffled, strict=True):
                chance[i][dimension] = levels.followed(dimension, level, manners[i])
    for name, found in ((f"instruction_followed{suffix}", scores), (f"instruction_followed{suffix}_shuffled", chance)):
        rows = [row for row in found if row]
        if rows:
            estimates[name] = metrics.ratio_estimate([sum(row.values()) for row in rows], [len(row) for row in rows])
        for dimension in levels.medians:
            mine = [row[dimension] for row in found if dimension in row]
            if mine:
                estimates[name.replace("instruction", f"instructed_{dimension}", 1)] = metrics.mean_estimate(mine)
    return estimates
