"""Limits with countable reasons; sampling that depends on nothing but id, score and seed."""

import numpy as np
import pytest

from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.stages.select import Filter, Sample, TextFilter, TextSample, draw
from tests.preparation.stages.speech_fixture import only


def _element(name: str = "a", **fields) -> Element:
    return Element(Record(name, "a.wav", **fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scores": {"snr_db": 4.99}}, "snr_db_below_5"),
        ({"scores": {"snr_db": -80.0}}, "snr_db_below_5"),
        ({"scores": {"asr_wer": 0.51}}, "asr_wer_above_0.5"),
        ({"duration": 31.0}, "duration_above_30"),
        ({"text": None}, "no_text"),
        ({"text": ""}, "no_text"),
        ({"scores": {"snr_db": float("nan")}}, None),
        ({"scores": {"snr_db": 5.0, "asr_wer": 0.5}, "duration": 30.0}, None),
        ({}, None),
    ],
)
def test_reasons_name_the_limit_not_the_value(fields, reason):
    stage = Filter(limits={"snr_db": (5.0, None), "asr_wer": (None, 0.5), "duration": (None, 30)}, require=("text",))
    element = _element(**{"text": "hello", **fields})
    out = only(stage.process(element))
    if reason is None:
        assert out is element
    else:
        assert isinstance(out, Dropped) and (out.kind, out.reason) == ("filtered", reason)


def test_a_score_can_be_required():
    stage = Filter(limits={"snr_db": (5.0, None)}, require=("snr_db",))
    assert only(stage.process(_element())).reason == "no_snr_db"
    assert only(stage.process(_element(scores={"snr_db": 0.0}))).reason == "snr_db_below_5"  # 0 is there
    assert only(stage.process(_element(scores={"snr_db": 9.0}))).id == "a"


def test_texts_have_stages_of_their_own():
    text = Element(TextRecord("t", "hello", scores={"text_repetition": 0.9}))
    assert TextFilter.takes == TextSample.takes == (TextRecord,) and Filter.takes == Sample.takes == (Record,)
    out = only(TextFilter(limits={"text_repetition": (None, 0.5)}).process(text))
    assert out.reason == "text_repetition_above_0.5"


@pytest.mark.parametrize("limit", [(3.0, 1.0), (1.0,), (1.0, 2.0, 3.0)])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(ValueError, match="snr_db"):
        Filter(limits={"snr_db": limit})


def test_draws_are_fixed_and_even():
    assert draw(0, "a") == 0.5095025705900529
    draws = np.array([draw(1, f"id-{i}") for i in range(4000)])
    assert np.histogram(draws, bins=10, range=(0, 1))[0] == pytest.approx(400, rel=0.2)
    assert draw(1, "a") != draw(2, "a")


def test_better_recordings_are_likelier():
    stage = Sample(score="snr_db", low=0.0, high=20.0, floor=0.2)
    kept = {
        snr: np.mean(
            [isinstance(only(stage.process(_element(f"{i}", scores={"snr_db": snr}))), Element) for i in range(2000)]
        )
        for snr in (-5.0, 0.0, 10.0, 20.0, 40.0)
    }
    assert list(kept.values()) == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0], abs=0.04)
    out = only(Sample(low=0.0, high=20.0, floor=0.0).process(_element(scores={"snr_db": -5.0})))
    assert (out.kind, out.reason) == ("filtered", "not_sampled")


def test_who_is_kept_is_kept_with_a_better_score_too():
    stage = Sample(low=0.0, high=20.0, floor=0.0)
    for i in range(100):
        kept = [
            isinstance(only(stage.process(_element(f"{i}", scores={"snr_db": s}))), Element) for s in range(0, 21, 5)
        ]
        assert kept == sorted(kept)


def test_low_scores_may_be_the_good_ones_and_missing_ones_have_a_probability():
    stage = Sample(score="asr_wer", low=1.0, high=0.0, floor=0.0, power=2.0, missing=0.25)
    assert [stage.probability(Record("a", "a.wav", scores={"asr_wer": w})) for w in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.0]
    assert stage.probability(Record("a", "a.wav")) == 0.25


def test_impossible_settings_are_refused():
    for settings in ({"low": 1.0, "high": 1.0}, {"power": 0.0}, {"floor": 1.5}, {"missing": -0.1}):
        with pytest.raises(ValueError, match="Sample"):
            Sample(**settings)
