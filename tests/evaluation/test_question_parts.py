"""Questions and answers with fake models whose right figures are known."""

import itertools

import numpy as np

from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import question_parts
from mimo_jax.evaluation.selection import Item

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
