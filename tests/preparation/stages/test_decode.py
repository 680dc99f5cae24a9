"""Files to waves: what is read, and a reason for what cannot be."""

import dataclasses

import numpy as np
import pytest
import soundfile

from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.preparation.elements import Dropped, Element, StageFault
from mimo_jax.preparation.stages.decode import Decode
from tests.preparation.stages.speech_fixture import RATE, only, speech


@pytest.fixture
def stereo(tmp_path):
    """Two channels at 48 kHz, the right one silent."""
    from mimo_jax.data.audio import resample

    wave = resample(speech(), RATE, 48_000)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([wave, 0 * wave], axis=1), 48_000)
    return str(path)


def test_a_file_becomes_mono_at_one_rate(stereo):
    out = only(Decode().process(Element(Record("a", stereo, scores={"gain_db": 3.0, "mos": 4.0}))))
    assert out.sample_rate == RATE and out.wave.dtype == np.float32
    assert out.record.sample_rate == 48_000
    assert out.record.duration == pytest.approx(len(speech()) / RATE, abs=1e-3)
    assert out.record.scores == {"mos": 4.0}  # a gain of an earlier preparation is not in the file
    size = min(len(out.wave), len(speech()))
    assert np.abs(out.wave[:size] - speech()[:size] / 2).max() < 0.02


def test_a_range_is_read(stereo):
    out = only(Decode(sample_rate=16_000).process(Element(Record("a", stereo, start=0.5, end=1.25))))
    assert out.seconds == pytest.approx(0.75) and out.record.duration == 0.75 and out.sample_rate == 16_000


@pytest.mark.parametrize(
    ("record", "settings", "reason"),
    [
        (Record("a", "nowhere.wav"), {}, "missing"),
        (Record("a", "HERE", sample_rate=16_000), {}, "wrong_rate"),
        (Record("a", "HERE", start=100.0), {}, "bad_range"),
        (Record("a", "HERE"), {"min_seconds": 60.0}, "too_short"),
        (Record("a", "HERE"), {"max_seconds": 0.5}, "too_long"),
        (Record("a", "HERE"), {"silence_peak": 0.9}, "silent"),
    ],
)
def test_unusable_files_have_a_reason(stereo, record, settings, reason):
    record = dataclasses.replace(record, audio=record.audio.replace("HERE", stereo))
    out = only(Decode(**settings).process(Element(record)))
    assert isinstance(out, Dropped)
    assert (out.id, out.kind, out.reason) == ("a", "quarantined", reason)
    assert record.audio in out.detail


def test_texts_are_a_mistake_of_the_chain():
    with pytest.raises(StageFault, match="TextRecord"):
        list(Decode().process(Element(TextRecord("t", "hello"))))
