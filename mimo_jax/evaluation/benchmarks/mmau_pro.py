"""MMAU-Pro: open questions, instructions to follow, and questions with choices about one or several recordings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.data import prompts
from mimo_jax.data.sequence import AudioSegment, Segment, TextSegment
from mimo_jax.evaluation import instruction_rules
from mimo_jax.evaluation.benchmarks import extraction, settings
from mimo_jax.evaluation.benchmarks.base import (
    Answered,
    Benchmark,
    Builder,
    Failure,
    Item,
    Metric,
    Outcome,
    correct,
    failed,
)
from mimo_jax.evaluation.benchmarks.multiple_choice import choice_question
from mimo_jax.evaluation.benchmarks.reading import Row, data_files, rows, unique
from mimo_jax.evaluation.benchmarks.tools import Tools
from mimo_jax.inference.jobs import Job

OPEN, INSTRUCTIONS = "open", "instruction following"
PARSER = "mmau-pro/1"
_BEST = 5.0

_JUDGE = """You grade answers to questions about audio recordings. You cannot hear the recording; the reference answer \
says what is in it.

Question: {question}

Reference answer: {reference}

Answer to be graded: {answer}

Give a whole mark from 1 (bad) to 5 (excellent) for each of these, with a reason of one sentence:
- correctness: are the facts those of the reference?
- relevance: does it answer what was asked?
- completeness: is everything that matters in the reference there?
- clarity: is it well put and easy to follow?
Reply in exactly this form:
CORRECTNESS: mark - reason
RELEVANCE: mark - reason
COMPLETENESS: mark - reason
CLARITY: mark - reason
OVERALL: mean of the four marks - reason"""


def read(folder: Path) -> list[Item]:
    """test.parquet (or JSON): id, audio_path (list), question, answer, category; choices, task_identifier, kwargs."""
    items = []
    for number, row in enumerate(rows(data_files(folder, "test.parquet", "data.jsonl"), folder)):
        category = row.text("category")
        audio = tuple(row.at(path, "audio_path") for path in row.texts("audio_path"))
        fields: dict[str, Any] = {"question": row.text("question"), "category": category}
        if category == INSTRUCTIONS:
            fields |= _rule(row)
        else:
            fields["answer"] = row.text("answer")
        if category not in (OPEN, INSTRUCTIONS):
            fields["choices"] = row.choices("choices", fields["answer"])
        kind = category if category in (OPEN, INSTRUCTIONS) else "closed"
        identifier = row.text("id") if row.get("id") is not None else str(number)
        items.append(Item(identifier, fields, audio, {"category": category, "kind": kind}))
    return unique(items, folder)


def _rule(row: Row) -> dict[str, Any]:
    rule, arguments = row.text("task_identifier"), row.get("kwargs") or {}
    if rule not in instruction_rules.RULES:
        raise row.error("task_identifier", f"is {rule!r}; known rules: {', '.join(instruction_rules.RULES)}")
    if not isinstance(arguments, Mapping):
        raise row.error("kwargs", f"is {arguments!r}: expected an object")
    arguments = dict(arguments)
    if row.get("prompt_transcription") is not None:
        arguments["prompt_transcription"] = row["prompt_transcription"]
    try:
        instruction_rules.check(rule, arguments, "")
    except ValueError as error:
        raise row.error("kwargs", f"does not suit the rule: {error}") from error
    return {"rule": rule, "arguments": arguments}


def build(item: Item, builder: Builder, seed: int, thinking: bool) -> Job:
    """One recording before the question, or several, each named by its number."""
    fields = item.fields
    question = fields["question"]
    if "choices" in fields:
        question = choice_question(question, fields["choices"])
    if len(item.audio) == 1:
        [job] = builder.jobs.audio_understanding([item.audio[0]], [question], thinking=thinking, seeds=[seed])
        return job
    heard: list[Segment] = []
    for number, path in enumerate(item.audio):
        heard += [
            TextSegment(f"Recording {number + 1}: ", role="user"),
            AudioSegment(builder.codes(path), role="user"),
            TextSegment("\n", role="user"),
        ]
    start, _, *rest = prompts.audio_understanding(builder.codes(item.audio[0]), question, thinking)
    return Job([start, *heard, *rest], settings.UNDERSTANDING, seed, thinking)


def score(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    """Open: judged, overall / 5. Instructions: followed or not. Others: the choice nearest to the answer is right.

    "score" is the mean over all items, so that each kind counts by its number of items.
    """
    kinds: dict[str, Callable[[Sequence[Answered], Tools], list[Outcome]]] = {
        "open": _judged,
        INSTRUCTIONS: _followed,
        "closed": _nearest,
    }
    out: dict[str, Outcome] = {}
    for kind, function in kinds.items():
        chosen = [answered for answered in answers if answered.item.groups["kind"] == kind]
        if chosen:
            made = function(chosen, tools)
            out.update((answered.item.id, outcome) for answered, outcome in zip(chosen, made, strict=True))
    return [out[answered.item.id] for answered in answers]


def _judged(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    asked = [
        _JUDGE.format(
            question=answered.item.fields["question"],
            reference=answered.item.fields["answer"],
            answer=extraction.after_thinking(answered.text),
        )
        for answered in answers
    ]
    out = []
    for made in tools.ask(asked, extraction.criteria):
        if isinstance(made, Failure):
            out.append(failed(made))
            continue
        marks, reply = made
        share = (marks["overall"] / _BEST, 1.0)
        out.append(Outcome({"score": share, "open": share}, {"marks": marks, "reply": reply}))
    return out


def _followed(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    out = []
    for answered in answers:
        fields = answered.item.fields
        text = extraction.after_thinking(answered.text)
        share = correct(instruction_rules.check(fields["rule"], fields["arguments"], text))
        out.append(Outcome({"score": share, "instruction following": share}, {"rule": fields["rule"]}))
    return out


def _nearest(answers: Sequence[Answered], tools: Tools) -> list[Outcome]:
    texts = [extraction.after_thinking(answered.text) for answered in answers]
    sizes = [len(answered.item.fields["choices"]) for answered in answers]
    choices = [choice for answered in answers for choice in answered.item.fields["choices"]]
    vectors = tools.embed_texts([*texts, *choices])
    said, rest = vectors[: len(texts)], iter(vectors[len(texts) :])
    out = []
    for answered, text, vector, size in zip(answers, texts, said, sizes, strict=True):
        fields, shown = answered.item.fields, [next(rest) for _ in range(size)]
        failure = next((v for v in [vector, *shown] if isinstance(v, Failure)), None)
        if failure is not None:
            out.append(failed(failure))
            continue
        cosines = [float(np.dot(np.asarray(vector), np.asarray(choice))) for choice in shown]
        # An answer without words is near to nothing: its embedding is that of whatever the embedder makes of "".
        chosen = fields["choices"][int(np.argmax(cosines))] if text.strip() else None
        share = correct(chosen == fields["answer"])
        details = {"extracted": chosen, "reference": fields["answer"], "cosines": [round(c, 4) for c in cosines]}
        out.append(Outcome({"score": share, "closed": share}, details))
    return out


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    return [
        Benchmark(
            "mmau_pro" + ("_thinking" if thinking else ""),
            "MMAU-Pro: open questions, instructions, choices" + (", thinking first" if thinking else ""),
            data="mmau_pro",
            read=read,
            build=functools.partial(build, thinking=thinking),
            decoding=settings.UNDERSTANDING,
            score=score,
            metrics=(
                Metric("score", published=None if thinking else 53.35),
                Metric("open"),
                Metric(INSTRUCTIONS),
                Metric("closed"),
            ),
            parser=PARSER,
            needs=("judge", "text_embedder"),
        )
        for thinking in (False, True)
    ]
