"""The 27 rule checks of MMAU-Pro's instruction-following items.

Names (``task_identifier``), arguments (``kwargs``) and thresholds are those of the benchmark's evaluation
(github.com/sonalkum/MMAUPro, ``evaluate_mmau_pro_comprehensive.py``; the MiMo-Audio evaluation has the same). They
descend from IFEval (arXiv 2311.07911) by way of Speech-IFEval, and are looser in places: forbidden words count inside
other words, a postscript's marker is looked for in the letters alone.

For ASCII answers a check says what the benchmark's says, except:

* sentences: the benchmark uses NLTK's trained Punkt model; `count_sentences` splits by rules and needs no download;
* white space at the ends of an answer, and which and how much of it stands between words, does not matter to
  `Start Checker` and `End Checker`;
* an argument that is missing is an error, not 0 or "".

For other scripts the benchmark, made for English, has no rule; ours: full-width forms count as their ASCII ones (NFKC
of that block only), a Chinese, Japanese or Korean character is a word of its own, their full stops end sentences and
their commas are commas, typographic quotation marks count as quotation marks, letters are those of Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mimo_jax.objectives.transcripts import is_cjk

Rule = Callable[[Mapping[str, Any], str], bool]

_PARAGRAPHS = "***"
_RESPONSES = "******"
_QUOTES = '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f'
_CLOSING = "\"'\u2019)\\]}*_" + _QUOTES[1:] + "\u300b\u3011"
_COMMAS = ",\u3001\ufe50\ufe51\u060c"
# A mark of the Latin kind ends a sentence before white space or the end, one of the Chinese kind anywhere.
_SENTENCE_END = re.compile(
    rf"[.!?\u2026]+[{_CLOSING}]*(?=\s|$)"
    rf"|[.!?\u2026]*[\u3002\uff0e\uff61\uff01\uff1f][.!?\u3002\uff01\uff1f\u2026]*[{_CLOSING}]*"
)
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr vs etc e.g i.e cf al fig no vol pp approx inc ltd co corp dept est u.s u.k a.m p.m "
    "ph.d gen col sgt capt lt rev hon gov sen rep jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_NEVER_LAST = frozenset("mr mrs ms dr prof st vs e.g i.e cf fig no vol pp approx gen col sgt capt lt rev hon".split())


def check(rule: str, kwargs: Mapping[str, Any] | None, answer: str) -> bool:
    """Whether an answer follows an instruction.

    Args:
      rule: a key of `RULES`, the item's ``task_identifier``.
      kwargs: the item's arguments; entries that are None or NaN are as good as missing. Numbers may be whole floats or
        digits (tables of mixed columns hold them so). For ``Repeat Prompt`` the caller adds ``prompt_transcription``,
        which is a field of the item itself.
      answer: what the model wrote, without its thoughts.

    Raises:
      ValueError: an unknown rule, or an argument that is missing or not what the rule needs.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r} of MMAU-Pro's instruction following; known: {', '.join(RULES)}")
    given = {name: value for name, value in (kwargs or {}).items() if value is not None and value == value}
    try:
        return RULES[rule](given, _ascii_forms(answer))
    except _ArgumentError as error:
        raise ValueError(f"rule {rule!r}: {error}; it was given {given}") from None


def count_words(text: str) -> int:
    """Number of words: what white space separates; each CJK ideograph, kana or Hangul syllable is one by itself."""
    spaced = "".join(f" {c} " if _is_character_word(c) else c for c in text)
    # As in the benchmark, marks alone between spaces are words; those that came to stand alone here are none.
    if spaced == text:
        return len(text.split())
    return sum(any(c.isalnum() for c in word) for word in spaced.split())


def count_sentences(text: str) -> int:
    """Number of sentences by rules.

    One ends at ``.``, ``!``, ``?`` or an ellipsis, with the closing marks that follow, before white space; or at a
    Chinese or Japanese full stop, exclamation or question mark. A full stop does not end one after an initial
    ("J. S. Bach"), a title or another abbreviation that is always followed by more, after other abbreviations before
    a small letter, or after the number of a list's line ("1. First"). What follows the last end counts if it has a
    letter or digit; a line break alone ends nothing.
    """
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if _is_end(text, start, end):
            count += any(c.isalnum() for c in text[start : end.end()])
            start = end.end()
    return count + any(c.isalnum() for c in text[start:])


def _is_end(text: str, start: int, end: re.Match[str]) -> bool:
    if not end.group().startswith(".") or end.group().startswith(".."):
        return True
    word = re.split(r"[\s(\[\"'\u201c]", text[start : end.start()])[-1]
    following = text[end.end() :].lstrip()
    if not following:
        return True
    if word.isdecimal() and not text[: end.start() - len(word)].rpartition("\n")[2].strip(" \t*#>-"):
        return False
    if len(word) == 1 and word.isalpha() and word.isupper() and word != "I":
        return False
    lowered = word.lower()
    return not (lowered in _NEVER_LAST or (lowered in _ABBREVIATIONS and following[0].islower()))


class _ArgumentError(ValueError):
    """An argument of a rule that is missing or of no use."""


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _ArgumentError(f"needs the text {name!r}")
    return _ascii_forms(value)


def _texts(given: Mapping[str, Any], name: str) -> list[str]:
    """A list, or one string with ``", "`` between its parts."""
    value = given.get(name)
    parts = value.split(", ") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise _ArgumentError(f"needs texts {name!r}")
    kept = [_ascii_forms(part) for part in parts if part.strip()]
    if not kept:
        raise _ArgumentError(f"needs at least one text in {name!r}")
    return kept


def _number(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise _ArgumentError(f"needs the number {name!r}") from None
    if not number.is_integer() or number < 0:
        raise _ArgumentError(f"{name!r} must be a whole number from 0 up")
    return int(number)


def _ascii_forms(text: str) -> str:
    """Full-width forms (U+FF01 to U+FF5E) as ASCII, but the marks that end sentences; ideographic space as space."""
    return "".join(
        unicodedata.normalize("NFKC", c)
        if "\uff01" <= c <= "\uff5e" and c not in "\uff01\uff1f\uff0e"
        else " "
        if c == "\u3000"
        else c
        for c in text
    )


def _is_character_word(c: str) -> bool:
    return not c.isascii() and (is_cjk(c) or "\u3041" <= c <= "\u30ff" or "\uac00" <= c <= "\ud7a3")


def _letters(text: str, keep_spaces: bool = False) -> str:
    """Letters only, lower case; with ``keep_spaces`` single spaces between words."""
    if not keep_spaces:
        return "".join(c for c in text if c.isalpha()).lower()
    # A line break is no space to the benchmark; the words on its two sides would then run together.
    return " ".join("".join(c for c in re.sub(r"\s", " ", text) if c.isalpha() or c == " ").split()).lower()


def _phrase(given: Mapping[str, Any], name: str) -> str:
    phrase = _letters(_text(given, name), keep_spaces=True)
    if not phrase:
        raise _ArgumentError(f"{name!r} has no letter")
    return phrase


def _keyword_count(text: str, keyword: str) -> int:
    """Occurrences as a whole word, whatever the case; beside a CJK character there is no border to look for."""
    keyword = keyword.strip().lower()
    left = "" if _is_character_word(keyword[0]) else r"\b"
    right = "" if _is_character_word(keyword[-1]) else r"\b"
    text = text.lower()
    if any(map(_is_character_word, text)):  # so that a Latin word between such characters has borders
        text = "".join(f" {c} " if _is_character_word(c) else c for c in text)
        keyword = "".join(f" {c} " if _is_character_word(c) else c for c in keyword).strip()
    return len(re.findall(left + re.escape(keyword) + right, text))


def _include_keywords(given: Mapping[str, Any], answer: str) -> bool:
    """Every one of ``keywords`` occurs, whatever the case, inside of words too."""
    return all(keyword.lower() in answer.lower() for keyword in _texts(given, "keywords"))


def _forbidden_words(given: Mapping[str, Any], answer: str) -> bool:
    """None of ``forbidden_words`` occurs, not even inside of a word."""
    return not any(word.lower() in answer.lower() for word in _texts(given, "forbidden_words"))


def _keyword_frequency(given: Mapping[str, Any], answer: str) -> bool:
    """``keyword`` occurs exactly ``N`` times as a word."""
    return _keyword_count(answer, _text(given, "keyword")) == _number(given, "N")


def _paragraphs(text: str) -> int:
    """Parts between ``***`` that are not blank."""
    return sum(bool(part.strip()) for part in text.split(_PARAGRAPHS))


def _bullets(text: str) -> int:
    """Lines that start with ``*`` and white space."""
    return len(re.findall(r"(?:^|\n)\s*\*\s+", text))


def _highlights(text: str) -> int:
    """Spans between two ``*``; as in the benchmark they may go over lines, so that two bullets make one as well."""
    return len(re.findall(r"\*[^*]+\*", text))


def _placeholders(text: str) -> int:
    """Spans in square brackets."""
    return len(re.findall(r"\[[^\]]+\]", text))


def _capital_words(text: str) -> int:
    """Words with letters of which none is small ("A", "I" and "MP3" are such words)."""
    return sum(word.isupper() for word in text.split())


def _title(given: Mapping[str, Any], answer: str) -> bool:
    """Something stands in ``<<`` and ``>>``; in the Chinese title marks too."""
    return re.search(r"<<[^>]+>>|\u300a[^\u300b]+\u300b", answer) is not None


def _postscript(given: Mapping[str, Any], answer: str) -> bool:
    """The letters of ``postscript_marker`` follow each other somewhere in the letters of the answer.

    So any "ps" answers to "P.S.", that of "perhaps" too: the benchmark's scores were made so.
    """
    marker = _letters(_text(given, "postscript_marker"))
    if not marker:
        raise _ArgumentError("'postscript_marker' has no letter")
    return marker in _letters(answer)


def _sections(given: Mapping[str, Any], answer: str) -> bool:
    """Cut at each ``section_splitter`` (case counts), exactly ``N`` parts are not blank.

    Text before the first one is a part too.
    """
    parts = answer.split(_text(given, "section_splitter"))
    return sum(bool(part.strip()) for part in parts) == _number(given, "N")


def _repeat_prompt(given: Mapping[str, Any], answer: str) -> bool:
    """The answer starts with ``prompt_transcription``, whatever the case."""
    return answer.strip().lower().startswith(_text(given, "prompt_transcription").strip().lower())


def _two_responses(given: Mapping[str, Any], answer: str) -> bool:
    """``******`` stands once in the answer, with different texts before and after it."""
    parts = [part.strip().lower() for part in answer.split(_RESPONSES)]
    return len(parts) == 2 and parts[0] != parts[1]


def _start(given: Mapping[str, Any], answer: str) -> bool:
    """The answer's letters and spaces start with those of ``start_phrase``, whatever the case."""
    return _letters(answer, keep_spaces=True).startswith(_phrase(given, "start_phrase"))


def _end(given: Mapping[str, Any], answer: str) -> bool:
    """The answer's letters and spaces end with those of ``end_phrase``, whatever the case."""
    return _letters(answer, keep_spaces=True).endswith(_phrase(given, "end_phrase"))


def _quotation(given: Mapping[str, Any], answer: str) -> bool:
    """First and last sign are double quotation marks. One sign alone is enough, as in the benchmark."""
    answer = answer.strip()
    return answer != "" and answer[0] in _QUOTES and answer[-1] in _QUOTES


def _no_commas(given: Mapping[str, Any], answer: str) -> bool:
    """No comma of any script."""
    return not any(c in _COMMAS for c in answer)


def _exactly(count: Callable[[str], int]) -> Rule:
    return lambda given, answer: count(answer) == _number(given, "N")


def _at_least(count: Callable[[str], int]) -> Rule:
    return lambda given, answer: count(answer) >= _number(given, "N")


def _at_most(count: Callable[[str], int]) -> Rule:
    return lambda given, answer: count(answer) <= _number(given, "N")


def _within(count: Callable[[str], int]) -> Rule:
    def rule(given: Mapping[str, Any], answer: str) -> bool:
        least, most = _number(given, "N1"), _number(given, "N2")
        return least <= count(answer) <= most

    return rule


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Include Keywords": _include_keywords,
        "Keyword Frequency": _keyword_frequency,
        "Forbidden Words": _forbidden_words,
        "Number Paragraphs": _exactly(_paragraphs),
        "Number Words (at least)": _at_least(count_words),
        "Number Words (at most)": _at_most(count_words),
        "Number Words (range)": _within(count_words),
        "Number Sentences (at least)": _at_least(count_sentences),
        "Number Sentences (at most)": _at_most(count_sentences),
        "Number Sentences (range)": _within(count_sentences),
        "Postscript": _postscript,
        "Number Placeholder": _at_least(_placeholders),
        "Number Bullets": _exactly(_bullets),
        "Title": _title,
        "Minimum Number Highlighted Section": _at_least(_highlights),
        "Multiple Sections": _sections,
        "Repeat Prompt": _repeat_prompt,
        "Two Responses": _two_responses,
        "All Uppercase": lambda given, answer: answer.isupper(),
        "All Lowercase": lambda given, answer: answer.islower(),
        "All-capital Words (at least)": _at_least(_capital_words),
        "All-capital Words (at most)": _at_most(_capital_words),
        "All-capital Words (range)": _within(_capital_words),
        "Start Checker": _start,
        "End Checker": _end,
        "Quotation": _quotation,
        "No Commas": _no_commas,
    }
)
"""Checks by ``task_identifier``: (arguments without None, answer) -> whether it is followed. `check` calls them."""
