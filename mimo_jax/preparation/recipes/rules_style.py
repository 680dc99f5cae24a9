"""Instructions, requests and thoughts about how to speak, by rule from attributes of style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimo_jax.data.corpus.voices import NEUTRAL_WORDS, STYLE_WORDS
from mimo_jax.preparation.recipes.base import draw, with_article

_DIMENSIONS = ("rate", "volume", "pitch", "intonation")
_STYLES = (
    "say it {}",
    "speak {}",
    "please read it {}",
    "talk {}",
    "i want to hear it {}",
    "it should sound as if said {}",
)
_REQUESTS = (
    'Say "{text}" {style}.',
    'Please read this {style}: "{text}"',
    "I would like to hear the following {style}: {text}",
    'Could you say {style}: "{text}"?',
    '"{text}" - please say that {style}.',
    "Here is a line to be spoken {style}: {text}",
    'Pretend you have to say "{text}" {style}.',
)
# What a level of style means for the one who speaks.
_MEANS: dict[tuple[str, str], tuple[str, ...]] = {
    ("rate", "slow"): ("I draw the words out and leave time between them", "I take my time with every word"),
    ("rate", "fast"): ("I let the words follow each other closely", "I keep the pauses short and the words quick"),
    ("volume", "quiet"): ("I keep my voice down", "I speak with little breath"),
    ("volume", "loud"): ("I raise my voice so that it carries", "I put strength into the voice"),
    ("pitch", "low"): ("I let the voice sit low", "I speak from deep down"),
    ("pitch", "high"): ("I let the voice rise and stay high", "I speak up high"),
    ("intonation", "flat"): ("I keep the melody level", "I let no word rise or fall"),
    ("intonation", "lively"): ("I let the melody rise and fall", "I give each phrase a melody of its own"),
}
_ORDINARY = {"rate": "pace", "volume": "loudness", "pitch": "pitch", "intonation": "melody"}


def write(facts: Mapping[str, Any]) -> str:
    """The reply to a prompt of `instruct_tts.InstructTts`; "" where nothing is known of the style."""
    heard = facts["heard"]
    levels = {name: heard.get("attributes", {}).get(name) for name in _DIMENSIONS}
    styled = [(name, str(level)) for name, level in levels.items() if (name, level) in STYLE_WORDS]
    persona = "" if facts["given_voice"] else _persona(facts, heard.get("attributes", {}))
    if styled or persona or any(level == "normal" for level in levels.values()):
        words = [_pick(facts, f"words {name}", STYLE_WORDS[name, level]) for name, level in styled]
        if not words:
            words = [_pick(facts, "neutral", NEUTRAL_WORDS)]
        manner = " and ".join(words) + (f", {persona}" if persona else "")
        asked = _pick(facts, "style", _STYLES).format(manner)
    else:
        # A description is all there is: it is the instruction, in its own words.
        manner = asked = heard.get("instruction") or heard.get("caption") or ""
        if not asked:
            return ""
        manner = f"like this ({manner.rstrip('.')})"
    given = f"<style>{asked}</style>"
    if facts["natural"]:
        # Format fields are filled in one go: braces of the text are left alone.
        request = _pick(facts, "request", _REQUESTS).format(text=facts["text"], style=manner)
        given = f"<request>{request}</request>"
    return f"{given}\n<thought>{_thought(facts, manner, styled, levels, persona)}</thought>"


def _pick(facts: Mapping[str, Any], purpose: str, options: Sequence[str]) -> str:
    return options[draw(facts["id"], purpose, len(options))]


def _persona(facts: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    """Who speaks, for half of the requests that may say so."""
    gender, accent = attributes.get("gender"), attributes.get("accent")
    who = f"{with_article(str(gender))}'s voice" if gender else ""
    whence = f"{with_article(str(accent))} accent" if accent else ""
    if not (who or whence) or draw(facts["id"], "persona", 2):
        return ""
    return " and ".join(f"with {part}" for part in (who, whence) if part)


def _thought(
    facts: Mapping[str, Any],
    manner: str,
    styled: Sequence[tuple[str, str]],
    levels: Mapping[str, Any],
    persona: str,
) -> str:
    begin = _pick(facts, "begin", ("The words are to be said {}.", "What is asked for: {}.", "I am asked to speak {}."))
    means = [f"{_pick(facts, f'means {name}', _MEANS[name, level])}." for name, level in styled]
    ordinary = [_ORDINARY[name] for name, level in levels.items() if level == "normal"]
    if ordinary and styled:
        listed = ordinary[0] if len(ordinary) == 1 else f"{', '.join(ordinary[:-1])} and {ordinary[-1]}"
        means.append(f"The {listed} can stay as usual.")
    elif ordinary:
        means.append("Nothing in pace, loudness, pitch or melody has to stand out.")
    if persona:
        means.append(f"The sound should be that of somebody {persona}.")
    if facts["given_voice"]:
        means.append("The voice is the one that I was given.")
    return " ".join([begin.format(manner), *means, f'The words to say: "{facts["text"]}".'])
