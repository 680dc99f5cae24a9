"""Everything that can be wrong with a folder of recordings, through the whole preparation."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec

RATE = 16_000
WAVE = (0.1 * np.sin(np.arange(RATE) * 0.2)).astype(np.float32)


def _wav(path: Path, wave: np.ndarray = WAVE, rate: int = RATE, subtype: str = "PCM_16") -> None:
    soundfile.write(path, wave, rate, subtype=subtype)


def _cut(path: Path, kind: str) -> None:
    soundfile.write(path, np.tile(WAVE, 4), RATE, format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _huge_header(path: Path) -> None:
    """A WAV that promises 13 hours and holds a second."""
    _wav(path)
    data = bytearray(path.read_bytes())
    data[40:44] = (13 * 3600 * RATE * 2).to_bytes(4, "little")
    path.write_bytes(data)


def _garbage_header(path: Path) -> None:
    """Sound in shape, with a coding that does not exist."""
    _wav(path)
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x99\x99"
    path.write_bytes(data)


FILES = {
    # name: (reason, how to make it)
    "missing.wav": ("missing", lambda path: None),
    "folder.wav": ("missing", lambda path: path.mkdir()),
    "loop.wav": ("missing", _loop),
    "empty.wav": ("empty_file", lambda path: path.touch()),
    "text.wav": ("not_audio", lambda path: path.write_text("this is no audio, whatever its name says")),
    "zip.mp3": ("not_audio", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500))),
    "garbage.wav": ("corrupt", _garbage_header),
    "cut.wav": ("truncated", lambda path: _cut(path, "WAV")),
    "cut.flac": ("truncated", lambda path: _cut(path, "FLAC")),
    "cut.ogg": ("truncated", lambda path: _cut(path, "OGG")),
    "promises.wav": ("truncated", _huge_header),
    "no_frames.wav": ("zero_length", lambda path: _wav(path, WAVE[:0])),
    "silent.wav": ("silent", lambda path: _wav(path, 0 * WAVE)),
    "nan.wav": ("non_finite", lambda path: _wav(path, np.where(WAVE > 0.05, np.nan, WAVE), subtype="FLOAT")),
    "inf.wav": ("non_finite", lambda path: _wav(path, np.where(WAVE > 0.05, np.inf, WAVE), subtype="FLOAT")),
    "short.wav": ("too_short", lambda path: _wav(path, WAVE[:30])),
    "long.flac": ("too_long", lambda path: soundfile.write(path, np.tile(WAVE[:4000], 3602), 4000)),
    "slow.wav": ("bad_sample_rate", lambda path: _wav(path, rate=8)),
    "fast.wav": ("bad_sample_rate", lambda path: _wav(path, rate=900_000)),
}
RECORDS = {
    # id: (reason, fields beside a good recording)
    "wrong-rate": ("wrong_rate", {"sample_rate": 44_100}),
    "range-outside": ("bad_range", {"start": 5.0}),
    "empty-text": ("empty_text", {"text": " "}),
    "control": ("control_characters", {"text": "bell\a"}),
    "null-in-path": ("missing", {"audio": "a\0b.wav"}),
    "long-path": ("unreadable", {"audio": "x" * 5000}),
    "end-before-start": ("invalid_line", {"start": 0.5, "end": 0.2}),
    "negative-start": ("invalid_line", {"start": -1.0}),
    "text-is-a-number": ("invalid_line", {"text": 5}),
    "unknown-split": ("invalid_line", {"split": "dev"}),
    "question-without-text": ("invalid_line", {"qa": [{"answer": "yes"}]}),
    "words-without-times": ("invalid_line", {"words": [["one"]]}),
    "document-without-index": ("invalid_line", {"document": {"id": "d"}}),
    "no-audio": ("invalid_line", {"audio": None}),
}
LINES = {
    # what: a line as bytes
    "no JSON": b"no json\n",
    "half a line": b'{"audio": "good.wav", "te',
    "a list": b'["good.wav"]\n',
    "not UTF-8": b'{"audio": "good.wav", "text": "\xff\xfe"}\n',
    "infinity": b'{"audio": "good.wav", "start": 1e999}\n',
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(source folder, output folder, result) of a folder with all of it, and five good recordings."""
    folder = tmp_path_factory.mktemp("broken")
    lines = []
    _wav(folder / "good.wav")
    for number in range(5):
        # A text that spells a special token makes no example, but its recording is sound.
        text = "<|empty|>" if number == 4 else f"good words {number}"
        lines.append({"id": f"good{number}", "audio": "good.wav", "text": text, "split": "train"})
    for name, (_, make) in FILES.items():
        make(folder / name)
        lines.append({"id": name, "audio": name, "text": "words"})
    for name, (_, fields) in RECORDS.items():
        lines.append({"id": name, "audio": "good.wav", "text": "words", **fields})
    lines.append({"id": "good0", "audio": "good.wav", "text": "a second one of this id"})
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "manifest.jsonl").write_bytes(content + b"\n" + b"\n".join(line.rstrip() for line in LINES.values()))
    out = folder / "out"
    result = prepare(folder, out, FakeCodec(), vocab_size=300, contexts=(64,), items_per_shard=7, workers=2)
    return folder, out, result


def test_there_are_thirty_kinds():
    assert len(FILES) + len(RECORDS) + len(LINES) + len(["duplicate id", "special token"]) >= 30


def test_nothing_is_lost(prepared):
    _, _, result = prepared
    account = result["counts"]["records"]
    assert account["in"] == 5 + len(FILES) + len(RECORDS) + len(LINES) + 1
    assert account["written"] == 5 and account["filtered"] == 0
    assert account["in"] == account["written"] + account["filtered"] + account["quarantined"]
    assert result["counts"]["encoded"]["written"] == 5
    for splits in result["counts"]["examples"].values():
        for counts in splits.values():
            assert counts["in"] == counts["written"] + counts["quarantined"]


def test_every_reason_is_right(prepared):
    _, out, result = prepared
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text(errors="replace").splitlines()]
    reasons = {entry["id"]: entry["reason"] for entry in listed}
    expected = {name: reason for name, (reason, _) in FILES.items()}
    # A line that is no record has no id that could be trusted: its place is named.
    expected |= {name: reason for name, (reason, _) in RECORDS.items() if reason != "invalid_line"}
    assert {name: reasons.get(name) for name in expected} == expected
    invalid = [entry for entry in listed if entry["reason"] == "invalid_line"]
    assert len(invalid) == len(LINES) + sum(reason == "invalid_line" for reason, _ in RECORDS.values())
    assert all("manifest.jsonl:" in entry["id"] for entry in invalid)
    assert result["counts"]["records"]["reasons"]["duplicate_id"] == 1
    assert [entry["id"] for entry in listed if entry["reason"] == "bad_example"].count("good4") >= 1
    # Each says what was found.
    assert all(entry["detail"] for entry in listed)
    assert "44100" in next(entry["detail"] for entry in listed if entry["reason"] == "wrong_rate")


def test_the_good_ones_are_trained_on(prepared):
    _, out, _ = prepared
    asr = json.loads((out / "prepare.json").read_text())["examples"]["asr"]
    assert sum(asr.values()) == 4  # good4's text spells a special token


def test_unreadable_files_are_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    for name in ("open.wav", "closed.wav"):
        _wav(tmp_path / name)
    (tmp_path / "closed.wav").chmod(0)
    lines = [{"audio": name, "id": name} for name in ("open.wav", "closed.wav")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = prepare(tmp_path, tmp_path / "out", only="curate")
    assert result["curate"]["reasons"] == {"unreadable": 1}
