"""What is said in the built-in corpus: small grammars, and the one rule that keeps held-out texts out of training.

Whether a text belongs to training, validation or the test of new voices is a property of the text alone
(:func:`text_split`), so no text slips into training through another grammar, another seed or the text-only
material.
All texts are lower case without punctuation: what is written is what is heard.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container
from typing import TypeVar

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_SHARE = 0.6  # of the core texts
_HELD_OUT_PERCENT = 6  # of all texts, for each of the two held-out splits
_TRIES = 20_000
T = TypeVar("T")

_CORE_SLOTS: dict[str, tuple[str, ...]] = {
    "switch": ("turn on", "turn off"),
    "room": ("kitchen ", "bedroom ", "garden ", ""),
    "device": ("light", "fan", "radio", "heater"),
    "move": ("open", "close"),
    "opening": ("door", "window"),
    "clock": ("alarm", "timer"),
    "which": ("next", "last"),
    "piece": ("song", "story"),
    "polite": ("", "", " please", " now"),
    "digit": DIGITS[1:],
    "several": DIGITS[2:],
}
_CORE_ACTIONS = (
    "{switch} the {room}{device}",
    "{switch} the {room}{device}",
    "{move} the {room}{opening}",
    "play the {which} {piece}",
    "set the {room}{clock} for {digit} {digit}",
    "set the {room}{clock} for {digit} {digit}",
    "set the {clock} for {several} minutes",
)

_SLOTS: dict[str, tuple[str, ...]] = {
    "name": (
        *("anna", "peter", "maria", "tom", "lucy", "sam", "emma", "george", "nina", "oliver", "sarah", "david"),
        *("julia", "martin", "laura", "simon", "helen", "frank", "alice", "robert"),
    ),
    "family": ("mother", "father", "sister", "brother", "uncle", "aunt", "teacher", "neighbour", "doctor", "friend"),
    "place": (
        *("market", "station", "library", "museum", "harbour", "village", "school", "hospital", "airport", "bakery"),
        *("theatre", "office", "forest", "beach", "bridge", "castle", "farm", "park", "church", "hotel"),
    ),
    "object": (
        *("book", "letter", "basket", "lamp", "chair", "ticket", "picture", "bottle", "camera", "blanket", "hammer"),
        *("mirror", "ladder", "violin", "coat", "umbrella", "map", "clock", "box", "key"),
    ),
    "adjective": (
        *("old", "new", "small", "heavy", "green", "yellow", "broken", "beautiful", "cheap", "strange", "wooden"),
        *("bright", "dusty", "red", "blue"),
    ),
    "food": ("bread", "soup", "cheese", "rice", "fish", "cake", "salad", "honey", "butter", "chocolate"),
    "plant": (
        "carrots",
        "onions",
        "potatoes",
        "tomatoes",
        "apples",
        "lemons",
        "mushrooms",
        "beans",
        "peppers",
        "pears",
    ),
    "spice": ("salt", "pepper", "garlic", "ginger", "sugar", "cinnamon", "parsley", "vinegar"),
    "animal": ("dog", "cat", "horse", "rabbit", "goat", "parrot", "duck", "donkey", "fox", "owl"),
    "weather": ("rain", "snow", "wind", "fog", "sunshine", "thunder", "frost", "hail"),
    "vehicle": ("train", "bus", "boat", "taxi", "bicycle", "lorry", "plane", "tram"),
    "feeling": ("happy", "tired", "angry", "surprised", "hungry", "nervous", "proud", "lonely", "calm", "curious"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "time": ("morning", "afternoon", "evening", "night"),
    "moved": ("carried", "brought", "sold", "showed", "lent", "threw", "sent", "promised"),
    "did": ("found", "lost", "bought", "cleaned", "painted", "repaired", "hid", "forgot", "wrapped", "opened"),
    "went": ("walked", "ran", "drove", "travelled", "hurried", "cycled", "returned"),
    "action": ("sing", "swim", "dance", "cook", "read", "draw", "climb", "fish", "sleep", "work"),
    "hour": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    "minutes": ("five", "ten", "fifteen", "twenty", "thirty", "forty"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "twelve", "twenty"),
    "clocktime": ("half past", "quarter past", "quarter to", "exactly"),
    "how": ("quietly", "carefully", "suddenly", "slowly", "finally", "often", "never", "always"),
    "tool": ("a large pot", "a small pan", "a deep bowl", "the oven", "a clean dish"),
}
_SENTENCES = (
    "{name} {moved} the {adjective} {object} to {name} at the {place}",
    "{name} {did} a {adjective} {object} near the {place} on {day} {time}",
    "my {family} {went} to the {place} by {vehicle} because of the {weather}",
    "the {vehicle} to the {place} leaves at {clocktime} {hour}",
    "there are {number} {plant} and some {food} on the {adjective} table",
    "the {animal} {how} followed {name} from the {place} to the {place}",
    "{name} felt {feeling} when the {weather} came in the {time}",
    "on {day} we will {action} with {name} and eat {food}",
    "please bring me the {adjective} {object} before {clocktime} {hour}",
    "{name} and {name} {how} {action} at the {place} in the {time}",
    "the {family} of {name} has a {animal} and {number} {adjective} books",
    "i would like some {food} with {plant} and a little {spice}",
    "do not forget the {object} when you go to the {place} on {day}",
    "after {number} hours of {weather} the {place} was very {adjective}",
)

_STORIES = (
    (
        "{hero} {went} to the {place} early on {day} {time}",
        "there {hero} met a {feeling} {animal} beside a {adjective} {object}",
        "{hero} gave the {animal} some {food} and {number} {plant}",
        "then the {weather} came and {hero} {how} looked for the {vehicle}",
        "the {family} of {hero} was {feeling} and had cooked {food} with {plant}",
        "at {clocktime} {hour} {hero} fell asleep beside the {adjective} {object}",
    ),
    (
        "{hero} had lost a {adjective} {object} at the {place}",
        "so {hero} asked the {family} and then {name} from the {place}",
        "{name} had seen a {object} near the {place} on {day}",
        "{hero} took the {vehicle} at {clocktime} {hour} in the {weather}",
        "in the end the {animal} of {name} {how} brought the {object} back to {hero}",
    ),
    (
        "today {name} makes {food} with {plant} and {plant}",
        "first wash {number} {plant} and cut the {plant} for {minutes} minutes",
        "put the {plant} with some {spice} into {tool}",
        "cook the {plant} for {minutes} minutes and add the {food} and {spice}",
        "wait {minutes} minutes and serve the {food} with {plant} and {spice}",
    ),
    (
        "this is the plan for the trip of {hero} and {name} to the {place} by {vehicle}",
        "the {vehicle} leaves on {day} at {clocktime} {hour}",
        "{hero} must take the {object} and a {adjective} {object}",
        "at the {place} {hero} will {action} for {number} hours with {name}",
        "if there is {weather} {hero} can {action} at the {place} instead",
        "on {day} {hero} comes back by {vehicle} at {clocktime} {hour}",
    ),
)


def text_split(text: str) -> str:
    """The split a text belongs to, for ever: "validation" and "test_voices" hold 6 % of all texts each."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    if bucket < _HELD_OUT_PERCENT:
        return "validation"
    return "test_voices" if bucket < 2 * _HELD_OUT_PERCENT else "train"


def draw(
    split: str, make: Callable[[], T], texts_of: Callable[[T], tuple[str, ...]], exclude: Container[str] = ()
) -> T:
    """Calls ``make`` until all texts of what it makes belong to ``split`` and none is in ``exclude``.

    Raises:
      ValueError: the grammar has no such texts, or hardly any.
    """
    for _ in range(_TRIES):
        made = make()
        if all(text_split(text) == split and text not in exclude for text in texts_of(made)):
            return made
    raise ValueError(
        f"no new text of split {split!r} in {_TRIES} draws: the grammar has too few; ask for a smaller corpus"
    )


def core_text(rng: np.random.Generator, digits: bool | None = None) -> str:
    """A string of 3 to 6 digits or a command of one or two actions: some 40 words in all.

    ``digits`` chooses between them; left open, 60 % are digits.
    """
    if rng.random() < DIGITS_SHARE if digits is None else digits:
        return " ".join(DIGITS[i] for i in rng.integers(0, 10, int(rng.integers(3, 7))))
    actions = [pick(rng, _CORE_ACTIONS) for _ in range(2 if rng.random() < 0.2 else 1)]
    return fill(rng, " and ".join(actions) + "{polite}", _CORE_SLOTS)


def phrase(rng: np.random.Generator) -> str:
    """One to three consecutive words of a core text."""
    words = core_text(rng).split()
    length = int(rng.integers(1, 4))
    start = int(rng.integers(0, len(words) - length + 1))
    return " ".join(words[start : start + length])


def sentence(rng: np.random.Generator) -> str:
    """One sentence of the wide grammar."""
    return fill(rng, pick(rng, _SENTENCES), _SLOTS)


def story(rng: np.random.Generator, split: str) -> list[str]:
    """3 to 6 consecutive sentences about one hero; each of them belongs to ``split``."""
    hero = pick(rng, _SLOTS["name"])
    sentences = pick(rng, _STORIES)
    length = int(rng.integers(3, len(sentences) + 1))
    slots = {**_SLOTS, "hero": (hero,)}
    return [
        draw(split, lambda template=template: fill(rng, template, slots), lambda text: (text,))  # type: ignore[misc]
        for template in sentences[:length]
    ]


def pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """One of ``options``."""
    return options[int(rng.integers(len(options)))]


def fill(rng: np.random.Generator, template: str, slots: dict[str, tuple[str, ...]]) -> str:
    """Puts a random word into each ``{slot}``; two slots of one name get different words."""
    used: set[tuple[str, str]] = set()

    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        free = tuple(w for w in slots[name] if (name, w) not in used) or slots[name]
        chosen = pick(rng, free)
        if name != "digit":
            used.add((name, chosen))
        return chosen

    return re.sub(r"{(\w+)}", word, template)
