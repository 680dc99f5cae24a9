"""Transcripts where they are missing, and a measure of those that are given."""

import sys

import numpy as np
import pytest

from mimo_jax.preparation.elements import StageFault
from mimo_jax.preparation.stages.recognise import CtcRecogniser, Pocketsphinx, Recognise
from tests.preparation.stages.speech_fixture import RATE, element, only, silence, speech


def _hears(*texts):
    """A recogniser that says these texts in turn."""
    said = iter(texts)
    return lambda waves, rate: [next(said) for _ in waves]


def test_only_missing_texts_are_filled_in():
    given = [element(speech(), text="kept"), element(speech()), element(silence(1.0))]
    (kept,), (filled,), (empty,) = Recognise(recogniser=_hears(" two  words ", "")).process_batch(given)
    assert kept is given[0]
    assert filled.record.text == "two words" and filled.record.attributes == {"text_source": "recognised"}
    assert empty.record.text is None and empty.record.attributes == {}


@pytest.mark.parametrize(
    ("text", "heard", "wer"),
    [
        ("Turn the light on.", "turn the light on", 0.0),
        ("Turn the light on.", "turn a light", 0.5),
        ("Hello.", "a b c", 3.0),
        ("Hello.", "", 1.0),
    ],
)
def test_given_texts_are_measured(text, heard, wer):
    out = only(Recognise(recogniser=_hears(heard), only_missing=False).process(element(speech(), text=text)))
    assert out.record.text == text and out.record.scores == {"asr_wer": wer}


def test_measuring_needs_a_package_from_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    Recognise(recogniser=_hears()).setup()
    with pytest.raises(StageFault, match="jiwer"):
        Recognise(recogniser=_hears(), only_missing=False).setup()


def test_a_recogniser_that_loses_recordings_stops_the_run():
    with pytest.raises(StageFault, match="1 texts for 2"):
        Recognise(recogniser=lambda waves, rate: ["x"]).process_batch([element(speech())] * 2)


def test_pocketsphinx_hears_words_whatever_it_heard_before():
    pytest.importorskip("pocketsphinx")
    text = "It was a bright cold day in April"
    recogniser = Pocketsphinx()
    waves = [speech(text, "en-us+f2", 150), speech("Turn the lights on please", "en-us+f2", 150)]
    texts = recogniser(waves, RATE)
    assert len({"was", "bright", "in", "april"} & set(texts[0].split())) >= 3
    assert texts[1]
    assert recogniser(waves[::-1], RATE) == texts[::-1]
    assert recogniser([silence(0.0)], RATE) == [""]


def test_the_recogniser_of_this_project_is_loaded_by_folder(tmp_path):
    import jax

    from mimo_jax.evaluation.judge import CtcJudge
    from mimo_jax.models.recogniser import Recogniser, RecogniserConfig
    from mimo_jax.objectives.transcripts import Vocabulary

    config = RecogniserConfig(sample_rate=16_000, num_words=2, d_model=8, dilations=(1,), num_mels=8, n_fft=640)
    params = Recogniser(config).init(jax.random.key(0), np.zeros((1, 4800), np.float32), np.array([4800]))["params"]
    judge = CtcJudge(config, params, Vocabulary(("yes", "no")))
    judge.save(tmp_path / "judge")
    recogniser = CtcRecogniser(str(tmp_path / "judge"))
    recogniser.setup()
    wave = speech()
    from mimo_jax.data.audio import resample

    (text,) = recogniser([wave], RATE)
    assert text and text == judge.transcribe([resample(wave, RATE, 16_000)])[0]
    with pytest.raises(StageFault, match=str(tmp_path)):
        CtcRecogniser(str(tmp_path)).setup()
