"""Cuts at pauses and speakers: no word lost, no text where it does not belong."""

import numpy as np
import pytest

from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.stages.segment import Segment, quietest
from mimo_jax.preparation.stages.voice import Silero, merge_spans
from tests.preparation.stages.speech_fixture import RATE, SENTENCES, element, joined, only, silence, speech


def _fixed(*spans):
    """A detector that knows."""
    return lambda wave, rate: list(spans)


def _noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def _pieces(outcomes) -> list[tuple[float, float]]:
    return [(o.record.start, o.record.end) for o in outcomes]


@pytest.fixture(scope="module")
def talk():
    """(wave of 12 sentences with pauses of 0.6 s, span of each sentence)."""
    waves, spans, at = [], [], 0.0
    for number in range(12):
        wave = speech(SENTENCES[number % 4])
        spans.append((at, at + len(wave) / RATE))
        waves += [wave, silence(0.6)]
        at += len(wave) / RATE + 0.6
    return joined(*waves), spans


def test_silero_hears_speech_and_not_silence_or_noise():
    wave = joined(silence(1.0), speech(), silence(1.5), speech(SENTENCES[1]), silence(1.0))
    detector = Silero()
    spans = merge_spans(detector(wave, RATE), 0.4)
    first, second = len(speech()) / RATE, len(speech(SENTENCES[1])) / RATE
    truth = [(1.0, 1.0 + first), (2.5 + first, 2.5 + first + second)]
    np.testing.assert_allclose(spans, truth, atol=0.15)
    assert detector(silence(2.0), RATE) == [] and detector(_noise(2.0), RATE) == []
    np.testing.assert_allclose(merge_spans(detector(0.003 * wave, RATE), 0.4), truth, atol=0.15)
    assert detector(wave, RATE) == Silero()(wave, RATE)  # nothing stays of what was heard before
    assert detector(speech()[:100], RATE) == []


def test_a_short_recording_keeps_its_id_and_text_and_loses_its_silence():
    wave = joined(silence(2.0), speech(), silence(3.0))
    given = element(
        wave, text="The quick brown fox", words=[["The", 2.0, 2.2], ["fox", 2.4, 2.6]], start=10.0, duration=99.0
    )
    out = only(Segment().process(given))
    length = len(speech()) / RATE
    assert out.record.start == pytest.approx(11.9, abs=0.1) and out.record.end == pytest.approx(12.1 + length, abs=0.15)
    assert (out.id, out.record.text, out.record.document) == ("rec", "The quick brown fox", None)
    assert out.seconds == pytest.approx(out.record.end - out.record.start, abs=1e-3) == out.record.duration
    moved = 2.0 - (out.record.start - 10.0)
    np.testing.assert_allclose([w[1:] for w in out.record.words], [[moved, moved + 0.2], [moved + 0.4, moved + 0.6]])
    assert out.record.scores["speech_share"] > 0.8
    # The record names the part of the file that the wave is.
    first = round((out.record.start - 10.0) * RATE)
    np.testing.assert_array_equal(out.wave, wave[first : first + len(out.wave)])


def test_trimming_is_an_option():
    given = element(joined(silence(1.0), speech(), silence(2.0)), text="hello")
    out = only(Segment(trim=False).process(given))
    assert out.wave is given.wave and out.record.start is None and out.record.text == "hello"
    assert out.record.scores["speech_share"] == pytest.approx(len(speech()) / len(given.wave), abs=0.1)


def test_a_long_recording_is_cut_at_its_pauses(talk):
    wave, sentences = talk
    given = element(wave, text="everything that is said", caption="a talk", speaker="ann", reply="other", start=100.0)
    out = list(Segment(max_seconds=10.0).process(given))
    assert len(out) > 3 and all(isinstance(o, Element) for o in out)
    assert all(o.seconds <= 10.0 for o in out)
    assert [o.record.document for o in out] == [{"id": "rec", "index": i} for i in range(len(out))]
    edges = [edge for o in out for edge in (o.record.start - 100.0, o.record.end - 100.0)]
    assert edges == sorted(edges)
    for start, end in sentences:  # each sentence lies in one segment
        assert not any(start + 0.1 < edge < end - 0.1 for edge in edges)
        assert any(o.record.start - 100.1 <= start and end <= o.record.end - 99.9 for o in out)
    first = out[0].record
    assert first.id == f"rec@{first.start:.3f}-{first.end:.3f}" and first.speaker == "ann"
    assert all((o.record.text, o.record.caption, o.record.reply) == (None, None, None) for o in out)
    for a, b in zip(out, Segment(max_seconds=10.0).process(given), strict=True):
        assert a.record == b.record
        np.testing.assert_array_equal(a.wave, b.wave)


def test_word_times_give_each_segment_its_text(talk):
    wave, sentences = talk
    text, words = [], []
    for number, (start, end) in enumerate(sentences):
        tokens = SENTENCES[number % 4].rstrip(".").split()
        width = (end - start) / len(tokens)
        words += [[t.strip(","), start + i * width, start + (i + 1) * width] for i, t in enumerate(tokens)]
        text.append(SENTENCES[number % 4])
    out = list(Segment(max_seconds=10.0).process(element(wave, text=" ".join(text), words=words)))
    assert " ".join(o.record.text for o in out) == " ".join(text)  # with its marks, nothing lost, nothing twice
    assert [w[0] for o in out for w in o.record.words] == [w[0] for w in words]
    for o in out:
        assert o.record.text.endswith(".")
        assert 0.0 <= o.record.words[0][1] < 0.3 and o.record.words[-1][2] <= o.seconds + 0.01


@pytest.mark.parametrize(
    ("text", "words", "texts"),
    [
        ("你好，世界。", ["你好", "世界"], ["你好，", "世界。"]),
        ("“Yes,” she said: “no!”", ["Yes", "she", "said", "no"], ["“Yes,” she", "said: “no!”"]),
        ("something else", ["你好", "世界"], ["你好", "世界"]),
    ],
)
def test_texts_are_cut_between_words(text, words, texts):
    half = len(words) // 2
    times = [[word, 5.0 * (i >= half) + i, 5.0 * (i >= half) + i + 1] for i, word in enumerate(words)]
    given = element(_noise(12.0), text=text, words=times)
    out = list(Segment(detector=_fixed(), max_seconds=6.0).process(given))
    assert [o.record.text for o in out] == texts


def test_the_last_good_pause_is_taken_else_the_longest():
    wave = _noise(12.0)
    good = Segment(detector=_fixed((0, 2), (2.5, 5), (5.5, 7), (7.15, 11)), max_seconds=8.0, pad=0.0)
    assert _pieces(good.process(element(wave))) == [(0, 5), (5.5, 11)]
    short = Segment(detector=_fixed((0, 2), (2.2, 5), (5.11, 7), (7.15, 11)), max_seconds=8.0, pad=0.0)
    assert _pieces(short.process(element(wave))) == [(0, 2), (2.2, 7), (7.15, 11)]


def test_a_long_silence_always_ends_a_segment():
    stage = Segment(detector=_fixed((0, 2), (6, 8)), max_seconds=7.0, pad=0.5, max_silence=3.0)
    assert _pieces(stage.process(element(_noise(12.0)))) == [(0, 2.5), (5.5, 8.5)]


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    wave = _noise(10.0)
    wave[round(4.5 * RATE) : round(4.6 * RATE)] *= 0.01
    assert quietest(wave, RATE, 3.0, 6.0) == pytest.approx(4.55, abs=0.03)
    out = list(Segment(detector=_fixed((0, 10)), max_seconds=6.2).process(element(wave)))
    (first, cut), (again, last) = _pieces(out)
    assert (first, last) == (0.0, 10.0) and cut == again == pytest.approx(4.55, abs=0.05)


def test_nothing_is_lost_unseen():
    assert only(Segment().process(element(silence(3.0)))) == Dropped(
        "rec", "filtered", "no_speech", "rec.wav: none in 3.00 s"
    )
    out = list(Segment(detector=_fixed((0, 3), (8, 8.3)), max_seconds=5.0).process(element(_noise(9.0))))
    assert isinstance(out[0], Element)
    assert (out[1].kind, out[1].reason, out[1].id) == ("filtered", "too_short_segment", "rec@7.900-8.400")


def test_turns_cut_and_name_the_speakers():
    turns = [["A", 0.0, 4.0], ["B", 4.4, 8.0], ["A", 8.0, 10.0]]
    stage = Segment(detector=_fixed((0, 4.1), (4.3, 10)), max_seconds=30.0, pad=0.0)
    given = element(_noise(10.0), attributes={"turns": turns, "topic": "x"}, scores={"speakers": 2.0})
    out = list(stage.process(given))
    assert _pieces(out) == [(0, 4.1), (4.3, 8), (8, 10)]
    assert [o.record.speaker for o in out] == ["rec/A", "rec/B", "rec/A"]
    assert out[0].record.attributes == {"topic": "x"} and "speakers" not in out[0].record.scores
    # A text without word times is worth more than the cut.
    whole = only(stage.process(element(_noise(10.0), text="hello there", attributes={"turns": turns})))
    assert whole.record.text == "hello there" and len(whole.record.attributes["turns"]) == 3


def test_a_recording_of_a_conversation_is_not_cut():
    stage = Segment(detector=_fixed((1, 2), (20, 50)), max_seconds=10.0)
    out = only(stage.process(element(_noise(60.0), part_of="talk", text="hello")))
    assert out.id == "rec" and _pieces([out]) == [(0.9, 50.1)] and out.record.text == "hello"


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="max_seconds"):
        Segment(max_seconds=0.1, pad=0.1)
