"""Sentences that say what was measured, and nothing else."""

import dataclasses

import pytest

from mimo_jax.data.manifest import Record
from mimo_jax.preparation.stages.caption import Caption, MeasuredCaption, median_pitch
from tests.preparation.stages.speech_fixture import RATE, SENTENCES, element, only, silence, speech


def _caption(wave, **fields) -> str | None:
    return only(Caption().process(element(wave, **fields))).record.caption


def test_pitch_is_near_the_voice():
    low, high = median_pitch(speech(pitch=10), RATE), median_pitch(speech(voice="en-us+f3", pitch=80), RATE)
    assert low is not None and high is not None and 60 < low < 110 and 200 < high < 390
    assert median_pitch(silence(1.0), RATE) is None and median_pitch(speech()[:100], RATE) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pitch": 10, "rate": 90}, ("low", "slowly")),
        ({"voice": "en-us+f3", "pitch": 80, "rate": 300}, ("high", "quickly")),
    ],
)
def test_voice_and_pace_are_described(settings, words):
    text = SENTENCES[1]
    assert _caption(speech(text, **settings), text=text) == f"a {words[0]} voice speaks {words[1]}"


def test_scores_are_put_into_words():
    wave = speech(pitch=10)
    bad = {"snr_db": 3.0, "bandwidth_hz": 3900.0, "clipping_share": 0.02, "loudness_lufs": -12.0}
    assert _caption(wave, scores=bad) == (
        "a low voice speaks loudly; there is loud background noise; it sounds like a telephone; the sound is distorted"
    )
    good = {"snr_db": 45.0, "bandwidth_hz": 11_000.0, "clipping_share": 0.0, "loudness_lufs": -45.0}
    assert _caption(wave, scores=good) == "a low voice speaks quietly; there is no noise"
    assert _caption(wave, scores={"snr_db": 10.0}) == "a low voice speaks; there is background noise"
    assert _caption(silence(1.0)) == "a voice speaks"


def test_captions_that_are_there_stay():
    given = element(speech(), caption="someone sings")
    assert only(Caption().process(given)) is given


def test_a_plug_in_may_have_nothing_to_say():
    given = element(speech())
    assert only(Caption(captioner=lambda wave, rate, record: None).process(given)) is given
    out = only(Caption(captioner=lambda wave, rate, record: record.id).process(given))
    assert out.record.caption == "rec" and out.record.attributes == {"caption_source": "captioned"}


def test_what_counts_as_low_is_a_setting():
    caption = dataclasses.replace(MeasuredCaption(), low_hz=61.0, high_hz=62.0)
    assert caption(speech(pitch=10), RATE, Record("a", "a.wav")) == "a high voice speaks"
