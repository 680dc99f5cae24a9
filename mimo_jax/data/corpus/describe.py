"""Words for how an utterance sounds: style instructions, captions, and questions with their right answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mimo_jax.data.corpus.texts import pick
from mimo_jax.data.corpus.voices import NEUTRAL_WORDS, NOISE_WORDS, STYLE_WORDS, TRAIN_VOICES, noise_loudness

_DIMENSIONS = ("rate", "volume", "pitch", "intonation")
_INSTRUCTIONS = ("say it {}", "speak {}", "please read it {}", "talk {}", "say this {} please", "it should be said {}")
_CAPTIONS = (
    "a {gender} with {accent} accent speaks {style}; {noise}",
    "a {gender} talks {style} with {accent} accent; {noise}",
    "you hear a {gender} with {accent} accent speaking {style}; {noise}",
)
_NO_NOISE = "there is no noise"
_OPEN_SHARE = 0.25

# Of each question: its wordings and its choices by the attribute's value.
_QUESTIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "gender": (("who is speaking", "is this a man or a woman"), {"man": "a man", "woman": "a woman"}),
    "accent": (
        ("which accent does the speaker have", "where does the speaker's accent come from"),
        {voice.accent: voice.accent for voice in TRAIN_VOICES},
    ),
    "rate": (
        ("how fast does the speaker talk", "what is the pace of the speech"),
        {"slow": "slowly", "normal": "at a normal pace", "fast": "quickly"},
    ),
    "pitch": (
        ("how high is the voice for this speaker", "what is the pitch of the voice"),
        {"low": "low", "normal": "normal", "high": "high"},
    ),
    "volume": (
        ("how loud is the voice", "is the speaker quiet or loud"),
        {"quiet": "quiet", "normal": "normal", "loud": "loud"},
    ),
    "noise": (
        ("which noise is in the background", "what do you hear behind the voice"),
        {"none": "no noise", **NOISE_WORDS},
    ),
}
QUESTION_TOPICS = tuple(_QUESTIONS)


def style_words(rng: np.random.Generator, attributes: Mapping[str, Any]) -> str:
    """ "slowly and in a high voice": what is not normal about an utterance, or nothing where all is."""
    words = [pick(rng, STYLE_WORDS[name, attributes[name]]) for name in _DIMENSIONS if attributes[name] != "normal"]
    return " and ".join(words)


def instruction(rng: np.random.Generator, attributes: Mapping[str, Any]) -> str:
    """A request for the style of ``attributes`` (rate, pitch, volume, intonation), in one of several wordings."""
    return pick(rng, _INSTRUCTIONS).format(style_words(rng, attributes) or pick(rng, NEUTRAL_WORDS))


def caption(rng: np.random.Generator, attributes: Mapping[str, Any]) -> str:
    """A description of speaker, style and noise."""
    accent = attributes["accent"]
    noise = _NO_NOISE
    if attributes["noise"] != "none":
        noise = f"there is {noise_loudness(attributes['snr_db'])} {NOISE_WORDS[attributes['noise']].removeprefix('a ')}"
    return pick(rng, _CAPTIONS).format(
        gender=attributes["gender"],
        accent=f"{'an' if accent[0] in 'AEIOU' else 'a'} {accent}",
        style=style_words(rng, attributes) or "normally",
        noise=noise,
    )


def questions(rng: np.random.Generator, attributes: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """``count`` questions on different topics, most with shuffled choices, as the manifest's ``qa`` field."""
    topics = rng.permutation(len(QUESTION_TOPICS))[:count]
    return [_ask(rng, QUESTION_TOPICS[int(topic)], attributes) for topic in topics]


def _ask(rng: np.random.Generator, topic: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    wordings, answers = _QUESTIONS[topic]
    item: dict[str, Any] = {"question": pick(rng, wordings), "answer": answers[attributes[topic]]}
    if rng.random() >= _OPEN_SHARE:
        choices = list(answers.values())
        item["choices"] = [choices[int(i)] for i in rng.permutation(len(choices))]
    return item
