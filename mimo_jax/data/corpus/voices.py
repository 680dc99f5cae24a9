"""The speakers of the built-in corpus, and the styles and noises with the words that describe them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Voice:
    """One speaker: an espeak-ng voice with a variant, and what a listener could say about it."""

    name: str
    espeak: str
    pitch: int
    gender: str
    accent: str


TRAIN_VOICES = (
    Voice("alice", "en-us+f2", 50, "woman", "American"),
    Voice("brian", "en-us+m3", 48, "man", "American"),
    Voice("clara", "en+f3", 52, "woman", "British"),
    Voice("david", "en+m1", 46, "man", "British"),
    Voice("elsie", "en-gb-scotland+f1", 50, "woman", "Scottish"),
    Voice("fraser", "en-gb-scotland+m2", 50, "man", "Scottish"),
    Voice("grace", "en-029+f4", 50, "woman", "Caribbean"),
    Voice("henry", "en-029+m4", 45, "man", "Caribbean"),
)
HELD_OUT_VOICES = (
    Voice("irene", "en-us+f5", 55, "woman", "American"),
    Voice("jack", "en+m7", 50, "man", "British"),
    Voice("karen", "en-gb-scotland+f4", 46, "woman", "Scottish"),
)
VOICES = {voice.name: voice for voice in TRAIN_VOICES + HELD_OUT_VOICES}


def voices_of(split: str) -> tuple[Voice, ...]:
    """Who may be heard in a split, in the foreground or the background."""
    return HELD_OUT_VOICES if split == "test_voices" else TRAIN_VOICES


def assistant_of(split: str) -> Voice:
    """Who answers questions."""
    return voices_of(split)[0]


# Each dimension of style: name of the level -> what the synthesiser is told.
RATES = {"slow": 115, "normal": 175, "fast": 255}  # words per minute
PITCHES = {"low": -35, "normal": 0, "high": 38}  # added to the voice's own
VOLUMES = {"quiet": -38.0, "normal": -25.0, "loud": -15.0}  # RMS in dB of full scale
INTONATIONS = {"flat": 5, "normal": 50, "lively": 95}  # espeak-ng's pitch range
NOISES = ("white", "pink", "hum", "babble")
SNR_DB = (0, 5, 10, 15, 20)

STYLE_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("rate", "slow"): ("slowly", "at a slow pace", "without any hurry"),
    ("rate", "fast"): ("quickly", "at a fast pace", "in a hurry"),
    ("pitch", "low"): ("in a low voice", "in a deep voice"),
    ("pitch", "high"): ("in a high voice", "in a high pitched voice"),
    ("volume", "quiet"): ("quietly", "softly"),
    ("volume", "loud"): ("loudly", "with a loud voice"),
    ("intonation", "flat"): ("in a flat tone", "without any melody"),
    ("intonation", "lively"): ("in a lively tone", "with a lot of melody"),
}
NEUTRAL_WORDS = ("in a normal voice", "calmly", "in your usual way")
NOISE_WORDS = {
    "white": "white noise",
    "pink": "pink noise",
    "hum": "a mains hum",
    "babble": "people talking",
}


def noise_loudness(snr_db: float) -> str:
    """The word for how loud a noise is beside the speech."""
    return "loud" if snr_db <= 5 else "moderate" if snr_db <= 10 else "faint"
