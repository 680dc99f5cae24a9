"""Sets of few-shot questions with candidates, as sequences ready to be scored, in one file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.data.packing import best_fit
from mimo_jax.data.sequence import Encode, Layout, Segment, SpecialTokens, expand_audio, render
from mimo_jax.files import replacing

FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """One question.

    Attributes:
      task: name of the task it belongs to.
      candidates: per candidate the prompt with the candidate behind it, the loss on the candidate alone.
      neutral: the same without what decides (the examples, or the query).
      answer: index of the right candidate.
    """

    task: str
    candidates: Sequence[Sequence[Segment]]
    neutral: Sequence[Sequence[Segment]]
    answer: int

    def __post_init__(self) -> None:
        if len(self.neutral) != len(self.candidates) or not 0 <= self.answer < len(self.candidates):
            raise ValueError(f"{len(self.candidates)} candidates, {len(self.neutral)} neutral, answer {self.answer}")


@dataclasses.dataclass(frozen=True, eq=False)
class ChoiceSet:
    """Questions as arrays: N sequences one behind the other.

    Attributes:
      tasks: name of each task -> what is known of it ("chance": share that guessing gets right, "shots", ...).
      task: int32 [Q], number of each question's task.
      answer: int32 [Q].
      question, candidate: int32 [N], where a sequence belongs.
      neutral: bool [N].
      length: int32 [N] positions.
      text: int32 [sum of lengths]. loss: bool, alike.
      patches: int32 [patches, G, C], those of all sequences in order.
      facts: how the set was made.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    task: np.ndarray
    answer: np.ndarray
    question: np.ndarray
    candidate: np.ndarray
    neutral: np.ndarray
    length: np.ndarray
    text: np.ndarray
    loss: np.ndarray
    patches: np.ndarray
    facts: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        choices: Sequence[Choice],
        encode: Encode,
        layout: Layout,
        tasks: Mapping[str, Mapping[str, Any]],
        facts: Mapping[str, Any] = {},  # noqa: B006
    ) -> ChoiceSet:
        """The set of these questions; chance is one by the number of candidates, which a task has in common."""
        names = list(tasks)
        rows: list[tuple[int, int, bool]] = []
        rendered = []
        counts: dict[str, set[int]] = {name: set() for name in names}
        for number, choice in enumerate(choices):
            counts[choice.task].add(len(choice.candidates))
            for neutral, sequences in ((False, choice.candidates), (True, choice.neutral)):
                for index, segments in enumerate(sequences):
                    rows.append((number, index, neutral))
                    rendered.append(render(segments, encode, layout))
                    if not rendered[-1].loss.any():
                        raise ValueError(f"question {number} of {choice.task}: candidate {index} carries no loss")
        for name, sizes in counts.items():
            if len(sizes) != 1:
                raise ValueError(f"questions of {name} have {sorted(sizes)} candidates: give all as many, at least one")
        question, candidate, neutral_rows = (np.array(column) for column in zip(*rows, strict=True))
        return cls(
            tasks={name: {"chance": 1 / max(counts[name]), **tasks[name]} for name in names},
            task=np.array([names.index(choice.task) for choice in choices], np.int32),
            answer=np.array([choice.answer for choice in choices], np.int32),
            question=question.astype(np.int32),
            candidate=candidate.astype(np.int32),
            neutral=neutral_rows.astype(bool),
            length=np.array([len(one.text) for one in rendered], np.int32),
            text=np.concatenate([one.text for one in rendered]),
            loss=np.concatenate([one.loss for one in rendered]),
            patches=np.concatenate([one.patches for one in rendered]),
            facts={**facts, "layout": dataclasses.asdict(layout)},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        about = {"format": FORMAT, "tasks": self.tasks, "facts": self.facts}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChoiceSet:
        """Reads what `save` wrote. Raises UserError."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; python -m mimo_jax.few_shot make writes one")
        try:
            with np.load(path) as file:
                about = json.loads(str(file["about"]))
                if about["format"] != FORMAT:
                    raise ValueError(f"format {about['format']}; this version reads {FORMAT}: make it again")
                return cls(tasks=about["tasks"], facts=about["facts"], **{name: file[name] for name in _ARRAYS})
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{path}: not a set of few-shot questions: {error}") from error

    @property
    def counts(self) -> dict[str, int]:
        """Task -> number of questions."""
        return {name: int((self.task == number).sum()) for number, name in enumerate(self.tasks)}

    def layout(self) -> Layout:
        """The sequence layout that its sequences were made with."""
        fields = self.facts["layout"]
        special, empty_codes = SpecialTokens(**fields["special"]), tuple(fields["empty_codes"])
        return Layout(**{**fields, "special": special, "empty_codes": empty_codes})

    def batches(self, rows: int, context: int, layout: Layout) -> list[dict[str, np.ndarray]]:
        """All sequences packed into batches [rows, context] of what `LanguageModelObjective` reads, and `sequence`.

        `sequence` int32 [rows, context]: number of the sequence that a position belongs to, -1 = none.

        Raises:
          UserError: a sequence that is longer than `context`.
        """
        if len(self.length) and self.length.max() > context:
            raise UserError(f"few-shot questions of {self.length.max()} positions; the context has {context}")
        bins = best_fit(self.length, context)
        count = -(-(bins.max() + 1) // rows) if len(bins) else 0
        shape = (count * rows, context)
        packed: dict[str, np.ndarray] = {
            name: np.zeros(shape, np.int32) for name in ("text", "segment_ids", "positions", "loss_mask")
        }
        packed["sequence"] = np.full(shape, -1, np.int32)
        audio = np.tile(np.asarray(layout.empty_codes, np.int32), (*shape, layout.group_size, 1))
        ends = np.cumsum(self.length)
        first_patch = np.cumsum([0, *(self.text == layout.special.empty)])
        filled, segments = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
        for number, (row, end, length) in enumerate(zip(bins, ends, self.length, strict=True)):
            source, target = slice(end - length, end), slice(filled[row], filled[row] + length)
            text = self.text[source]
            packed["text"][row, target] = text
            packed["loss_mask"][row, target] = self.loss[source]
            packed["positions"][row, target] = np.arange(length)
            packed["sequence"][row, target] = number
            packed["segment_ids"][row, target] = segments[row] = segments[row] + 1
            patches = self.patches[first_patch[end - length] : first_patch[end]]
            audio[row, target] = expand_audio(text, patches, layout)
            filled[row] += length
        packed["audio"] = audio
        return [
            {name: array[number * rows : (number + 1) * rows] for name, array in packed.items()}
            for number in range(count)
        ]

    def pmi(self, log_likelihood: np.ndarray) -> np.ndarray:
        """What the prompt adds to each candidate's log-likelihood: [N] nats -> [Q, most candidates], -inf = none."""
        scores = np.full((len(self.task), int(self.candidate.max()) + 1), -np.inf)
        plain, neutral = ~self.neutral, self.neutral
        scores[self.question[plain], self.candidate[plain]] = log_likelihood[plain]
        scores[self.question[neutral], self.candidate[neutral]] -= log_likelihood[neutral]
        return scores


_ARRAYS = ("task", "answer", "question", "candidate", "neutral", "length", "text", "loss", "patches")
