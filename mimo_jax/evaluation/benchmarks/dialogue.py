"""Spoken dialogues that a judge marks: Big Bench Audio, MultiChallenge Audio."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from mimo_jax.inference.jobs import Job, Message, Speech

PASS_MARK = 0.6
SHARE_PARSER, VERDICT_PARSER = "judged-share/2", "judged-verdict/1"
VOICE = "voice.wav"

_AGREES = """Does the response to a question come to the same answer as the reference? Only the final answer counts, \
not how it is worded or explained.

Reference answer: {reference}
Response: {answer}

Reply with one JSON object and nothing else: {{"steps": [short remarks], "result": a number from 0.0 (another answer, \
or none) to 1.0 (the same answer)}}."""

_MEETS = """Here is the response of an assistant in a conversation:
<response>
{answer}
</response>
Here is a question about it:
<question>
{criterion}
</question>
Answer the question about the response. Be very strict. Give your reasoning first and end with your verdict as one \
word, YES or NO."""


def heard_texts(answers: Sequence[Answered], tools: Tools, speaks: bool) -> list[str | Failure]:
    """What was answered: the text, or the transcript of a spoken answer (English)."""
    if speaks:
        return tools.transcribe(spoken(answers), ["en"] * len(answers))
    return [extraction.after_thinking(answered.text) for answered in answers]


# ----- Big Bench Audio ------------------------------------------------------------------------------------------------


def read_big_bench(folder: Path, speaks: bool) -> list[Item]:
    """Records {audio, category, official_answer}; voice.wav, if it is there, is how spoken answers shall sound."""
    items = []
    voice = folder / VOICE
    for number, row in enumerate(rows(data_files(folder, "data.jsonl", "metadata.jsonl"), folder)):
        name = "audio" if row.get("audio") is not None else "file_name"
        heard = [row.recording(name), *([str(voice.resolve())] if speaks and voice.is_file() else [])]
        identifier = row.text("id") if row.get("id") is not None else str(number)
        fields = {"answer": row.text("official_answer")}
        items.append(Item(identifier, fields, tuple(heard), {"category": row.text("category")}))
    return unique(items, folder)


def build_big_bench(item: Item, builder: Builder, seed: int, speaks: bool) -> Job:
    """One spoken user turn, and nothing else."""
    turns = [Message("user", builder.codes(item.audio[0]))]
    if not speaks:
        [job] = builder.jobs.speech_to_text_dialogue([turns], seeds=[seed])
    else:
        voice = builder.codes(item.audio[1]) if len(item.audio) > 1 else None
        [job] = builder.jobs.spoken_dialogue([turns], voice=voice, seeds=[seed])
    return job


def score_big_bench(answers: Sequence[Answered], tools: Tools, speaks: bool) -> list[Outcome]:
    """Right where the judge finds at least 0.6 agreement with the official answer; an empty answer agrees with none."""
    said = heard_texts(answers, tools, speaks)
    asked = [i for i, text in enumerate(said) if not isinstance(text, Failure) and text.strip()]
    prompts = [_AGREES.format(reference=answers[i].item.fields["answer"], answer=said[i]) for i in asked]
    made = dict(zip(asked, tools.ask(prompts, extraction.share) if prompts else [], strict=True))
    out = []
    for i, (answered, text) in enumerate(zip(answers, said, strict=True)):
        if isinstance(text, Failure):
            out.append(failed(text))
            continue
        details: dict[str, Any] = {"heard": text, "reference": answered.item.fields["answer"]}
        judged = made.get(i, (0.0, ""))
        if isinstance(judged, Failure):
            out.append(failed(judged, **details))
            continue
        share, reply = judged
        details |= {"agreement": share, "reply": reply}
        out.append(Outcome({"accuracy": correct(share >= PASS_MARK)}, details))
    return out


# ----- MultiChallenge Audio -------------------------------------------------------------------------------------------


def read_multi_challenge(folder: Path, speaks: bool) -> list[Item]:
    """data.jsonl: speech_dialogue and CONVERSATION (turns {role, content}: a path, a text), assistant_voice_id,
    TARGET_QUESTION, PASS_CRITERIA (YES or NO), and where they are there QUESTION_ID and AXIS.

    Voices are prompt_wav/VOICE.wav.
    """
    items = []
    for number, row in enumerate(rows(data_files(folder, "data.jsonl"), folder)):
        heard, said = _turns(row, "speech_dialogue"), _turns(row, "CONVERSATION")
        if [turn["role"] for turn in heard] != [turn["role"] for turn in said]:
            raise row.error("speech_dialogue", "has other turns than CONVERSATION")
        if heard[-1]["role"] != "user":
            raise row.error("speech_dialogue", "does not end with the user's turn")
        criterion = row.text("PASS_CRITERIA").strip().upper()
        if criterion not in ("YES", "NO"):
            raise row.error("PASS_CRITERIA", f"is {criterion!r}: expected YES or NO")
        turns: list[tuple[str, str, str | None]] = []
        for spoken_turn, written in zip(heard, said, strict=True):
            needed = spoken_turn["role"] == "user" or speaks
            path = row.at(spoken_turn["content"], "speech_dialogue") if needed else None
            turns.append((spoken_turn["role"], written["content"], path))
        fields: dict[str, Any] = {"turns": turns, "question": row.text("TARGET_QUESTION"), "criterion": criterion}
        audio = [path for _, _, path in turns if path is not None]
        if speaks:
            name = f"prompt_wav/{row.text('assistant_voice_id')}.wav"
            fields["voice"] = audio_path(
                name, folder, lambda problem, row=row: row.error("assistant_voice_id", problem)
            )
            audio.append(fields["voice"])
        identifier = row.text("QUESTION_ID") if row.get("QUESTION_ID") is not None else str(number)
        items.append(Item(identifier, fields, tuple(audio), {"axis": str(row["AXIS"])} if row.get("AXIS") else {}))
    return unique(items, folder)


def _turns(row: Row, name: str) -> list[dict[str, str]]:
    turns = row.required(name)
    ok = isinstance(turns, list) and turns
    if not ok or not all(
        isinstance(turn, dict) and turn.get("role") in ("user", "assistant") and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise row.error(name, "must be a list of turns {role: user or assistant, content: text or path}")
    return turns


def build_multi_challenge(item: Item, builder: Builder, seed: int, speaks: bool) -> Job:
    """The dialogue; the assistant's turns as text, or as streamed speech in the item's voice."""
    turns = []
    for role, text, path in item.fields["turns"]:
        if role == "user":
            turns.append(Message("user", builder.codes(path)))
        elif speaks:
            turns.append(Message("assistant", Speech(text, builder.codes(path))))
        else:
            turns.append(Message("assistant", text))
    if speaks:
        voice = builder.codes(item.fields["voice"])
        [job] = builder.jobs.spoken_dialogue([turns], voice=voice, seeds=[seed])
    else:
        [job] = builder.jobs.speech_to_text_dialogue([turns], seeds=[seed])
    return job


def score_multi_challenge(answers: Sequence[Answered], tools: Tools, speaks: bool) -> list[Outcome]:
    """Right where the judge's verdict is the one to pass, and something was answered."""
    said = heard_texts(answers, tools, speaks)
    asked = [i for i, text in enumerate(said) if not isinstance(text, Failure) and text.strip()]
    prompts = [_MEETS.format(answer=said[i], criterion=answers[i].item.fields["question"]) for i in asked]
    made = dict(zip(asked, tools.ask(prompts, extraction.verdict) if prompts else [], strict=True))
    out = []
    for i, (answered, text) in enumerate(zip(answers, said, strict=True)):
        if isinstance(text, Failure):
            out.append(failed(text))
            continue
        details: dict[str, Any] = {"heard": text, "reference": answered.item.fields["criterion"]}
        if i not in made:
            out.append(Outcome({"accuracy": correct(False)}, details))
            continue
        judged = made[i]
        if isinstance(judged, Failure):
            out.append(failed(judged, **details))
            continue
        verdict, reply = judged
        right = ("YES" if verdict else "NO") == answered.item.fields["criterion"]
        out.append(Outcome({"accuracy": correct(right)}, {**details, "verdict": verdict, "reply": reply}))
    return out


def benchmarks() -> list[Benchmark]:
    """Those of this module."""
    made = []
    for name, said, read, build, score, parser, published in (
        (
            "big_bench_audio",
            "Big Bench Audio: spoken reasoning questions",
            read_big_bench,
            build_big_bench,
            score_big_bench,
            SHARE_PARSER,
            (72.90, 60.20),
        ),
        (
            "multi_challenge",
            "MultiChallenge Audio: dialogues of several turns",
            read_multi_challenge,
            build_multi_challenge,
            score_multi_challenge,
            VERDICT_PARSER,
            (15.15, 10.10),
        ),
    ):
        for speaks in (False, True):
            made.append(
                Benchmark(
                    name + ("_s2s" if speaks else "_s2t"),
                    f"{said}, {'spoken' if speaks else 'written'} answers",
                    data=name,
                    read=functools.partial(read, speaks=speaks),
                    build=functools.partial(build, speaks=speaks),
                    decoding=settings.SPOKEN_DIALOGUE if speaks else settings.WRITTEN_DIALOGUE,
                    score=functools.partial(score, speaks=speaks),
                    metrics=(Metric("accuracy", published=published[speaks]),),
                    parser=parser,
                    needs=("judge", *(("transcriber",) if speaks else ())),
                )
            )
    return made
