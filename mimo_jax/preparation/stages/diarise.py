"""Who speaks when in a recording."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from mimo_jax.data.librosa_loading import load_librosa
from mimo_jax.preparation.elements import Element, Outcome, Stage
from mimo_jax.preparation.stages.plugins import (
    Detector,
    Diariser,
    LoadsOnce,
    Span,
    Turn,
    recording,
    setup_plugin,
    with_scores,
)
from mimo_jax.preparation.stages.voice import Silero, merge_spans

_HOP_SECONDS = 0.01
_COEFFICIENTS = 20
_ONE_VOICE_IN_SILENCE = 1.8

Gaussians = tuple[np.ndarray, np.ndarray]
"""Means [..., D] and covariances [..., D, D]."""


@dataclasses.dataclass(frozen=True)
class ClusterDiariser(LoadsOnce):
    """A baseline without trained weights (apart from the detector's): windows of speech, clustered by their timbre.

    Each window is a Gaussian of mel-frequency cepstral coefficients; the distance of two is their generalised
    likelihood ratio (Gish et al. 1991), and windows are clustered by average linkage up to ``threshold``. It tells
    clearly different voices in one acoustic environment apart, is blind to overlapping speech, and takes a change of
    microphone or a new noise for a new speaker: for anything better, plug in a diariser with speaker embeddings.

    Attributes:
        detector: voice activity plug-in.
        window: seconds of speech that are one point.
        step: seconds from window to window.
        threshold: distance from which clusters are different speakers, in units of the usual distance between
            neighbouring windows of the recording: noise makes all distances smaller.
        min_speaker: seconds; clusters with less speech join the nearest speaker.
        max_points: windows that are clustered, evenly spread; the others go to the nearest cluster.
    """

    detector: Detector = Silero()
    window: float = 1.5
    step: float = 0.75
    threshold: float = 2.6
    min_speaker: float = 3.0
    max_points: int = 400

    def setup(self) -> None:
        """Loads the detector, and what librosa loads and compiles at its first use."""
        setup_plugin(self.detector)
        _features(np.zeros(4800, np.float32), 24_000)

    def __call__(self, wave: np.ndarray, sample_rate: int) -> list[Turn]:
        """Turns; see `plugins.Diariser`."""
        spans = merge_spans(self.detector(wave, sample_rate), 0.2)
        windows = [(number, w) for number, span in enumerate(spans) for w in self._windows(span)]
        if not windows:
            return []
        features = _features(wave, sample_rate)
        frames = [_cut(features, w) for _, w in windows]
        labels = self._labels([number for number, _ in windows], frames)
        return _turns(spans, [(number, sum(w) / 2) for number, w in windows], labels)

    def _windows(self, span: Span) -> list[Span]:
        """Windows that cover a span, the last one ending with it."""
        start, end = span
        count = 1 + max(0, int(np.ceil((end - start - self.window) / self.step)))
        starts = np.linspace(start, max(start, end - self.window), count)
        return [(float(s), min(end, float(s) + self.window)) for s in starts]

    def _labels(self, spans: Sequence[int], frames: Sequence[np.ndarray]) -> list[int]:
        """Speaker of each window: number of its span, and its frames float32 ``[frames, coefficients]``."""
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform

        # Too short for a covariance of its own: a word like "yes" says little about a voice.
        long = [i for i, f in enumerate(frames) if len(f) >= 0.5 * self.window / _HOP_SECONDS]
        if len(long) < 2:
            return [0] * len(frames)
        means, covariances = gaussians = _gaussians([frames[i] for i in long])
        points = np.unique(np.linspace(0, len(long) - 1, self.max_points).astype(int))
        chosen = means[points], covariances[points]
        tree = linkage(squareform(_distances(chosen, chosen), checks=False), "average")
        clusters = fcluster(tree, self.threshold * _one_voice([spans[i] for i in long], gaussians), "distance")
        members = [points[clusters == c] for c in np.unique(clusters)]
        # `points` may be a sample of the windows; each stands for that many seconds.
        seconds = self.step * len(long) / len(points)
        large = [m for m in members if len(m) * seconds >= self.min_speaker] or [max(members, key=len)]
        speakers = _gaussians([np.concatenate([frames[long[i]] for i in m]) for m in large])
        labels = dict(zip(long, _distances(gaussians, speakers).argmin(1).tolist(), strict=True))
        return [labels[i] if i in labels else labels[_nearest(long, i)] for i in range(len(frames))]


@dataclasses.dataclass(frozen=True)
class Diarise(Stage):
    """Finds the speakers of a recording that names none; put it before `segment.Segment`, which cuts between them.

    One speaker: ``speaker`` becomes ``<id>/A``. Several: ``attributes["turns"]`` becomes [name, start, end] in seconds
    of the part, with the names A, B, ... in order of appearance, and Segment makes segments of the speakers ``<id>/A``
    ... of them. The score ``speakers`` counts them, so that `select.Filter` can keep recordings of one.

    Attributes:
        diariser: plug-in; see `plugins.Diariser`.
    """

    name: ClassVar[str] = "diarise"
    diariser: Diariser = ClusterDiariser()

    def setup(self) -> None:
        setup_plugin(self.diariser)

    def process(self, element: Element) -> Iterator[Outcome]:
        record, wave = recording(element)
        if record.speaker is not None or "turns" in record.attributes:
            yield element
            return
        names: dict[str, str] = {}
        turns: list[list[Any]] = []
        for speaker, start, end in self.diariser(wave, element.sample_rate):
            name = names.setdefault(speaker, speaker_name(len(names)))
            turns.append([name, round(float(start), 3), round(float(end), 3)])
        if len(names) == 1:
            record = dataclasses.replace(record, speaker=f"{record.id}/{turns[0][0]}")
        elif names:
            record = dataclasses.replace(record, attributes={**record.attributes, "turns": turns})
        yield dataclasses.replace(element, record=with_scores(record, {"speakers": len(names)}) if names else record)


def speaker_name(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("A") + letter) + name
    return name


def _features(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cepstral coefficients float32 ``[frames of 10 ms, 19]``, without the one that is the level."""
    hop = round(_HOP_SECONDS * sample_rate)
    found = load_librosa().feature.mfcc(
        y=wave, sr=sample_rate, n_mfcc=_COEFFICIENTS, n_fft=1024, win_length=4 * hop, hop_length=hop, n_mels=40
    )
    return found[1:].T


def _cut(features: np.ndarray, span: Span) -> np.ndarray:
    first = min(len(features) - 1, int(span[0] / _HOP_SECONDS))
    return features[first : max(first + 1, int(span[1] / _HOP_SECONDS))]


def _gaussians(frames: Sequence[np.ndarray]) -> Gaussians:
    """Of N lists of frames; some variance is added so that short windows have a full rank."""
    means = np.stack([f.mean(0, dtype=np.float64) for f in frames])
    covariances = [(f - m).T.astype(np.float64) @ (f - m) / len(f) for f, m in zip(frames, means, strict=True)]
    return means, np.stack(covariances) + np.eye(means.shape[1])


def _distance(a: Gaussians, b: Gaussians) -> np.ndarray:
    """How much likelier two Gaussians are than a common one: log likelihood ratio per pair of frames, [...]."""
    apart = a[0] - b[0]
    common = (a[1] + b[1]) / 2 + apart[..., :, None] * apart[..., None, :] / 4
    logs = [np.linalg.slogdet(covariance)[1] for covariance in (common, a[1], b[1])]
    return np.maximum(0.0, logs[0] - (logs[1] + logs[2]) / 2)


def _distances(a: Gaussians, b: Gaussians) -> np.ndarray:
    """All distances [N, M], row by row: at once they would fill the memory."""
    return np.stack([_distance((mean, covariance), b) for mean, covariance in zip(*a, strict=True)])


def _one_voice(spans: Sequence[int], gaussians: Gaussians) -> float:
    """Usual distance of neighbouring windows within one span: almost always one voice, in the noise that there is."""
    means, covariances = gaussians
    pairs = np.flatnonzero(np.diff(spans) == 0)
    if not len(pairs):
        return _ONE_VOICE_IN_SILENCE
    near = _distance((means[pairs], covariances[pairs]), (means[pairs + 1], covariances[pairs + 1]))
    return float(np.median(near))


def _nearest(ascending: Sequence[int], value: int) -> int:
    """The element that is closest to the value."""
    place = bisect.bisect(ascending, value)
    return min(ascending[max(0, place - 1) : place + 1], key=lambda candidate: abs(candidate - value))


def _turns(spans: Sequence[Span], centres: Sequence[tuple[int, float]], labels: Sequence[int]) -> list[Turn]:
    """Turns of windows, given as (number of the span, its middle); speakers change half-way between two windows."""
    turns: list[Turn] = []
    last, previous = -1, 0.0
    for (number, centre), label in zip(centres, labels, strict=True):
        start, end = spans[number]
        if turns and last == number and turns[-1][0] != str(label):
            start = (centre + previous) / 2
            turns[-1] = (*turns[-1][:2], start)
        if turns and turns[-1][0] == str(label):
            turns[-1] = (*turns[-1][:2], end)
        else:
            turns.append((str(label), start, end))
        last, previous = number, centre
    return turns
