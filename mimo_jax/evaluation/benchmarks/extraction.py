"""What an answer means: rules that read choices, letters, options, verdicts and scores out of free text.

Each rule has a name with a version, stored with every score: a rule whose results may differ gets a new number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

CHOICE_WORDS = "choice-words/1"
LETTER = "letter/1"
OPTION = "option/1"
TRANSCRIPT = "transcript/1"
NONE = "none/1"

_THINK_END = "</think>"
_MARKED = (
    re.compile(r"^[ \t]*(?:the\s+)?correct\s+(?:choice|answer)\s+is\s*[:-]?\s*", re.IGNORECASE | re.MULTILINE),
    re.compile(r"^[ \t]*answer\s*[:-]\s*", re.IGNORECASE | re.MULTILINE),
)
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_WORD = re.compile(r"\w+")
_OPTION = re.compile(r"option\s*([abcd])")
_EDGES = " \t\r\n.:;!?,"


def after_thinking(text: str) -> str:
    """What follows the first end of a thought; the whole text where there is none."""
    return text.split(_THINK_END, 1)[-1].lstrip()


def final_answer(text: str) -> str:
    """The words that an answer comes down to, "" where it says nothing (`CHOICE_WORDS`).

    Candidates are what follows "correct answer is" and then what follows "answer:" at the start of a line, on the same
    line or the next (where that says nothing: the next bold text, else the next line that does); without any, bold
    texts; without any, the first line. The last candidate counts.
    """
    text = after_thinking(text)
    candidates = []
    for pattern in _MARKED:
        for found in pattern.finditer(text):
            rest = text[found.end() :]
            candidates.append(_tidy(rest) or _first(_BOLD.findall(rest)) or _first(rest.splitlines()))
    candidates = [candidate for candidate in candidates if candidate] or [
        bold for bold in map(_tidy, _BOLD.findall(text)) if bold
    ]
    return candidates[-1] if candidates else _first(text.splitlines())


def _first(texts: Sequence[str]) -> str:
    return next(filter(None, map(_tidy, texts)), "")


def _tidy(text: str) -> str:
    """One line without emphasis, quotation marks and punctuation around it."""
    text = text.strip()
    text = text.splitlines()[0].strip() if text else ""
    for mark in (r"\*{1,2}", "`", "['\"]"):
        text = re.sub(rf"^{mark}(.+?){mark}$", r"\1", text)
    return re.sub(r"\s+", " ", text.strip(_EDGES))


def chooses(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether a prediction means the answer: it has all of its words, and none that only wrong choices have."""
    said, right = _words(prediction), _words(answer)
    wrong = set().union(*(_words(choice) - right for choice in choices))
    return bool(said) and right <= said and not said & wrong


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def letter(text: str) -> str | None:
    """A, B, C or D: the first character, else the last but one (as in "(A)"); None where it is neither (`LETTER`)."""
    text = after_thinking(text).strip().replace("\n", "")
    if text[:1] in tuple("ABCD"):
        return text[0]
    return text[-2] if len(text) > 1 and text[-2] in "ABCD" else None


def option(text: str) -> int | None:
    """0..3 of the first "option a".."option d" in a text, None without one (`OPTION`)."""
    found = _OPTION.search(text.lower())
    return None if found is None else "abcd".index(found[1])


# ----- replies of judges: each raises ValueError for a reply that says nothing, which is asked again ------------------


def share(reply: str) -> float:
    """The figure from 0 to 1 of the last JSON object in a reply that has one as its "result"."""
    figures, end = [], 0
    while (start := reply.find("{", end)) >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(reply, start)
            figures.append(float(found["result"]))
        except (ValueError, KeyError, TypeError):
            end = max(end, start + 1)  # braces of something else
    if figures and 0 <= figures[-1] <= 1:
        return figures[-1]
    raise ValueError(f'the judge gave no {{"result": 0..1}}: {reply[:200]!r}')


def verdict(reply: str) -> bool:
    """The last YES or NO of a reply."""
    found = re.findall(r"\b(YES|NO)\b", reply)
    if not found:
        raise ValueError(f"the judge said neither YES nor NO: {reply[:200]!r}")
    return found[-1] == "YES"


CRITERIA = ("correctness", "relevance", "completeness", "clarity")


def criteria(reply: str) -> dict[str, float]:
    """Marks from 1 to 5 of the four criteria, and "overall": the judge's own, else their mean."""
    marks = {}
    for name in (*CRITERIA, "overall"):
        found = re.search(rf"{name}\W{{0,6}}(\d+(?:\.\d+)?)", reply, re.IGNORECASE)
        if found and 1 <= float(found[1]) <= 5:
            marks[name] = float(found[1])
        elif name != "overall":
            raise ValueError(f"the judge gave no mark from 1 to 5 for {name}: {reply[:200]!r}")
    marks.setdefault("overall", sum(marks.values()) / len(marks))
    return marks
