"""Hours of audio in windows: nothing lost, cut where it is quiet, in memory that does not grow."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax import transcribe as command
from mimo_jax.data.audio import AudioError, load_audio
from mimo_jax.data.audio_stream import stream_audio
from mimo_jax.inference.long_audio import Passage, transcribe, windows

RATE = 1000


def words(seconds, pauses, rate=RATE):
    """Noise with silence of 0.3 s round each of the given moments."""
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    for pause in pauses:
        wave[int((pause - 0.15) * rate) : int((pause + 0.15) * rate)] = 0
    return wave


@given(
    sizes=st.lists(st.integers(0, 7000), max_size=8),
    longest=st.floats(1.0, 5.0),
    share=st.floats(0.05, 0.95),
)
def test_windows_are_the_stream(sizes, longest, share):
    rng = np.random.default_rng(1)
    blocks = [rng.normal(size=n).astype(np.float32) for n in sizes]
    made = list(windows(blocks, RATE, longest=longest, search=longest * share))
    joined = np.concatenate([np.zeros(0, np.float32), *[w for _, w in made]])
    np.testing.assert_array_equal(joined, np.concatenate([np.zeros(0, np.float32), *blocks]))
    assert [first for first, _ in made] == list(np.cumsum([0, *[len(w) for _, w in made]])[:-1])
    assert all(0 < len(w) <= round(longest * RATE) for _, w in made)


def test_windows_end_in_pauses():
    wave = words(70, [5, 24, 27.5, 50, 69])
    ends = [(first + len(part)) / RATE for first, part in windows([wave], RATE)]
    np.testing.assert_allclose(ends, [24, 50, 70], atol=0.1)
    with pytest.raises(ValueError, match="search must be positive and the smaller"):
        next(windows([wave], RATE, longest=5, search=5))


class Model:
    """Stands in for the model: its transcript of a wave is its length."""

    sample_rate = RATE

    def __init__(self):
        self.batches, self.seeds = [], []

    def asr(self, waves, *, seeds, **options):
        self.batches.append(len(waves))
        self.seeds += seeds
        return [SimpleNamespace(text=f"{len(w)} {options.get('language')}") for w in waves]


def test_passages_come_in_order_and_silence_is_not_heard():
    wave = words(100, [25, 50])
    wave[50_000:75_000] = 0
    model = Model()
    made = list(transcribe(model, [wave[i : i + 700] for i in range(0, len(wave), 700)], together=2, language="zh"))
    assert [p.text for p in made][0].endswith("zh")
    assert made[0].start == 0 and made[-1].end == 100
    assert all(a.end == b.start for a, b in zip(made, made[1:], strict=False))
    silent = [p for p in made if not p.text]
    assert silent and all(49.8 <= p.start and p.end <= 75.1 for p in silent)
    assert max(model.batches) <= 2 and model.seeds == [n for n, p in enumerate(made) if p.text]


@pytest.mark.parametrize("rate", [RATE * 8, 24_000])
def test_a_file_in_blocks_is_the_file(tmp_path, rate):
    wave = words(3, [1], rate)
    soundfile.write(tmp_path / "a.flac", np.stack([wave, 0.5 * wave], 1), rate)
    blocks = list(stream_audio(tmp_path / "a.flac", 24_000, block_seconds=0.7))
    assert len(blocks) > 2
    np.testing.assert_allclose(np.concatenate(blocks), load_audio(tmp_path / "a.flac", 24_000), atol=2e-4)


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "whole.mp3", words(20, [5], 24_000), 24_000)
    assert sum(map(len, stream_audio(tmp_path / "whole.mp3", 24_000))) >= 20 * 24_000
    whole = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "half.mp3").write_bytes(whole[: len(whole) // 2])
    reasons = {"nowhere.wav": "missing", "text.wav": "not_audio", "nan.wav": "non_finite", "half.mp3": "truncated"}
    for name, reason in reasons.items():
        with pytest.raises(AudioError, match=name) as error:
            list(stream_audio(tmp_path / name))
        assert error.value.reason == reason


def test_formats():
    passages = [Passage(0, 1.5, "one\ntwo"), Passage(1.5, 2, ""), Passage(2, 3725.25, "三")]
    assert list(command.lines(passages, "txt")) == ["one two", "三"]
    srt = ["1", "00:00:00,000 --> 00:00:01,500", "one two", "", "2", "00:00:02,000 --> 01:02:05,250", "三", ""]
    assert list(command.lines(passages, "srt")) == srt
    vtt = list(command.lines(passages, "vtt"))
    assert vtt[:4] == ["WEBVTT", "", "00:00:00.000 --> 00:00:01.500", "one two"] and "1" not in vtt
    assert [json.loads(line)["text"] for line in command.lines(passages, "jsonl")] == ["one\ntwo", "三"]


def test_command_names_what_is_missing(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "mimo_jax.transcribe", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(f"--lm={tmp_path}", f"--tokenizer={tmp_path}", "--audio=nowhere.wav")
    assert done.returncode == 2 and "--audio=nowhere.wav: no such file" in done.stderr
    assert "--lm is missing" in run("--audio=a.wav").stderr
