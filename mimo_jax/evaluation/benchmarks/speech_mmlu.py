"""SpeechMMLU: one set of questions in four pairs of modalities, five examples in the item's voice (base model)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError
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
    spoken,
)
from mimo_jax.evaluation.benchmarks.reading import Row, audio_path, data_files, rows, unique
from mimo_jax.evaluation.benchmarks.tools import Tools
from mimo_jax.inference.jobs import Job, Question, Speech

SHOTS = 5
SHOTS_FILE = "few_shot_prompts.json"
# (question, answer): s = speech, t = text.
PAIRS = {"t2t": 72.5, "s2t": 69.5, "t2s": 71.5, "s2s": 69.1}
DATA = "speech_mmlu"


def task_name(pair: str) -> str:
    """Name of the task of a pair of modalities."""
    return f"speech_mmlu_{pair}"


def read(folder: Path, pair: str) -> list[Item]:
    """Records {id, subject, question_text, question_audio, voice_id, answer (0..3)} and few_shot_prompts.json.

    The latter is {subject: {"beginning": text, "examples": [{"question": text, "answer": text}, ...]}}; its recordings
    are audio/SUBJECT/prompts/SUBJECT_VOICE/SUBJECT_{beginning, I_question_and_choices, I_answer}.mp3 (or .wav).
    """
    shots = _read_shots(folder / SHOTS_FILE)
    items = []
    for row in rows(data_files(folder, "data.jsonl", leave_out=[SHOTS_FILE]), folder):
        subject, answer = row.text("subject"), row.required("answer")
        if answer not in (0, 1, 2, 3) or isinstance(answer, bool):
            raise row.error("answer", f"is {answer!r}: expected 0, 1, 2 or 3")
        if subject not in shots:
            raise row.error("subject", f"{subject!r} has no examples in {folder / SHOTS_FILE}")
        fields: dict[str, Any] = {"question": row.text("question_text"), "answer": answer, "shots": shots[subject]}
        heard: list[str] = []
        if pair != "t2t":
            fields["recordings"] = recordings = _recordings(
                row, subject, row.text("voice_id"), len(shots[subject]["examples"])
            )
            if pair[0] == "s":
                heard = [row.recording("question_audio"), recordings["beginning"], *recordings["questions"]]
            heard += recordings["answers"] if pair[2] == "s" else []
        items.append(Item(row.text("id"), fields, tuple(heard), {"subject": subject}))
    return unique(items, folder)


def _read_shots(path: Path) -> dict[str, Any]:
    try:
        shots = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; it holds the examples of each subject (docs/evaluation.md)") from error
    for subject, value in shots.items():
        examples = value.get("examples", []) if isinstance(value, dict) else []
        if (
            len(examples) < SHOTS
            or not all({"question", "answer"} <= e.keys() for e in examples)
            or "beginning" not in value
        ):
            raise UserError(f"{path}: {subject!r} needs a beginning and {SHOTS} examples with question and answer")
        value["examples"] = examples[:SHOTS]
    return shots


def _recordings(row: Row, subject: str, voice: str, count: int) -> Mapping[str, Any]:
    folder = f"audio/{subject}/prompts/{subject}_{voice}"

    def find(name: str) -> str:
        for kind in (".wav", ".flac"):
            if (row.folder / folder / f"{subject}_{name}{kind}").is_file():
                return str((row.folder / folder / f"{subject}_{name}{kind}").resolve())
        path = f"{folder}/{subject}_{name}.mp3"
        return audio_path(path, row.folder, lambda problem: row.error("voice_id", f"{voice!r} {problem}"))

    return {
        "beginning": find("beginning"),
        "questions": [find(f"{i}_question_and_choices") for i in range(count)],
        "answers": [find(f"{i}_answer") for i in range(count)],
    }


def build(item: Item, builder: Builder, seed: int, pair: str) -> Job:
    """The few-shot prompt of the pair of modalities."""
    shots, recordings = item.fields["shots"], item.fields.get("recordings", {})
    asks, answers = pair[0] == "s", pair[2] == "s"
    examples = []
    for number, shown in enumerate(shots["examples"]):
        question: Any = shown["question"]
        answer: Any = shown["answer"]
        if asks:
            question = builder.codes(recordings["questions"][number])
        if answers:
            answer = Speech(answer, builder.codes(recordings["answers"][number]))
        examples.append((question, answer))
    query: Any = builder.codes(item.audio[0]) if asks else item.fields["question"]
    beginning: Any = builder.codes(recordings["beginning"]) if asks else shots["beginning"]
    question = Question(query, examples, beginning, spoken=answers)
    [job] = builder.jobs.few_shot_question_answering([question], seeds=[seed])
    return job


def score(answers: Sequence[Answered], tools: Tools, pair: str) -> list[Outcome]:
    """Accuracy by the first option that is named, in the transcript where the answer is spoken."""
    said: Sequence[str | Failure] = [answered.text for answered in answers]
    if pair[2] == "s":
        said = tools.transcribe(spoken(answers), ["en"] * len(answers))
    out = []
    for answered, text in zip(answers, said, strict=True):
        if isinstance(text, Failure):
            out.append(failed(text))
            continue
        option, right = extraction.option(text), answered.item.fields["answer"]
        details = {"extracted": option, "reference": right}
        if pair[2] == "s":
            details["transcript"] = text
        out.append(Outcome({"accuracy": correct(option == right)}, details))
    return out


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    words = {"t": "text", "s": "speech"}
    return [
        Benchmark(
            task_name(pair),
            f"SpeechMMLU, {words[pair[0]]} to {words[pair[2]]}, {SHOTS} examples (base model)",
            data=DATA,
            read=functools.partial(read, pair=pair),
            build=functools.partial(build, pair=pair),
            decoding=settings.FEW_SHOT_SPOKEN if pair[2] == "s" else settings.FEW_SHOT_TEXT,
            score=functools.partial(score, pair=pair),
            metrics=(Metric("accuracy", published=published),),
            parser=extraction.OPTION,
            needs=("transcriber",) if pair[2] == "s" else (),
            model="base",
        )
        for pair, published in PAIRS.items()
    ]
