"""What reconstructions are compared with: Griffin-Lim from the uncompressed mel, and public codecs of low bit rates.

The public codecs are those that run from a Python package without downloads (`pip install mimo_jax[codecs]`): Opus and
AMR-NB in the FFmpeg that PyAV brings along, Codec 2 in pycodec2. Each absent package is reported, none is needed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mimo_jax.data.audio import resample
from mimo_jax.data.librosa_loading import compiling_alone, load_librosa
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.systems import Wave

_TAIL = 0.1  # seconds of silence behind each wave: what a codec's delay pushes out at the end is still there
_DELAY_STEP, _DELAY_LIMIT, _DELAY_ITEMS = 0.0025, 0.08, 8  # seconds, seconds, waves


@dataclasses.dataclass(frozen=True)
class Coded:
    """Waves after a codec, float32 [samples] as long as the originals, and the bits per second that it made."""

    waves: list[Wave]
    bits_per_second: float


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A way to reconstruct speech.

    Attributes:
        name: of its row.
        kbps: nominal kbit/s.
        note: what it is, in a sentence.
        run: waves, their sample rate -> what became of them.
    """

    name: str
    kbps: float
    note: str
    run: Callable[[Sequence[Wave], int], Coded]


def griffin_lim(
    *,
    sample_rate: int,
    n_fft: int,
    hop_length: int,
    window_length: int,
    n_mels: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    iterations: int = 32,
    seed: int = 0,
) -> Baseline:
    """librosa's inversion of the mel spectrogram that a tokenizer sees, not quantised at all.

    Args:
        sample_rate, n_fft, hop_length, window_length, n_mels, fmin, fmax: of the tokenizer's front end (magnitudes on
            the HTK scale without area normalisation).
        iterations: of Griffin-Lim.
        seed: of the first phases.
    """
    librosa = load_librosa()
    stft = {"n_fft": n_fft, "hop_length": hop_length, "win_length": window_length}
    mel = {"sr": sample_rate, "n_fft": n_fft, "fmin": fmin, "fmax": fmax, "htk": True, "norm": None}
    basis = librosa.filters.mel(n_mels=n_mels, **mel)
    bits = 32 * n_mels * sample_rate / hop_length

    def invert(wave: Wave) -> Wave:
        spectrum = np.abs(librosa.stft(wave, **stft, pad_mode="reflect"))
        linear = librosa.feature.inverse.mel_to_stft(basis @ spectrum, power=1.0, **mel)
        made = librosa.griffinlim(linear, n_iter=iterations, **stft, length=len(wave), random_state=seed)
        return np.asarray(made, np.float32)

    with compiling_alone():
        invert(np.zeros(2 * n_fft, np.float32))  # what is compiled at the first call

    def run(waves: Sequence[Wave], rate: int) -> Coded:
        if rate != sample_rate:
            raise ValueError(f"waves at {rate} Hz for a mel spectrogram at {sample_rate} Hz: resample them first")
        return Coded([invert(wave) for wave in waves], bits)

    note = f"{iterations} iterations from the {n_mels} mel bins in float32, not quantised"
    return Baseline("Griffin-Lim", bits / 1000, note, run)


def public_codecs() -> tuple[list[Baseline], list[str]]:
    """(the public codecs that can run here, what is missing for the others)."""
    found, missing = [], []
    if importlib.util.find_spec("av") is not None:
        available = _ffmpeg_encoders()
        for name, baseline in (("libopus", _opus()), ("libopencore_amrnb", _amr_nb())):
            if name in available:
                found.append(baseline)
            else:
                missing.append(f"{baseline.name}: this PyAV's FFmpeg was built without {name}")
    else:
        missing.append("Opus and AMR-NB: PyAV is not installed (pip install 'mimo_jax[codecs]')")
    if importlib.util.find_spec("pycodec2") is not None:
        found.append(_codec2())
    else:
        missing.append("Codec 2: pycodec2 is not installed (pip install 'mimo_jax[codecs]')")
    return found, missing


def _opus() -> Baseline:
    options = {"application": "voip", "vbr": "off", "frame_duration": "60"}
    coder = _FfmpegCoder("libopus", 24_000, 6000, options)
    return Baseline("Opus 6k", 6.0, "Opus (RFC 6716) at its lowest rate, voip, constant rate, 60 ms", _aligned(coder))


def _amr_nb() -> Baseline:
    coder = _FfmpegCoder("libopencore_amrnb", 8000, 4750, {})
    return Baseline("AMR-NB 4.75k", 4.75, "AMR narrow band (3GPP TS 26.071) at its lowest rate, 8 kHz", _aligned(coder))


def _codec2() -> Baseline:
    return Baseline("Codec2 1.6k", 1.6, "Codec 2 (David Rowe) in mode 1600, 8 kHz", _aligned(_codec2_coder))


def _ffmpeg_encoders() -> set[str]:
    import av

    found = set()
    for name in ("libopus", "libopencore_amrnb"):
        try:
            found.add(av.Codec(name, "w").name)
        except ValueError:  # av.codec.codec.UnknownCodecError is one
            continue
    return found


@dataclasses.dataclass(frozen=True)
class _FfmpegCoder:
    """One wave through an encoder and its decoder of FFmpeg, without a container."""

    codec: str
    sample_rate: int
    bit_rate: int
    options: dict[str, str]

    def __call__(self, wave: Wave, rate: int) -> tuple[Wave, int]:
        """(decoded wave at `rate`, bits)."""
        import av

        encoder: Any = av.CodecContext.create(self.codec, "w")
        encoder.sample_rate, encoder.bit_rate, encoder.options = self.sample_rate, self.bit_rate, self.options
        encoder.layout, encoder.format, encoder.time_base = "mono", "s16", Fraction(1, self.sample_rate)
        encoder.open()
        frame = av.AudioFrame.from_ndarray(_int16(resample(wave, rate, self.sample_rate))[None], "s16", "mono")
        frame.sample_rate, frame.pts = self.sample_rate, 0
        cutter = av.AudioResampler("s16", "mono", self.sample_rate, frame_size=encoder.frame_size)
        packets = [p for cut in (*cutter.resample(frame), *cutter.resample(None)) for p in encoder.encode(cut)]
        packets += encoder.encode(None)
        decoder: Any = av.CodecContext.create(self.codec, "r")
        decoder.sample_rate, decoder.layout, decoder.extradata = self.sample_rate, "mono", encoder.extradata
        frames = [f for packet in (*packets, None) for f in decoder.decode(packet)]
        decoded = np.concatenate([f.to_ndarray()[0] for f in frames]).astype(np.float32) / 32768
        return resample(decoded, frames[0].sample_rate, rate), 8 * sum(p.size for p in packets)


def _codec2_coder(wave: Wave, rate: int) -> tuple[Wave, int]:
    """(wave through Codec 2 at 1600 bit/s, bits)."""
    import pycodec2

    coder = pycodec2.Codec2(1600)
    size = coder.samples_per_frame()
    low = _int16(resample(wave, rate, 8000))
    frames = np.pad(low, (0, -len(low) % size)).reshape(-1, size)
    decoded = np.concatenate([coder.decode(coder.encode(frame)) for frame in frames])
    return resample(decoded.astype(np.float32) / 32768, 8000, rate), len(frames) * coder.bits_per_frame()


def _int16(wave: Wave) -> np.ndarray:
    return np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)


def _aligned(coder: Callable[[Wave, int], tuple[Wave, int]]) -> Callable[[Sequence[Wave], int], Coded]:
    """`coder` over waves, without its delay: STOI and the mel distance compare what is simultaneous."""

    def run(waves: Sequence[Wave], rate: int) -> Coded:
        tail = round(_TAIL * rate)
        coded = [coder(np.pad(np.asarray(wave, np.float32), (0, tail)), rate) for wave in waves]
        late = _delay(waves, [made for made, _ in coded], rate)
        cut = [_cut(made, late, len(wave)) for wave, (made, _) in zip(waves, coded, strict=True)]
        seconds = sum(len(wave) + tail for wave in waves) / rate
        return Coded(cut, sum(bits for _, bits in coded) / seconds)

    return run


def _delay(references: Sequence[Wave], decoded: Sequence[Wave], rate: int) -> int:
    """Samples by which a codec is late: the shift at which the first few waves are nearest in their mel spectrograms.

    A codec such as Codec 2 keeps no waveform that a cross-correlation could find.
    """
    pairs = list(zip(references, decoded, strict=True))[:_DELAY_ITEMS]
    shifts = [round(i * _DELAY_STEP * rate) for i in range(round(_DELAY_LIMIT / _DELAY_STEP) + 1)]
    distances = [np.mean([metrics.mel_distance(r, _cut(d, shift, len(r)), rate) for r, d in pairs]) for shift in shifts]
    return shifts[int(np.argmin(distances))]


def _cut(wave: Wave, start: int, length: int) -> Wave:
    part = wave[start : start + length]
    return np.pad(part, (0, length - len(part)))
