"""Questions about recordings with written choices: MMAU, MMAR, MMSU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimo_jax.data import prompts
from mimo_jax.data.sequence import AudioSegment, Segment, TextSegment
from mimo_jax.evaluation.benchmarks import extraction, settings
from mimo_jax.evaluation.benchmarks.base import (
    Answered,
    Benchmark,
    Build,
    Builder,
    Item,
    Metric,
    Outcome,
    choose_shots,
    correct,
)
from mimo_jax.evaluation.benchmarks.reading import data_files, rows, unique
from mimo_jax.evaluation.benchmarks.tools import Tools
from mimo_jax.inference.jobs import Job

SHOTS = 5
_LETTERS = "ABCD"


def choice_question(question: str, choices: Sequence[str]) -> str:
    """A question with its choices on lines of their own, to be answered by exactly one of them."""
    listed = "\n".join(choices)
    return (
        f"{question}\n\nChoices:\n{listed}\n\nAnswer with exactly one of these {len(choices)} choices, word for word."
    )


def lettered_question(question: str, choices: Sequence[str]) -> str:
    """A question with lettered choices, to be answered by a letter."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
    return f"Answer the question below with one letter only: A, B, C or D.\n{question}\n{listed}"


def understanding(question: Any, thinking: bool = False) -> Build:
    """Builds the audio-understanding prompt: the item's recording, then what `question` says of the item's fields."""

    def build(item: Item, builder: Builder, seed: int) -> Job:
        asked = question(item.fields)
        [job] = builder.jobs.audio_understanding([item.audio[0]], [asked], thinking=thinking, seeds=[seed])
        return job

    return build


# ----- MMAU and MMAR --------------------------------------------------------------------------------------------------


def read_mmau(folder: Path, shots: int = 0) -> list[Item]:
    """mmau-test-mini.json: id or audio_id, audio_id (path), question, choices, answer, task (music, sound, speech).

    With shots, the examples of an item are other items of its task; a file shots.json of the same form replaces them.
    """
    items = _choice_items(
        folder, data_files(folder, "mmau-test-mini.json", "data.jsonl", leave_out=["shots.json"]), "audio_id"
    )
    if not shots:
        return items
    own = folder / "shots.json"
    shown = _choice_items(folder, [own], "audio_id") if own.is_file() else items
    out = []
    for item in items:
        pool = [other for other in shown if other.fields["task"] == item.fields["task"]]
        try:
            chosen = choose_shots(item, pool, shots)
        except ValueError as error:
            raise item.fields["row"].error("task", f"{item.fields['task']!r}: {error}") from error
        audio = (*(shot.audio[0] for shot in chosen), item.audio[0])
        out.append(dataclasses.replace(item, audio=audio, fields={**item.fields, "shots": chosen}))
    return out


def read_mmar(folder: Path) -> list[Item]:
    """MMAR-meta.json: id, audio_path, question, choices, answer, modality, category, sub-category."""
    return _choice_items(folder, data_files(folder, "MMAR-meta.json", "data.jsonl"), "audio_path")


def _choice_items(folder: Path, files: Sequence[Path], audio: str) -> list[Item]:
    groups = ("task", "category", "difficulty") if audio == "audio_id" else ("modality", "category", "sub-category")
    items = []
    for row in rows(files, folder):
        answer = row.text("answer")
        fields = {
            "question": row.text("question"),
            "choices": row.choices("choices", answer),
            "answer": answer,
            **({"task": row.text("task")} if audio == "audio_id" else {"modality": row.text("modality")}),
            "row": row,
        }
        identifier = row.text("id") if row.get("id") is not None else row.text(audio)
        items.append(Item(identifier, fields, (row.recording(audio),), row.group(*groups)))
    return unique(items, folder)


def build_few_shot(item: Item, builder: Builder, seed: int) -> Job:
    """Base-model prompt: recording, question with choices and answer, for each example; then the item's own."""
    segments: list[Segment] = [TextSegment(prompts.FEW_SHOT_PREFIX)]
    for shown in item.fields["shots"]:
        segments += _asked(shown, builder)
        segments += [TextSegment(f" {shown.fields['answer']}"), TextSegment(prompts.FEW_SHOT_GAP)]
    return Job([*segments, *_asked(item, builder)], settings.FEW_SHOT_CHOICE, seed)


def _asked(item: Item, builder: Builder) -> list[Segment]:
    listed = "\n".join(item.fields["choices"])
    return [
        AudioSegment(builder.codes(item.audio[-1])),
        TextSegment(f"Question: {item.fields['question']}\n{listed}"),
        TextSegment("\nAnswer:"),
    ]


def score_words(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    """Accuracy by the words of the final answer (`extraction.CHOICE_WORDS`)."""
    out = []
    for answered in answers:
        fields = answered.item.fields
        said = extraction.final_answer(answered.text)
        right = extraction.chooses(said, fields["answer"], fields["choices"])
        out.append(Outcome({"accuracy": correct(right)}, {"extracted": said, "reference": fields["answer"]}))
    return out


# ----- MMSU -----------------------------------------------------------------------------------------------------------


def read_mmsu(folder: Path) -> list[Item]:
    """question/mmsu.jsonl: id, audio_path, question, choice_a..choice_d, answer_gt (a choice's text), task_name, ..."""
    items = []
    for row in rows(data_files(folder, "question/mmsu.jsonl", "mmsu.jsonl"), folder):
        choices = [row.text(f"choice_{letter}") for letter in "abcd"]
        answer = row.text("answer_gt")
        if answer not in choices:
            raise row.error("answer_gt", f"is {answer!r}, none of the choices {choices}")
        fields = {"question": row.text("question"), "choices": choices, "answer": answer}
        groups = row.group("category", "sub-category", "sub-sub-category", "task_name")
        items.append(Item(row.text("id"), fields, (row.recording("audio_path"),), groups))
    return unique(items, folder)


def score_letters(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    """Accuracy by the letter of the answer (`extraction.LETTER`)."""
    out = []
    for answered in answers:
        fields, letter = answered.item.fields, extraction.letter(answered.text)
        said = None if letter is None else fields["choices"][_LETTERS.index(letter)]
        details = {"extracted": letter, "reference": fields["answer"]}
        out.append(Outcome({"accuracy": correct(said == fields["answer"])}, details))
    return out


def _listed(fields: Any) -> str:
    return choice_question(fields["question"], fields["choices"])


def _lettered(fields: Any) -> str:
    return lettered_question(fields["question"], fields["choices"])


def _accuracy(published: float | None = None) -> tuple[Metric, ...]:
    return (Metric("accuracy", published=published),)


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    words, letters = (score_words, extraction.CHOICE_WORDS), (score_letters, extraction.LETTER)
    made: list[Benchmark] = []
    for name, said, read, ask, (score, parser), published in (
        ("mmau", "MMAU test-mini", read_mmau, _listed, words, (74.90, None)),
        ("mmar", "MMAR", read_mmar, _listed, words, (63.60, None)),
        ("mmsu", "MMSU", read_mmsu, _lettered, letters, (61.70, 62.88)),
    ):
        for thinking in (False, True):
            made.append(
                Benchmark(
                    name + ("_thinking" if thinking else ""),
                    f"{said}: multiple-choice questions about recordings" + (", thinking first" if thinking else ""),
                    data=name,
                    read=read,
                    build=understanding(ask, thinking),
                    metrics=_accuracy(published[thinking]),
                    decoding=settings.UNDERSTANDING,
                    score=score,
                    parser=parser,
                )
            )
    made.append(
        Benchmark(
            "mmau_few_shot",
            f"MMAU test-mini, shown {SHOTS} answered questions (base model)",
            data="mmau",
            read=lambda folder: read_mmau(folder, SHOTS),
            build=build_few_shot,
            decoding=settings.FEW_SHOT_CHOICE,
            score=score_words,
            metrics=_accuracy(66.0),
            parser=extraction.CHOICE_WORDS,
            model="base",
        )
    )
    return made
