import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mimo_jax.data import audio
from mimo_jax.data.audio import AudioError, load_audio
from mimo_jax.data.audio_stream import stream_audio


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def frequency_of(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * rate / len(wave))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_and_rates(tmp_path: Path, kind: str, rate: int) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.stack([tone(rate), 0.5 * tone(rate)], 1), rate, format=kind)
    wave = load_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert abs(len(wave) - 24_000) <= (2 if kind in ("WAV", "FLAC") else 2_000)
    assert abs(frequency_of(wave, 24_000) - 440) < 3
    level = np.sqrt(np.mean(wave[6000:18000] ** 2))
    assert level == pytest.approx(0.225 / np.sqrt(2), rel=0.05)  # the mean of the channels


def test_start_and_end(tmp_path: Path) -> None:
    rate = 16_000
    low, high = tone(rate, 1.0, 300.0), tone(rate, 1.0, 1200.0)
    for kind in ("WAV", "FLAC", "OGG"):
        path = tmp_path / f"a.{kind.lower()}"
        soundfile.write(path, np.concatenate([low, high]), rate, format=kind)
        part = load_audio(path, start=1.25, end=1.75)
        assert abs(len(part) - 12_000) <= 1
        assert abs(frequency_of(part, 24_000) - 1200) < 3
        assert abs(frequency_of(load_audio(path, end=0.5), 24_000) - 300) < 3
        assert abs(len(load_audio(path, start=1.9, end=2.05)) - 2400) <= 1  # an end rounded up a little


def test_round_trip_of_writers(tmp_path: Path) -> None:
    wave = tone(24_000)
    for write, name in ((audio.write_flac, "a.flac"), (audio.write_wav, "a.wav")):
        write(tmp_path / name, wave)
        assert np.abs(load_audio(tmp_path / name) - wave).max() < 1e-4
    assert sorted(os.listdir(tmp_path)) == ["a.flac", "a.wav"]  # no temporary file stays
    with pytest.raises(ValueError, match="NaN"):
        audio.write_flac(tmp_path / "b.flac", np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="shape"):
        audio.write_flac(tmp_path / "b.flac", np.zeros((2, 5)))
    assert not (tmp_path / "b.flac").exists()


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _make_broken(folder: Path, kind: str) -> tuple[Path, dict[str, float]]:
    """(a broken file, the arguments of the call) for each kind."""
    path, rate, limits = folder / "a.wav", 16_000, {}
    if kind == "missing":
        return folder / "nothing.wav", {}
    if kind == "folder":
        return folder, {}
    if kind == "empty_file":
        path.write_bytes(b"")
    elif kind == "text_as_wav":
        path.write_text("this is no audio at all\n" * 100)
    elif kind == "random_as_mp3":
        path = folder / "a.mp3"
        path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    elif kind.startswith("cut_"):
        extension = kind.removeprefix("cut_")
        path = folder / f"a.{extension}"
        soundfile.write(path, tone(rate, 2.0), rate)
        _cut(path, 0.6)
    elif kind == "header_only_wav":
        soundfile.write(path, tone(rate), rate)
        path.write_bytes(path.read_bytes()[:44])
    elif kind == "zero_length":
        soundfile.write(path, np.zeros(0, np.float32), rate)
    elif kind == "silent":
        soundfile.write(path, 5e-5 * tone(rate), rate, subtype="FLOAT")
    elif kind == "opposite_channels":
        soundfile.write(path, np.stack([tone(rate), -tone(rate)], 1), rate)
    elif kind in ("nan", "inf"):
        wave = tone(rate)
        wave[100] = float(kind)
        soundfile.write(path, wave, rate, subtype="FLOAT")
    elif kind == "too_short":
        soundfile.write(path, tone(rate, 0.01), rate)
    elif kind == "too_long":
        soundfile.write(path, tone(rate, 3.0), rate)
        limits = {"max_seconds": 2.0}
    elif kind == "start_after_end_of_file":
        soundfile.write(path, tone(rate), rate)
        limits = {"start": 1.5}
    elif kind == "end_after_end_of_file":
        soundfile.write(path, tone(rate), rate)
        limits = {"end": 1.5}
    elif kind == "absurd_rate":
        soundfile.write(path, tone(rate), 10)
    return path, limits


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing"),
        ("folder", "missing"),
        ("empty_file", "empty_file"),
        ("text_as_wav", "not_audio"),
        ("random_as_mp3", "not_audio"),
        ("cut_wav", "truncated"),
        ("cut_flac", "truncated"),
        ("cut_ogg", "truncated"),
        ("cut_mp3", "truncated"),
        ("cut_aiff", "truncated"),
        ("cut_au", "truncated"),
        ("header_only_wav", "truncated"),
        ("zero_length", "zero_length"),
        ("silent", "silent"),
        ("opposite_channels", "silent"),
        ("nan", "non_finite"),
        ("inf", "non_finite"),
        ("too_short", "too_short"),
        ("too_long", "too_long"),
        ("start_after_end_of_file", "bad_range"),
        ("end_after_end_of_file", "bad_range"),
        ("absurd_rate", "bad_sample_rate"),
    ],
)
def test_each_broken_kind_gets_its_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path, limits = _make_broken(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        load_audio(path, **limits)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert reason in audio.REASONS and str(path) in str(caught.value)


def test_damaged_header_cannot_exhaust_memory(tmp_path: Path) -> None:
    """A FLAC header that promises 2^35 samples: what is there is decoded, then it is called truncated or too long."""
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x08  # the top bit of the 36-bit sample count in STREAMINFO
    path.write_bytes(bytes(data))
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    assert caught.value.reason in ("truncated", "too_long")


def test_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    """What is written to a pipe cannot go back to fill in its length."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16_000), 16_000)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = data[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert len(load_audio(path)) == 24_000


def test_flac_of_unknown_length_is_explained(tmp_path: Path) -> None:
    """`ffmpeg -f flac -` leaves 0 there; libsndfile reads it as 2^63 frames, whose end it cannot find."""
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36-bit sample count in STREAMINFO
    data[22:26] = bytes(4)
    path.write_bytes(bytes(data))
    for read in (load_audio, lambda path: list(stream_audio(path))):
        with pytest.raises(AudioError, match="write it anew"):
            read(path)


def test_many_channels_are_read_in_shorter_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small compressed file may hold hundreds."""
    wave = np.random.default_rng(0).normal(0, 0.1, (4000, 64)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    sizes, read = [], soundfile.SoundFile.read

    def noted(self: soundfile.SoundFile, *args: object, **options: object) -> np.ndarray:
        block = read(self, *args, **options)
        sizes.append(block.size)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", noted)
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 1000)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", 8000), wave.mean(axis=1))
    assert max(sizes) <= 1000
