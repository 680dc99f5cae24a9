"""Kaldi folders: lists are joined, entries of archives are found, commands never run."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data import audio
from mimo_jax.preparation.elements import Dropped
from mimo_jax.preparation.sources import open_source
from mimo_jax.preparation.sources.base import SourceError
from tests.preparation.sources.helpers import collect, fingerprints, records, summary, upload, write_wave


def write_lists(folder: Path, **lists: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in lists.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(content, encoding="utf-8")
    return folder


def test_lists_are_joined(tmp_path: Path) -> None:
    folder = write_lists(
        tmp_path,
        wav_scp="u1 a/1.wav\nu2\t/abs/with space.wav\nu3   s3://b/3.wav\n",
        text="u1 hello  you\nu3\n",
        utt2spk="u1 s1\nu2 s2\n",
        utt2lang="u1 de\n",
        spk2gender="s1 m\ns2 F\n",
    )
    one, two, three = records(collect(open_source(folder)))
    assert (one.id, one.audio, one.text, one.speaker) == ("u1", f"{folder}/a/1.wav", "hello  you", "s1")
    assert one.attributes == {"gender": "male", "language": "de"}
    assert (two.audio, two.text, two.attributes) == ("/abs/with space.wav", None, {"gender": "female"})
    assert (three.audio, three.text, three.speaker) == ("s3://b/3.wav", "", None)
    [first, *_] = records(collect(open_source(folder, kind="kaldi", root="/corpus", split="test_voices")))
    assert (first.audio, first.split) == ("/corpus/a/1.wav", "test_voices")


def test_segments(tmp_path: Path) -> None:
    write_lists(
        tmp_path,
        wav_scp="r1 r1.wav\nr2\nr3 cat x.wav |\nr1 again.wav\n",
        segments="u1 r1 0.5 1.25\nu2 r1 2 -1\nu3 r9 0 1\nu4 r3 0 1\n"
        "u5 r1 2 1\nu6 r1 x 1\nu7 r1\nu8 r1 nan 1\nu1 r1 0 1\n",
        text="u1 one\nu2 two\n",
    )
    found = collect(open_source(tmp_path / "wav.scp"))
    assert summary(found) == [
        ("wav.scp:2", "invalid_line"),
        ("r1", "duplicate_id"),
        ("u1", ""),
        ("u2", ""),
        ("u3", "missing_recording"),
        ("u4", "pipe_refused"),
        *((f"segments:{n}", "invalid_line") for n in (5, 6, 7, 8)),
        ("u1", "duplicate_id"),
    ]
    one, two = records(found)
    assert (one.start, one.end, one.text) == (0.5, 1.25, "one")
    assert (two.start, two.end, two.text) == (2.0, None, "two")


def test_commands_are_refused_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    write_lists(tmp_path, wav_scp=f"u1 touch {witness} |\nu2 | touch {witness}\nu3 $(touch {witness})\nu4 -\n")
    found = collect(open_source(tmp_path))
    assert summary(found) == [("u1", "pipe_refused"), ("u2", "pipe_refused"), ("u3", ""), ("u4", "")]
    assert isinstance(found[0], Dropped) and "file first" in found[0].detail
    for record in records(found):
        with pytest.raises(audio.AudioError, match="missing"):
            audio.load_audio(record.audio)
    assert not witness.exists()


def write_ark(path: Path, *entries: bytes) -> list[int]:
    """Offsets of the entries, as `wav-copy` writes them: key, blank, file."""
    data, offsets = b"", []
    for number, entry in enumerate(entries):
        data += b"utt%d " % number
        offsets.append(len(data))
        data += entry
    path.write_bytes(data)
    return offsets


def test_audio_in_an_ark_is_the_plain_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    plain = [write_wave(tmp_path / f"{i}.wav", i) for i in range(3)]
    folder.mkdir()
    offsets = write_ark(folder / "w.ark", *(p.read_bytes() for p in plain))
    (folder / "odd.ark:5").write_bytes(plain[0].read_bytes())  # such a file is what it is
    write_lists(folder, wav_scp="".join(f"u{i} w.ark:{o}\n" for i, o in enumerate(offsets)) + "u3 odd.ark:5\n")
    for place in (str(folder), upload(folder)):
        found = records(collect(open_source(place)))
        for record, path in zip(found, plain, strict=False):
            assert np.array_equal(audio.load_audio(record.audio), audio.load_audio(path))
    assert records(collect(open_source(folder)))[3].audio.endswith("odd.ark:5")


def test_bad_entries_of_arks(tmp_path: Path) -> None:
    wave = write_wave(tmp_path / "a.wav").read_bytes()
    streamed = wave[:4] + struct.pack("<I", 0xFFFFFFFF) + wave[8:]
    offsets = write_ark(tmp_path / "w.ark", streamed, b"no audio", wave[: len(wave) // 2])
    lines = [f"u{i} w.ark:{o}" for i, o in enumerate(offsets)] + ["u3 w.ark:999999", "u4 none.ark:3"]
    write_lists(tmp_path, wav_scp="\n".join(lines))
    found = collect(open_source(tmp_path))
    assert summary(found)[0] == ("u0", "unknown_length")
    reasons = []
    for record in records(found):
        with pytest.raises(audio.AudioError) as caught:
            audio.load_audio(record.audio)
        reasons.append(caught.value.reason)
    assert reasons == ["not_audio", "bad_reference", "bad_reference", "missing"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdef"), max_size=20), st.integers(1, 25), st.lists(st.binary(max_size=12), max_size=4)
)
def test_each_line_once_in_order_for_any_size(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], size: int, junk: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("k")
    lines = [f"{key} {key}.wav".encode() for key in keys]
    (folder / "wav.scp").write_bytes(b"\n".join([*lines, *(j.replace(b"\n", b"") for j in junk)]))
    found = summary(collect(open_source(folder, items_per_shard=size)))
    assert found == summary(collect(open_source(folder, items_per_shard=1000)))
    expected = [(key, "duplicate_id" if key in keys[:i] else "") for i, key in enumerate(keys)]
    assert found[: len(keys)] == expected
    assert len(found) == len(keys) + sum(1 for j in junk if j.replace(b"\n", b"").strip())


def test_fingerprints(tmp_path: Path) -> None:
    for i in range(4):
        write_wave(tmp_path / f"{i}.wav", i)
    offset = write_ark(tmp_path / "w.ark", (tmp_path / "0.wav").read_bytes())[0]
    lines = [f"u{i} {i}.wav" for i in range(3)] + [f"u3 w.ark:{offset}"]
    write_lists(tmp_path, wav_scp="\n".join(lines), text="u0 a\n")

    def now() -> list[str]:
        return list(fingerprints(open_source(tmp_path, items_per_shard=1)).values())

    first = now()
    assert now() == first and len(set(first)) == 4
    write_lists(tmp_path, text="u0 b\nu9 of nobody\n")
    second = now()
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True, True]
    (tmp_path / "1.wav").write_bytes(b"new")
    write_ark(tmp_path / "w.ark", b"new")
    assert [a == b for a, b in zip(second, now(), strict=True)] == [True, False, True, False]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no wav.scp"):
        open_source(tmp_path, kind="kaldi")
