"""Texts: normalised, refused where broken, scored where dubious."""

import pytest

from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.stages.text_quality import TextQuality, letter_share, normalised, repetition
from tests.preparation.stages.speech_fixture import RATE, SENTENCES, element, only, silence, speech

STAGE = TextQuality()


def _text(text: str, **fields) -> Element:
    return Element(TextRecord("t", text, **fields))


def test_texts_are_normalised():
    assert normalised("  cafe\u0301 \n\t au\u00a0lait ") == "caf\u00e9 au lait"
    out = only(STAGE.process(_text("a  b", reply=" c\nd ")))
    assert (out.record.text, out.record.reply) == ("a b", "c d")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty_text"), (" \n", "empty_text"), ("a\x07b", "control_characters"), ("a\x7f", "control_characters")],
)
def test_broken_texts_are_quarantined(text, reason):
    for given in (_text(text), _text("fine", reply=text), Element(Record("r", "r.wav", text=text))):
        out = only(STAGE.process(given))
        assert isinstance(out, Dropped) and (out.kind, out.reason) == ("quarantined", reason)


def test_recordings_without_a_text_pass():
    given = element(speech())
    assert only(STAGE.process(given)) is given


def test_repetition_is_seen():
    assert repetition(SENTENCES[1]) == 0.0
    assert repetition("thank you for watching " * 10) > 0.85
    assert repetition("谢谢大家谢谢大家谢谢大家谢谢大家") > 0.6
    assert repetition("你好，今天天气怎么样") == 0.0
    assert repetition("no no no") == 0.0  # three words say nothing


def test_letters_are_told_from_marks():
    assert letter_share("Hello there") == 1.0
    assert letter_share("नमस्ते") == 1.0
    assert letter_share("你好") == 1.0
    assert letter_share("a1!?") == 0.25 and letter_share("") == 0.0


def test_a_text_that_does_not_fit_the_speech_is_seen():
    right = only(STAGE.process(element(speech(SENTENCES[1]), text=SENTENCES[1]))).record.scores
    assert 10 < right["text_characters_per_second"] < 20
    assert right["text_characters"] == len(SENTENCES[1])
    wrong = only(STAGE.process(element(speech(SENTENCES[1]), text=SENTENCES[1] * 5))).record.scores
    assert wrong["text_characters_per_second"] > 50
    padded = element(silence(4.0), text="x" * 20, scores={"speech_share": 0.25})
    assert only(STAGE.process(padded)).record.scores["text_characters_per_second"] == 20.0
    assert len(padded.wave) == 4 * RATE


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (SENTENCES[1], "en"),
        ("Der Hund läuft über die Straße und bellt laut.", "de"),
        ("今天天气很好，我们一起去公园散步，然后去吃晚饭吧。", "zh"),
        ("El perro corre por la calle y ladra muy fuerte.", "es"),
    ],
)
def test_the_language_is_found(text, language):
    out = only(STAGE.process(element(speech(), text=text)))
    assert out.record.attributes["language"] == language
    assert out.record.scores["text_language_confidence"] > 0.8
    said = only(STAGE.process(element(speech(), text=text, attributes={"language": "fr"})))
    assert said.record.attributes["language"] == "fr" and said.record.scores["text_language_confidence"] < 0.1


def test_other_languages_can_be_left_out():
    stage = TextQuality(languages=("en",))
    assert isinstance(only(stage.process(_text(SENTENCES[1]))), Element)
    out = only(stage.process(_text("Der Hund läuft über die Straße und bellt laut.")))
    assert (out.kind, out.reason) == ("filtered", "other_language")
    short = only(stage.process(element(speech(), text="Oui, merci.")))
    assert "text_language_confidence" not in short.record.scores  # too little to tell
