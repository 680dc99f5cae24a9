"""Written instructions answered by fake models whose right figures are known."""

import numpy as np
import pytest

from mimo_jax.data.corpus import instructions
from mimo_jax.data.corpus.plan import generator
from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import question_parts
from mimo_jax.evaluation.selection import Item
from mimo_jax.evaluation.written_instructions import written_instructions

TEXTS = [f"set the timer for {number} minutes" for number in "two three five seven eight nine".split()]
SOUND = {"question": "how high", "answer": "low"}


def items(texts=TEXTS, draws=8) -> list[Item]:
    """Several recordings of each text, each with a question about its sound and an instruction about its words."""
    made = []
    for number, text in enumerate(texts):
        for draw in range(draws):
            qa = [SOUND, instructions.instruction(generator(number, draw), text.split())]
            made.append(Item(Record(f"r{number}-{draw}", "x", text, qa=qa), np.full(10, number, np.float32)))
    return made


class Model:
    """Hears the n-th of its texts in the n-th recording, and answers as ``follow`` says."""

    def __init__(self, follow, heard=TEXTS):
        self.follow, self.heard = follow, heard

    def asr(self, waves, *, seeds):
        return [self.heard[int(wave[0])] for wave in waves]

    def answer_about_audio(self, waves, questions, *, seeds):
        return [self.follow(heard, asked) for heard, asked in zip(self.asr(waves, seeds=seeds), questions, strict=True)]


KIND = {qa["question"]: instructions.kind_of(qa) for item in items(draws=200) for qa in item.record.qa[1:]}


def obeys(heard: str, asked: str) -> str:
    return f" {instructions.answer(KIND[asked], heard.split())}\n"


def measured(model: Model, **given) -> dict[str, float]:
    part = written_instructions(model, items(), given.get("limit", 1000), seed=0)
    return {name.removeprefix("written_instruction_"): f["value"] for name, f in part["figures"].items()}


def test_a_model_that_hears_and_follows_is_right_about_this_instruction_and_no_other():
    assert measured(Model(obeys)) == {
        "accuracy": 1,
        "accuracy_transcript": 0,
        "accuracy_other_kinds": 0,
        "followed": 1,
        "followed_other_kinds": 0,
        "heard_wer": 0,
    }


def test_a_model_that_only_writes_what_it_hears_is_never_right():
    figures = measured(Model(lambda heard, asked: heard))
    assert figures["accuracy"] == figures["accuracy_other_kinds"] == 0
    assert figures["followed"] == figures["followed_other_kinds"] == 0 and figures["heard_wer"] == 0


def test_a_model_that_follows_but_hears_wrongly_is_told_from_one_that_hears_but_does_not_follow():
    figures = measured(Model(obeys, ["turn on the fan"] * len(TEXTS)))
    assert figures["followed"] == 1 and figures["followed_other_kinds"] == 0
    assert figures["accuracy"] == 0 and figures["heard_wer"] > 0.5


def test_the_same_whatever_the_instruction_is_right_as_often_for_the_other_kinds():
    def first(heard, asked):
        return heard.split()[0]

    part = written_instructions(Model(first), items(draws=400), 10_000, seed=0)
    value = {name: figure["value"] for name, figure in part["figures"].items()}
    assert value["written_instruction_accuracy"] == pytest.approx(1 / 8, abs=0.02)
    assert value["written_instruction_accuracy_other_kinds"] == pytest.approx(1 / 8, abs=0.02)
    assert value["written_instruction_followed"] == value["written_instruction_accuracy"]


@pytest.mark.parametrize("change", [str.lower, lambda text: text.replace(",", ""), lambda text: f"{text}."])
def test_case_and_punctuation_count(change):
    exact = measured(Model(obeys))["accuracy"]
    assert measured(Model(lambda heard, asked: change(obeys(heard, asked).strip())))["accuracy"] < exact


@pytest.mark.parametrize("heard", ["", "minutes"])
def test_what_leaves_an_instruction_no_answer_of_its_own_is_not_followed(heard):
    part = written_instructions(Model(lambda *_: heard, [heard] * len(TEXTS)), items(), 1000, seed=0)
    assert not any(item["followed"] for item in part["items"])


def test_items_hold_what_decided_and_only_instructions_are_taken():
    part = written_instructions(Model(obeys), items(), 5, seed=0)
    assert len(part["items"]) == 5 and part["figures"]["written_instruction_accuracy"]["n"] == 5
    first = part["items"][0]
    assert first["kind"] in instructions.KINDS and first["instruction"] in KIND and first["text"] == TEXTS[0]
    assert first["answer"].strip() == first["reference"] and first["heard"] == TEXTS[0] and first["followed"] is True
    plain = [Item(Record("q", "x", "one two", qa=[SOUND]), np.zeros(10, np.float32))]
    assert written_instructions(Model(obeys), plain, 5, seed=0) == {"figures": {}, "items": []}


def test_questions_about_the_sound_are_the_same_with_and_without_instructions():
    with_them = question_parts.Asked.of(items(), 7)
    bare = [Item(Record(i.record.id, "x", i.text, qa=[SOUND]), i.wave) for i in items()]
    without = question_parts.Asked.of(bare, 7)
    assert with_them.ids == without.ids and with_them.references == ["low"] * 7
    assert with_them.questions == without.questions and with_them.wordings == without.wordings
