"""Who speaks when, told apart by timbre."""

import numpy as np
import pytest

from mimo_jax.data.corpus import noise
from mimo_jax.data.corpus.voices import VOICES
from mimo_jax.preparation.stages.diarise import ClusterDiariser, Diarise, speaker_name
from mimo_jax.preparation.stages.segment import Segment
from tests.preparation.stages.speech_fixture import RATE, SENTENCES, element, joined, only, silence, speech


def _dialogue(*voices: str) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    waves, turns, at = [], [], 0.0
    for number, name in enumerate(voices):
        wave = speech(SENTENCES[number % 4], VOICES[name].espeak, 175, VOICES[name].pitch)
        turns.append((name, at, at + len(wave) / RATE))
        waves += [wave, silence(0.4)]
        at += len(wave) / RATE + 0.4
    return joined(*waves), turns


@pytest.mark.parametrize("snr", [None, 15])
@pytest.mark.parametrize("pair", [("alice", "brian"), ("clara", "henry"), ("brian", "fraser")])
def test_two_speakers_are_told_apart(pair, snr):
    wave, truth = _dialogue(*pair * 4)
    if snr is not None:
        wave = noise.mix(wave, noise.white(np.random.default_rng(0), len(wave)), snr)
    out = only(Diarise().process(element(wave)))
    assert out.record.scores["speakers"] == 2 and out.record.speaker is None
    turns = out.record.attributes["turns"]
    assert [t[0] for t in turns] == ["A", "B"] * 4
    np.testing.assert_allclose([t[1:] for t in turns], [t[1:] for t in truth], atol=0.35)


@pytest.mark.parametrize("voice", ["alice", "david", "karen"])
def test_one_speaker_is_one(voice):
    out = only(Diarise().process(element(_dialogue(*[voice] * 8)[0])))
    assert out.record.scores["speakers"] == 1
    assert out.record.speaker == "rec/A" and "turns" not in out.record.attributes


def test_segments_are_of_one_speaker_each():
    wave, truth = _dialogue("alice", "brian", "alice", "brian", "alice", "brian")
    (diarised,) = Diarise().process(element(wave))
    segments = list(Segment().process(diarised))
    assert [s.record.speaker for s in segments] == ["rec/A", "rec/B"] * 3
    np.testing.assert_allclose([[s.record.start, s.record.end] for s in segments], [t[1:] for t in truth], atol=0.4)


def test_more_windows_than_are_clustered():
    wave, truth = _dialogue(*("alice", "brian") * 8)
    turns = ClusterDiariser(max_points=12)(wave, RATE)
    labels = [t[0] for t in turns]
    assert len(set(labels)) == 2 and labels == [labels[0], labels[1]] * 8


def test_nothing_to_tell_apart():
    diariser = ClusterDiariser()
    assert diariser(silence(3.0), RATE) == []
    assert len({t[0] for t in diariser(speech()[: RATE // 2], RATE)}) == 1
    given = element(silence(3.0))
    assert only(Diarise().process(given)).record == given.record


def test_what_is_known_stays():
    def fail(wave, rate):
        raise AssertionError("must not be called")

    for fields in ({"speaker": "ann"}, {"attributes": {"turns": [["x", 0.0, 1.0]]}}):
        given = element(speech(), **fields)
        assert only(Diarise(diariser=fail).process(given)) is given


def test_names_follow_the_order_of_appearance():
    stage = Diarise(diariser=lambda wave, rate: [("zoe", 0.0, 1.0), ("bob", 1.0, 1.5), ("zoe", 1.5, 2.0)])
    out = only(stage.process(element(speech())))
    assert out.record.attributes["turns"] == [["A", 0.0, 1.0], ["B", 1.0, 1.5], ["A", 1.5, 2.0]]
    assert [speaker_name(n) for n in (0, 25, 26, 51, 52, 702)] == ["A", "Z", "AA", "AZ", "BA", "AAA"]
