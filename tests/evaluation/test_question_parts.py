"""Questions and answers with fake models whose right figures are known."""

import itertools

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import question_parts
from mimo_jax.evaluation.selection import Item
from mimo_jax.evaluation.speech_parts import Samples
from mimo_jax.evaluation.systems import Reasoned, Systems

WAVE = np.zeros(2400, np.float32)
CHOICES = ("low", "normal", "high")


class Model:
    """Always gives the same answer."""

    def answer_about_audio(self, waves, questions, *, seeds):
        return ["Normal." for _ in waves]


def asked() -> list[Item]:
    """Six questions, each with its choices in another order; half of the answers are "normal"."""
    orders = itertools.permutations(CHOICES)
    answers = ("normal", "low", "normal", "high", "normal", "low")
    return [
        Item(Record(f"r{i}", "x", "one", qa=[{"question": "how high", "answer": a, "choices": list(order)}]), WAVE)
        for i, (a, order) in enumerate(zip(answers, orders, strict=True))
    ]


def test_the_commonest_answer_is_that_of_the_wording_whatever_the_order_of_its_choices():
    part = question_parts.audio_questions(Model(), asked(), 6, seed=0)
    assert part["figures"]["audio_question_accuracy"]["value"] == 0.5
    assert part["figures"]["audio_question_accuracy_commonest"]["value"] == 0.5
    assert part["items"][1]["question"] == "how high Choose from: low, high, normal."


class Thinker(Model):
    """Answers half of the questions rightly after a thought, and never ends the thought about the others."""

    def answer_after_thinking(self, waves, questions, *, seeds):
        return [Reasoned("", "hm") if i % 2 else Reasoned("normal", "It is normal.") for i in range(len(waves))]

    def answer_in_writing(self, waves, *, seeds):
        return ["two plus two is four", "it is four", "four it is", ""]

    def answer_in_speech(self, waves, *, seeds):
        return [np.full(10, i, np.float32) for i in range(len(waves))]


class Judge:
    def transcribe(self, waves):
        return [("it is four", "five", "it is red", "blue")[int(wave[0])] for wave in waves]


def test_thinking_is_measured_on_the_same_questions_and_an_unfinished_thought_is_wrong():
    plain = question_parts.audio_questions(Thinker(), asked(), 6, seed=0)
    thinking = question_parts.audio_questions_thinking(Thinker(), asked(), 6, seed=0)
    assert [i["id"] for i in plain["items"]] == [i["id"] for i in thinking["items"]]
    assert thinking["figures"]["audio_question_thinking_answered"]["value"] == 0.5
    assert thinking["figures"]["audio_question_thinking_accuracy"]["value"] == 0.5
    assert thinking["items"][1] | {"thought": "hm", "answer": ""} == thinking["items"][1]


def answered(**last) -> tuple[list[Item], list[str]]:
    facts = [
        {"kind": "sum", "answer": "four"},
        {"kind": "sum", "answer": "four"},
        {"kind": "sum", "answer": "five"},
        last,
    ]
    items = [Item(Record(f"q{i}", "x", "why", attributes=f, reply="a"), WAVE) for i, f in enumerate(facts)]
    return items, ["it is four", "it is four", "it must be five", "it is blue"]


def test_written_answers_count_exactly_and_by_the_words_they_end_with():
    items, replies = answered(kind="colour", answer="blue")
    figures = question_parts.written_answers(Thinker(), items, replies, seed=0)["figures"]
    assert figures["written_answer_accuracy"]["value"] == 0.25
    assert figures["written_answer_right"]["value"] == 0.5
    assert figures["written_answer_right_commonest"]["value"] == 0.75


def test_spoken_answers_count_by_the_words_they_end_with_where_the_record_names_them(tmp_path):
    items, replies = answered()
    systems = Systems(Judge(), None, Thinker(), 24_000)
    part = question_parts.spoken_questions(systems, Thinker(), items, replies, Samples(tmp_path, 24_000, 0), seed=0)
    assert part["figures"]["spoken_question_accuracy"]["value"] == 0.25
    assert (
        part["figures"]["spoken_question_right"] | {"n": 3, "value": 1 / 3} == part["figures"]["spoken_question_right"]
    )
    assert part["items"][3]["right"] is None
    unnamed = [Item(Record("q", "x", "why", reply="a"), WAVE)]
    part = question_parts.spoken_questions(systems, Thinker(), unnamed, ["five"], Samples(tmp_path, 24_000, 0), seed=0)
    assert set(part["figures"]) == {"spoken_question_accuracy", "spoken_question_wer"}
