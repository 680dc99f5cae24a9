"""The measured parts in which the model answers: questions about a recording, and spoken questions.

As everywhere, the items hold what decided the figures; an item of a question about a recording has the same id whether
the model thinks before it answers or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mimo_jax.data.corpus.instructions import kind_of
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.parts import Part, figures_of, nothing, rows_of
from mimo_jax.evaluation.selection import Item
from mimo_jax.evaluation.speech_parts import Samples, ids_of, item_seeds
from mimo_jax.evaluation.systems import SpeechModel, Systems, Wave


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions about recordings, in one order: ids, recordings, questions as they are put, right answers."""

    ids: list[str]
    waves: list[Wave]
    questions: list[str]
    references: list[str]
    wordings: list[str]

    @classmethod
    def of(cls, items: Sequence[Item], limit: int) -> Asked:
        """The first ``limit`` questions of the items; ``wordings`` are without the choices.

        Instructions about the words are no questions about the sound, and left to `written_instructions`.
        """
        found = [(item, qa) for item in items for qa in item.record.qa if kind_of(qa) is None][:limit]
        return cls(
            ids=[f"{item.record.id}/{qa['question']}" for item, qa in found],
            waves=[item.wave for item, _ in found],
            questions=[_question(qa) for _, qa in found],
            references=[qa["answer"] for _, qa in found],
            wordings=[qa["question"] for _, qa in found],
        )


def audio_questions(model: SpeechModel, items: Sequence[Item], limit: int, seed: int) -> Part:
    """Questions about a recording (voice, rate, accent, noise): exact match, beside the commonest answer."""
    asked = Asked.of(items, limit)
    if not asked.ids:
        return nothing()
    seeds = item_seeds(seed, "audio_questions", asked.ids)
    answers = model.answer_about_audio(asked.waves, asked.questions, seeds=seeds)
    # By wording: with its shuffled choices hardly a question comes twice, and each would be its own commonest.
    commonest = commonest_answers(asked.wordings, asked.references)
    return {
        "figures": figures_of(
            audio_question_accuracy=metrics.exact_match(asked.references, answers),
            audio_question_accuracy_commonest=metrics.exact_match(asked.references, commonest),
        ),
        "items": rows_of(
            id=asked.ids, question=asked.questions, reference=asked.references, answer=answers, seed=seeds
        ),
    }


def audio_questions_thinking(model: SpeechModel, items: Sequence[Item], limit: int, seed: int) -> Part:
    """The same questions, answered after a thought; without an answer after it, the item is wrong."""
    asked = Asked.of(items, limit)
    if not asked.ids:
        return nothing()
    seeds = item_seeds(seed, "audio_questions_thinking", asked.ids)
    reasoned = model.answer_after_thinking(asked.waves, asked.questions, seeds=seeds)
    answers = [one.answer for one in reasoned]
    return {
        "figures": figures_of(
            audio_question_thinking_accuracy=metrics.exact_match(asked.references, answers),
            audio_question_thinking_answered=metrics.mean_estimate([bool(answer) for answer in answers]),
        ),
        "items": rows_of(
            id=asked.ids,
            question=asked.questions,
            reference=asked.references,
            thought=[one.thought for one in reasoned],
            answer=answers,
            seed=seeds,
        ),
    }


def _question(qa: Mapping[str, Any]) -> str:
    """Worded as in training: the choices, where there are any, follow the question."""
    return (
        f"{qa['question']} Choose from: {', '.join(map(str, qa['choices']))}." if qa.get("choices") else qa["question"]
    )


def commonest_answers(groups: Sequence[str], answers: Sequence[str]) -> list[str]:
    """For each item the answer that most of its group have: what is right without listening."""
    best = {}
    for group in set(groups):
        mine = [a for g, a in zip(groups, answers, strict=True) if g == group]
        best[group] = min(set(mine), key=lambda a: (-mine.count(a), a))
    return [best[group] for group in groups]


def spoken_questions(
    systems: Systems, model: SpeechModel, items: Sequence[Item], replies: Sequence[str], samples: Samples, seed: int
) -> Part:
    """Spoken questions answered in speech: the recogniser must hear exactly the reference answer.

    Where the question's record says which words make an answer right (``attributes["answer"]``), any wording that ends
    with them counts in ``spoken_question_right``.
    """
    if not items:
        return nothing()
    seeds = item_seeds(seed, "spoken_questions", ids_of(items))
    waves = model.answer_in_speech([item.wave for item in items], seeds=seeds)
    heard = systems.judge.transcribe(waves)
    files = samples.write("answer", ids_of(items), waves)
    return {
        "figures": figures_of(
            spoken_question_accuracy=metrics.exact_match(replies, heard),
            spoken_question_wer=metrics.word_error_rate(replies, heard),
            **_right("spoken_question", items, heard),
        ),
        "items": rows_of(
            id=ids_of(items),
            question=[i.text for i in items],
            reference=replies,
            right=_right_words(items),
            heard=heard,
            seed=seeds,
            file=files,
        ),
    }


def written_answers(model: SpeechModel, items: Sequence[Item], replies: Sequence[str], seed: int) -> Part:
    """Spoken questions answered in writing: exactly the reference answer, or one that ends with the right words."""
    if not items:
        return nothing()
    seeds = item_seeds(seed, "written_answers", ids_of(items))
    answers = model.answer_in_writing([item.wave for item in items], seeds=seeds)
    return {
        "figures": figures_of(
            written_answer_accuracy=metrics.exact_match(replies, answers),
            **_right("written_answer", items, answers),
        ),
        "items": rows_of(
            id=ids_of(items),
            question=[i.text for i in items],
            reference=replies,
            right=_right_words(items),
            answer=answers,
            seed=seeds,
        ),
    }


def _right_words(items: Sequence[Item]) -> list[str | None]:
    """The words that make an answer right, of each question; None where its record does not say."""
    return [str(words) if (words := item.record.attributes.get("answer")) else None for item in items]


def _right(name: str, items: Sequence[Item], answers: Sequence[str]) -> dict[str, metrics.Estimate]:
    """Share of answers that end with the right words, beside that of always saying the commonest of the kind."""
    found = [
        (str(item.record.attributes.get("kind", "")), words, answer)
        for item, words, answer in zip(items, _right_words(items), answers, strict=True)
        if words
    ]
    if not found:
        return {}
    kinds, right, given = zip(*found, strict=True)
    return {
        f"{name}_right": metrics.mean_estimate([metrics.ends_with(a, w) for a, w in zip(given, right, strict=True)]),
        f"{name}_right_commonest": metrics.exact_match(right, commonest_answers(kinds, right)),
    }
