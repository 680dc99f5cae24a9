"""Transcripts for recordings without a text, and a check of those that have one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mimo_jax.data.audio import resample
from mimo_jax.data.manifest import Record
from mimo_jax.preparation.elements import Element, Outcome, Stage, StageFault
from mimo_jax.preparation.stages.plugins import (
    LoadsOnce,
    Recogniser,
    package,
    recording,
    setup_plugin,
    with_scores,
)


@dataclasses.dataclass(frozen=True)
class Pocketsphinx(LoadsOnce):
    """CMU Sphinx with the English model that comes with its package: no weights to find, some three times real time.

    A generic fallback with many errors on hard speech; a trained recogniser is better in every way.

    Attributes:
        options: further settings of ``pocketsphinx.Decoder``, such as ``{"lm": path, "dict": path, "hmm": path}`` for
            another language.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    _RATE: ClassVar[int] = 16_000

    def setup(self) -> None:
        """Loads the models."""
        self._decoder  # noqa: B018 - loads

    @functools.cached_property
    def _decoder(self) -> Any:
        decoder = package("pocketsphinx", "pocketsphinx", "recognise.Pocketsphinx").Decoder
        return decoder(samprate=self._RATE, loglevel="FATAL", cmn="batch", **self.options)

    def __call__(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Texts; see `plugins.Recogniser`."""
        return [self._one(resample(wave, sample_rate, self._RATE)) for wave in waves]

    def _one(self, wave: np.ndarray) -> str:
        pcm = (np.clip(wave, -1.0, 1.0) * 32767.0).astype(np.int16).tobytes()
        if not pcm:
            return ""
        self._decoder.reinit_feat()  # it adapts to what it heard before
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


@dataclasses.dataclass(frozen=True)
class CtcRecogniser(LoadsOnce):
    """A recogniser of this project (`mimo_jax.evaluation.recogniser`), for the language that it was trained on.

    Attributes:
        folder: where the recogniser run exported it.
    """

    folder: str

    def setup(self) -> None:
        """Loads the weights.

        Raises:
            StageFault: the folder holds none.
        """
        self._judge  # noqa: B018 - loads

    @functools.cached_property
    def _judge(self) -> Any:
        from mimo_jax.evaluation.judge import CtcJudge

        try:
            return CtcJudge.load(self.folder)
        except FileNotFoundError as error:
            raise StageFault(f"recognise.CtcRecogniser: {error}") from error

    def __call__(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Texts; see `plugins.Recogniser`."""
        rate = self._judge.config.sample_rate
        return self._judge.transcribe([resample(wave, sample_rate, rate) for wave in waves])


@dataclasses.dataclass(frozen=True)
class Recognise(Stage):
    """Writes down what is said where a recording has no text, and measures how far given texts are from it.

    A text that was recognised is marked by ``attributes["text_source"] = "recognised"``; where nothing was recognised,
    the text stays None. With ``only_missing=False`` recordings with a text get the score ``asr_wer``: word errors over
    words of the given text (Chinese per character; above 1 where far more is heard than given), so that texts of
    something else can be filtered.

    Put it behind `segment.Segment`: recognisers do not like hours.

    Attributes:
        recogniser: plug-in; see `plugins.Recogniser`.
        only_missing: leave recordings with a text alone.
        batch_size: recordings that the plug-in gets at a time.
    """

    name: ClassVar[str] = "recognise"
    recogniser: Recogniser = Pocketsphinx()
    only_missing: bool = True
    batch_size: int = 16

    def setup(self) -> None:
        if not self.only_missing:
            package("jiwer", "jiwer", "recognise.Recognise(only_missing=False)")
        setup_plugin(self.recogniser)

    def process(self, element: Element) -> list[Outcome]:
        return self.process_batch([element])[0]

    def process_batch(self, elements: Sequence[Element]) -> list[list[Outcome]]:
        pairs = [recording(element) for element in elements]
        wanted = [i for i, (record, _) in enumerate(pairs) if record.text is None or not self.only_missing]
        texts: dict[int, str] = {}
        for rate in sorted({elements[i].sample_rate for i in wanted}):
            chosen = [i for i in wanted if elements[i].sample_rate == rate]
            heard = self.recogniser([pairs[i][1] for i in chosen], rate)
            if len(heard) != len(chosen):
                raise StageFault(f"the recogniser gave {len(heard)} texts for {len(chosen)} recordings")
            texts |= dict(zip(chosen, heard, strict=True))
        return [
            [dataclasses.replace(element, record=_with_text(pairs[i][0], texts[i])) if i in texts else element]
            for i, element in enumerate(elements)
        ]


def _with_text(record: Record, heard: str) -> Record:
    heard = " ".join(heard.split())
    if record.text is None:
        attributes = {**record.attributes, "text_source": "recognised"}
        return dataclasses.replace(record, text=heard, attributes=attributes) if heard else record
    from mimo_jax.evaluation.metrics import word_errors

    errors, words = word_errors(record.text, heard)
    return with_scores(record, {"asr_wer": errors / words}) if words else record
