"""Instructions about the words of a recording, each with exactly one right written answer.

Whether one was followed needs no judge: the answer is compared letter by letter. The right answer is never the plain
transcript, nor what another kind asks of the same words, so hearing well alone is never right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimo_jax.data.corpus.questions import NUMBERS
from mimo_jax.data.corpus.texts import pick

# Words of a recording that gets an instruction. Of one word most kinds ask the same; the longest answers, spelled in
# capitals letter by letter or said twice, must fit into what a model may write.
FEWEST_WORDS, MOST_WORDS = 2, 8
_PREFIX = "instruction/"  # of the `kind` of an entry of `qa`


@dataclass(frozen=True)
class _Kind:
    """Wordings, the right answer of words, and how it is reached from them (``listed``: words with commas between)."""

    wordings: tuple[str, ...]
    answer: Callable[[Sequence[str]], str]
    thought: str


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


_KINDS: dict[str, _Kind] = {
    "first_word": _Kind(
        ("write only the first word", "which word comes first", "the first word and nothing else"),
        lambda words: words[0],
        "The first of them is {answer}.",
    ),
    "last_word": _Kind(
        ("write only the last word", "which word comes last", "the last word and nothing else"),
        lambda words: words[-1],
        "The last of them is {answer}.",
    ),
    "word_count": _Kind(
        (
            "write the number of words as a word",
            "count the words and write the number as a word",
            "how many words are said, written as a word",
        ),
        lambda words: _number(len(words)),
        "One by one they are {listed}, so their number is {answer}.",
    ),
    "capitals": _Kind(
        ("write the words in capital letters", "put all words in capitals", "use nothing but capital letters"),
        lambda words: " ".join(words).upper(),
        "In capital letters they are {answer}.",
    ),
    "reversed": _Kind(
        (
            "write the words in reverse order",
            "write the words from last to first",
            "begin with the last word and go back",
        ),
        lambda words: " ".join(reversed(words)),
        "From the last to the first they are {answer}.",
    ),
    "commas": _Kind(
        (
            "put a comma behind each word but the last",
            "write a comma after every word except the last",
            "separate the words with a comma and a space",
        ),
        ", ".join,
        "With a comma behind each but the last they are {answer}.",
    ),
    "twice": _Kind(
        ("write everything twice", "write all of it two times", "write what is said and then write it again"),
        lambda words: " ".join([*words, *words]),
        "Said again behind themselves they are {answer}.",
    ),
    "over": _Kind(
        (
            "write the words and then the word over",
            "write what is said and end with over",
            "write the words and add over at the end",
        ),
        lambda words: " ".join([*words, "over"]),
        "With over at the end they are {answer}.",
    ),
}
KINDS = tuple(_KINDS)


def answer(kind: str, words: Sequence[str]) -> str:
    """The right answer to an instruction of a kind of `KINDS` about one or more normalised words.

    Numbers up to twenty are words, larger ones digits.

    Raises:
      ValueError: no words.
    """
    if not words:
        raise ValueError(f"no words, so nothing answers an instruction of kind {kind!r}")
    return _KINDS[kind].answer(words)


def answers(words: Sequence[str]) -> dict[str, str]:
    """Answers by kind: of those kinds whose answer is neither the plain transcript nor that of another kind."""
    if not words:
        return {}
    found = {kind: answer(kind, words) for kind in KINDS}
    often = Counter([" ".join(words), *found.values()])
    return {kind: right for kind, right in found.items() if often[right] == 1}


def instruction(rng: np.random.Generator, words: Sequence[str]) -> dict[str, Any] | None:
    """An instruction about the normalised words of a recording, as an entry of the manifest's ``qa`` field.

    The kind is drawn from those that `answers` has, all alike: an answer that does not depend on the instruction is
    then right as often for it as for any other kind.

    Returns:
      ``question``, ``answer``, ``kind`` ("instruction/" and one of `KINDS`) and ``thought``, the way from the words to
      the answer; None where there are fewer words than `FEWEST_WORDS` or more than `MOST_WORDS`.
    """
    possible = answers(words)
    if not FEWEST_WORDS <= len(words) <= MOST_WORDS or not possible:
        return None
    kind = pick(rng, tuple(possible))
    reached = _KINDS[kind].thought.format(answer=possible[kind], listed=", ".join(words))
    return {
        "question": pick(rng, _KINDS[kind].wordings),
        "answer": possible[kind],
        "kind": _PREFIX + kind,
        "thought": f'The words are "{" ".join(words)}". {reached}',
    }


def kind_of(qa: Mapping[str, Any]) -> str | None:
    """The kind of `KINDS` of an entry of ``qa`` that is an instruction about the words; None of any other question."""
    named = str(qa.get("kind", ""))
    kind = named.removeprefix(_PREFIX)
    return kind if named.startswith(_PREFIX) and kind in _KINDS else None
