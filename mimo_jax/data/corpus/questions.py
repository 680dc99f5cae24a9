"""Questions with one right answer (small arithmetic, opposites, days and months, colours) for spoken dialogue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimo_jax.data.corpus.texts import pick

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "young"), ("long", "short"), ("high", "low")),
    *(("heavy", "light"), ("hard", "soft"), ("wet", "dry"), ("full", "empty"), ("open", "closed"), ("rich", "poor")),
    *(("early", "late"), ("loud", "quiet"), ("strong", "weak"), ("clean", "dirty"), ("wide", "narrow")),
    *(("good", "bad"), ("left", "right"), ("up", "down"), ("day", "night"), ("first", "last"), ("sweet", "bitter")),
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
    *("november", "december"),
)
_COLOURS = (
    *(("a banana", "yellow"), ("a tomato", "red"), ("grass", "green"), ("snow", "white"), ("coal", "black")),
    *(("the sky", "blue"), ("an orange", "orange"), ("a lemon", "yellow"), ("a frog", "green"), ("milk", "white")),
    *(("blood", "red"), ("a carrot", "orange"), ("chocolate", "brown"), ("a strawberry", "red"), ("a pig", "pink")),
    *(("a cherry", "red"), ("a cucumber", "green"), ("the sea", "blue"), ("a raven", "black")),
    ("an elephant", "grey"),
)
_OPENINGS = (
    *("", "", "tell me ", "please tell me ", "do you know ", "i want to know ", "can you tell me ", "quick question "),
)
_SHORT_ANSWERS = (
    *("it is {}", "that is {}", "the answer is {}", "i think it is {}", "the right answer is {}", "it must be {}"),
    *("of course it is {}", "that would be {}"),
)
KINDS = ("arithmetic", "opposite", "calendar", "colour")


@dataclass(frozen=True)
class Question:
    """A question, its answer as a sentence, and the word or words that make the answer right."""

    kind: str
    text: str
    reply: str
    answer: str


def question(rng: np.random.Generator) -> Question:
    """One question with one answer, both in one of several wordings."""
    kind = pick(rng, KINDS)
    if kind == "arithmetic":
        asked, told, answer = _arithmetic(rng)
    elif kind == "opposite":
        asked, told, answer = _opposite(rng)
    elif kind == "calendar":
        asked, told, answer = _calendar(rng)
    else:
        asked, told, answer = _colour(rng)
    reply = pick(rng, (*_SHORT_ANSWERS, told, told)).format(answer)
    return Question(kind, pick(rng, _OPENINGS) + asked, reply, answer)


def _arithmetic(rng: np.random.Generator) -> tuple[str, str, str]:
    operation, answer = sum_or_difference(rng)
    asked = pick(rng, ("what is {}", "how much is {}", "what do you get for {}")).format(operation)
    return asked, f"{operation} is {{}}", answer


def sum_or_difference(rng: np.random.Generator) -> tuple[str, str]:
    """An operation on two numbers up to ten, and its result: ("three plus four", "seven")."""
    a, b = (int(n) for n in rng.integers(0, 11, 2))
    if rng.random() < 0.5:
        return f"{NUMBERS[a]} plus {NUMBERS[b]}", NUMBERS[a + b]
    a, b = max(a, b), min(a, b)
    return f"{NUMBERS[a]} minus {NUMBERS[b]}", NUMBERS[a - b]


def _opposite(rng: np.random.Generator) -> tuple[str, str, str]:
    pair = pick(rng, _OPPOSITES)
    word, answer = pair if rng.random() < 0.5 else pair[::-1]
    asked = pick(rng, ("what is the opposite of {}", "which word is the opposite of {}", "what is the contrary of {}"))
    return asked.format(word), f"the opposite of {word} is {{}}", answer


def _calendar(rng: np.random.Generator) -> tuple[str, str, str]:
    unit, names = pick(rng, (("day", _DAYS), ("month", _MONTHS)))
    step, relation = pick(rng, ((1, "after"), (-1, "before")))
    index = int(rng.integers(len(names)))
    word, answer = names[index], names[(index + step) % len(names)]
    asked = pick(rng, (f"which {unit} comes {relation} {word}", f"what {unit} is {relation} {word}"))
    return asked, f"the {unit} {relation} {word} is {{}}", answer


def _colour(rng: np.random.Generator) -> tuple[str, str, str]:
    thing, answer = pick(rng, _COLOURS)
    asked = pick(rng, ("what colour is {}", "which colour does {} have", "what is the colour of {}")).format(thing)
    return asked, f"{thing} is {{}}", answer
