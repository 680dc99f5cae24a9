"""Chains of thought by rule: about the sound of a recording, or towards the answer of a recorded question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mimo_jax.data.corpus.questions import NUMBERS
from mimo_jax.data.corpus.voices import NOISE_WORDS, noise_loudness
from mimo_jax.preparation.recipes.base import draw, with_article

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
    *("november", "december"),
)
# What a question must hold to be about an attribute, the first that fits.
_TOPICS = (
    ("accent", r"\baccent\b"),
    ("gender", r"\bwho is speaking\b|\bman or a woman\b|\bmale or female\b|\bgender\b"),
    ("rate", r"\bhow fast\b|\bpace\b|\bspeed\b"),
    ("pitch", r"\bhow high\b|\bpitch\b"),
    ("volume", r"\bhow loud\b|\bquiet or loud\b|\bvolume\b"),
    ("noise", r"\bnoise\b|\bbackground\b|\bbehind the voice\b"),
)
# What can be heard for a value of an attribute, and the words that an answer must be to agree with it.
_HEARD: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("gender", "man"): ("The voice is that of a man", ("a man", "man", "male")),
    ("gender", "woman"): ("The voice is that of a woman", ("a woman", "woman", "female")),
    ("rate", "slow"): ("The words come slowly, with time between them", ("slowly", "slow")),
    ("rate", "normal"): ("The words come neither slowly nor in a hurry", ("at a normal pace", "normal")),
    ("rate", "fast"): ("The words follow each other quickly", ("quickly", "fast")),
    ("pitch", "low"): ("The voice stays low", ("low",)),
    ("pitch", "normal"): ("The voice is neither high nor low", ("normal",)),
    ("pitch", "high"): ("The voice stays high", ("high",)),
    ("volume", "quiet"): ("The voice is soft", ("quiet",)),
    ("volume", "normal"): ("The voice is neither soft nor loud", ("normal",)),
    ("volume", "loud"): ("The voice is strong", ("loud",)),
    ("noise", "none"): ("Behind the voice it is silent", ("no noise", "none")),
    **{("noise", kind): (f"Behind the voice I hear {words}", (words,)) for kind, words in NOISE_WORDS.items()},
}
_BEGIN = {
    "accent": ("I listen to how the sounds are formed.", "The question is about the accent, so the sounds matter."),
    "gender": ("I listen to the voice itself.", "The question is about the speaker, so the voice matters."),
    "rate": ("I listen to how the words follow each other.", "The question is about pace, not about the words."),
    "pitch": ("I listen to how high the voice lies.", "The question is about pitch, not about loudness."),
    "volume": ("I listen to how strong the voice is.", "The question is about loudness, not about pitch."),
    "noise": ("I listen to what is there besides the voice.", "The question is about what lies behind the voice."),
}
_END = ("So the answer is: {}.", "That makes it: {}.", "So it is: {}.")


def write(facts: Mapping[str, Any]) -> str:
    """The reply to a prompt of `thinking.Thinking`; "" where the facts do not bear out the answer."""
    thought = _towards(facts) if facts.get("asked_aloud") else _about(facts)
    return f"<thought>{thought}</thought>\n<answer>{facts['answer']}</answer>" if thought else ""


def _pick(facts: Mapping[str, Any], purpose: str, options: Sequence[str]) -> str:
    return options[draw(facts["id"], purpose, len(options))]


# --- about the sound -------------------------------------------------------------------------------------------------


def _about(facts: Mapping[str, Any]) -> str:
    question, answer = facts["question"].casefold(), facts["answer"]
    attributes = facts["heard"].get("attributes", {})
    for topic, pattern in _TOPICS:
        if topic in attributes and re.search(pattern, question):
            evidence = _evidence(topic, str(attributes[topic]), attributes, answer)
            if evidence:
                return " ".join([_pick(facts, "begin", _BEGIN[topic]), evidence, *_others(facts), _end(facts)])
    return _from_words(facts)


def _evidence(topic: str, value: str, attributes: Mapping[str, Any], answer: str) -> str:
    """What is heard of an attribute; "" where it does not agree with the answer."""
    if topic == "accent":
        return f"The vowels and the melody are those of {with_article(value)} accent." if answer == value else ""
    heard, answers = _HEARD.get((topic, value), ("", ()))
    if answer.casefold() not in answers:
        return ""
    speed = attributes.get("words_per_minute")
    if topic == "rate" and isinstance(speed, (int, float)):
        return f"{heard}: about {round(speed / 10) * 10} words a minute."
    if topic == "noise" and isinstance(level := attributes.get("snr_db"), (int, float)) and value != "none":
        return f"{heard}, {noise_loudness(level)} beside the voice."
    return f"{heard}."


def _others(facts: Mapping[str, Any]) -> list[str]:
    others = [f'"{choice}"' for choice in facts.get("choices", ()) if choice != facts["answer"]]
    if not others:
        return []
    listed = others[0] if len(others) == 1 else f"{', '.join(others[:-1])} and {others[-1]}"
    return [_pick(facts, "others", (f"That rules out {listed}.", f"Nothing speaks for {listed}."))]


def _end(facts: Mapping[str, Any]) -> str:
    return _pick(facts, "end", _END).format(facts["answer"])


def _from_words(facts: Mapping[str, Any]) -> str:
    """From the description and the words alone, where every word of the answer is among them."""
    heard = facts["heard"]
    known = {word for text in (heard.get("caption"), heard.get("text")) for word in _words(text or "")}
    wanted = _words(facts["answer"])
    if not wanted or not set(wanted) <= known:
        return ""
    described = [f"What I hear: {heard['caption'].rstrip('.')}."] if heard.get("caption") else []
    said = [f'The words are "{heard["text"]}".'] if heard.get("text") else []
    return " ".join([*described, *said, *_others(facts), _end(facts)])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


# --- towards an answer -----------------------------------------------------------------------------------------------


def _towards(facts: Mapping[str, Any]) -> str:
    question, told = facts["question"].casefold(), _words(facts["answer"])
    if found := re.search(r"\b(\w+) (plus|minus) (\w+)\b", question):
        made = _sum(*found.groups())
    elif found := re.search(rf"\b({'|'.join(_DAYS + _MONTHS)})\b", question):
        made = _neighbour(found[1], question)
    elif found := re.search(r"\b(?:opposite|contrary) of (\w+)", question):
        made = _opposite(found[1], told)
    elif found := re.search(r"\bcolou?r (?:is|does|of) (.+?)(?: have)?\s*\??$", question):
        made = _colour(found[1], told)
    else:
        return ""
    steps, answer = made
    if not answer or told[-1:] != [answer]:  # "three plus four is seven": numbers before the last are no answer
        return ""
    begin = _pick(facts, "begin", ("The speaker asks: {}.", "What I hear is a question: {}.", 'I hear "{}".'))
    return " ".join([begin.format(facts["question"].rstrip("?. ")), steps, _pick(facts, "end", _END).format(answer)])


def _sum(first: str, sign: str, second: str) -> tuple[str, str]:
    if first not in NUMBERS or second not in NUMBERS:
        return "", ""
    a, b = NUMBERS.index(first), NUMBERS.index(second)
    result = a + b if sign == "plus" else a - b
    if not 0 <= result < len(NUMBERS):
        return "", ""
    way = "on" if sign == "plus" else "back"
    steps = f"From {first} I go {second} {'step' if b == 1 else 'steps'} {way}"
    return f"{steps}: {a} {'+' if sign == 'plus' else '-'} {b} = {result}.", NUMBERS[result]


def _neighbour(name: str, question: str) -> tuple[str, str]:
    names, unit = (_DAYS, "day") if name in _DAYS else (_MONTHS, "month")
    step = 1 if " after " in question else -1 if " before " in question else 0
    if not step:
        return "", ""
    answer = names[(names.index(name) + step) % len(names)]
    pair = (name, answer) if step > 0 else (answer, name)
    return f"In the order of the {unit}s {pair[0]} is followed by {pair[1]}.", answer


def _opposite(word: str, told: Sequence[str]) -> tuple[str, str]:
    answer = told[-1] if told else ""
    if answer == word:
        return "", ""
    return f"I look for the word that stands against {word}: what is {word} is not {answer}.", answer


def _colour(thing: str, told: Sequence[str]) -> tuple[str, str]:
    answer = told[-1] if told else ""
    return f"I think of {thing} and how it looks; its usual colour is {answer}.", answer
