"""Files to waves: mono float32 at one sample rate, or a reason why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from mimo_jax.data import audio as audio_lib
from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage, StageFault


@dataclasses.dataclass(frozen=True)
class Decode(Stage):
    """Reads what ``record.audio`` names; fills in the wave, ``duration`` and ``sample_rate`` (that of the file).

    Channels are averaged. Unusable files are quarantined with a reason of `mimo_jax.data.audio.REASONS`, files of
    another rate than their record declares as ``wrong_rate``.

    Attributes:
        sample_rate: of the wave, Hz.
        min_seconds, max_seconds: limits of the part that is read.
        silence_peak: a peak below this is ``silent``.
    """

    name: ClassVar[str] = "decode"
    sample_rate: int = audio_lib.SAMPLE_RATE
    min_seconds: float = audio_lib.MIN_SECONDS
    max_seconds: float = audio_lib.MAX_SECONDS
    silence_peak: float = audio_lib.SILENCE_PEAK

    def process(self, element: Element) -> Iterator[Outcome]:
        record = element.record
        if not isinstance(record, Record):
            raise StageFault(f"{record.id}: decode.Decode reads recordings, not {type(record).__name__}")
        try:
            wave, rate = audio_lib.read_native(
                record.audio,
                record.start,
                record.end,
                min_seconds=self.min_seconds,
                max_seconds=self.max_seconds,
                silence_peak=self.silence_peak,
            )
        except audio_lib.AudioError as error:
            yield Dropped(record.id, "quarantined", error.reason, str(error))
            return
        if record.sample_rate is not None and record.sample_rate != rate:
            detail = f"{record.audio}: declared {record.sample_rate} Hz, the file has {rate} Hz"
            yield Dropped(record.id, "quarantined", "wrong_rate", detail)
            return
        # A gain that an earlier preparation applied is not in the file.
        scores = {name: value for name, value in record.scores.items() if name != "gain_db"}
        known = dataclasses.replace(record, duration=round(len(wave) / rate, 6), sample_rate=rate, scores=scores)
        wave = audio_lib.resample(wave, rate, self.sample_rate)
        yield dataclasses.replace(element, record=known, wave=wave, sample_rate=self.sample_rate)
