"""Speech as instructed: voices made of tones whose rate and volume are known."""

import numpy as np
import pytest

from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import instructed_speech
from mimo_jax.evaluation.instructed_speech import Levels, manner
from mimo_jax.evaluation.selection import Item
from mimo_jax.evaluation.speech_parts import Samples
from mimo_jax.evaluation.systems import Reasoned, Systems

RATE = 24_000
WORDS = "one two three four"
SECONDS = {"slow": 1.0, "normal": 0.6, "fast": 0.3}
AMPLITUDE = {"quiet": 0.01, "normal": 0.1, "loud": 0.5}


def voice(rate="normal", volume="normal", silence=0.2) -> np.ndarray:
    """A tone with overtones, silence round it."""
    t = np.arange(int(SECONDS[rate] * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in (1, 2, 3))
    return np.pad(AMPLITUDE[volume] * tone, int(silence * RATE)).astype(np.float32)


class Judge:
    def transcribe(self, waves):
        return [WORDS if len(wave) else "" for wave in waves]


def items() -> list[Item]:
    """Six of each style that differs from the normal one in one dimension, and six normal ones."""
    styles = [{}, *({"rate": r} for r in ("slow", "fast")), *({"volume": v} for v in ("quiet", "loud"))]
    made = []
    for number, style in enumerate(styles * 6):
        attributes = {"rate": "normal", "volume": "normal"} | style
        record = Record(f"r{number}", "x", WORDS, instruction=f"speak {style}", attributes=attributes)
        made.append(Item(record, voice(**style)))
    return made


class Model:
    """Follows instructions about the rate, and says nothing when asked to be quiet."""

    def speak_as_instructed(self, texts, instructions, *, seeds):
        return [Reasoned(self._wave(instruction), "a thought") for instruction in instructions]

    def _wave(self, instruction):
        if "quiet" in instruction:
            return np.zeros(0, np.float32)
        return voice(rate=next((r for r in ("slow", "fast") if r in instruction), "normal"))


@pytest.fixture(scope="module")
def levels():
    return Levels.learn(Judge(), items(), RATE)


def test_a_manner_is_measured_where_there_is_speech():
    measured = manner(voice(silence=0.5), RATE, WORDS)
    assert np.exp(measured["rate"]) == pytest.approx(4 / 0.6, rel=0.05)
    louder = manner(voice(volume="loud", silence=0.1), RATE, WORDS)
    assert louder["volume"] - measured["volume"] == pytest.approx(20 * np.log10(5), abs=0.1)
    assert manner(np.zeros(2400, np.float32), RATE, "") == {"rate": None, "volume": None}
    assert manner(voice(), RATE, "")["rate"] is None


def test_levels_are_learned_from_recordings_and_name_only_what_is_not_normal(levels):
    assert {d: set(m) for d, m in levels.medians.items()} == {
        "rate": set(SECONDS),
        "volume": set(AMPLITUDE),
    }
    assert levels.asked(Record("a", "x", attributes={"rate": "slow", "volume": "normal"})) == {"rate": "slow"}
    assert Levels.learn(Judge(), items()[:3], RATE).medians == {}  # too few of each


def test_examples_are_training_records_with_an_instruction():
    records = [
        Record("a", "x", instruction="softly"),
        Record("b", "x", split="validation", instruction="softly"),
        Record("c", "x"),
    ]
    assert [r.id for r in instructed_speech.examples(records)] == ["a"]


def test_speech_follows_what_it_does_and_nothing_else(levels, tmp_path):
    systems = Systems(Judge(), None, Model(), RATE)
    part = instructed_speech.instructed_speech(systems, Model(), items(), levels, Samples(tmp_path, RATE, 1), seed=0)
    value = {name: figure["value"] for name, figure in part["figures"].items()}
    assert value["instructed_rate_followed"] == 1
    assert value["instructed_volume_followed"] == 0 and value["instruction_followed"] == 0.5
    assert value["instruction_followed_recordings"] == 1
    assert 0 < value["instructed_rate_followed_shuffled"] < 1
    assert "instructed_rate_followed_recordings_shuffled" not in value
    assert value["instructed_spoken"] == 0.8
    assert value["recogniser_wer_instructed"] == pytest.approx(0.2)
    assert value["recogniser_wer_instructed_recordings"] == 0
    assert part["figures"]["instructed_rate_followed"]["n"] == 12
    assert part["items"][1]["asked"] == {"rate": "slow"} and part["items"][1]["followed"] == {"rate": True}
    assert part["items"][0]["thought"] == "a thought" and part["items"][0]["file"].endswith(".wav")
