"""Tar shards: samples by key, recordings sample for sample, archives that are cut anywhere."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data import audio
from mimo_jax.preparation.elements import Element
from mimo_jax.preparation.sources import SourceError, open_source
from mimo_jax.preparation.sources.webdataset import WebDatasetSource
from tests.preparation.sources.helpers import collect, fingerprints, reasons, records, summary, upload, write_wave


def write_tar(path: Path, *members: tuple[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def wave_bytes(folder: Path, ending: str, seed: int = 0) -> bytes:
    return write_wave(folder / f"plain.{ending}", seed).read_bytes()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_audio_in_a_tar_is_the_plain_file(tmp_path: Path, kind: int) -> None:
    data = tmp_path / "data"
    plain = {e: wave_bytes(tmp_path, e, n) for n, e in enumerate(("wav", "flac", "ogg", "mp3"))}
    members = [(f"d/{ending}1.{ending}", content) for ending, content in plain.items()]
    write_tar(data / "train-0.tar", *members, kind=kind)
    for place in (str(data), upload(data)):
        found = records(collect(open_source(place)))
        assert [r.id for r in found] == [f"train-0/d/{ending}1" for ending in plain]
        assert {r.split for r in found} == {"train"}
        for record, ending in zip(found, plain, strict=True):
            expected = audio.load_audio(tmp_path / f"plain.{ending}")
            assert np.array_equal(audio.load_audio(record.audio), expected)


def test_fields_of_samples(tmp_path: Path) -> None:
    fields = {"text": "not this", "speaker": 7, "topic": "n", "id": "x", "audio": "y", "split": "dev", "qa": []}
    write_tar(
        tmp_path / "a.tar",
        ("1.wav", b"w"),
        ("1.txt", b"\xef\xbb\xbf hello \n"),
        ("1.json", json.dumps(fields).encode()),
        ("1.npy", b"ignored"),
        ("2.left.FLAC", b"w"),
        (".3.wav", b"hidden"),
        ("3.json", json.dumps({"text": "in json", "start": 0.5}).encode()),
        ("3.opus", b"w"),
    )
    first, second, third = records(collect(open_source(tmp_path / "a.tar")))
    assert (first.id, first.text, first.speaker, first.split) == ("a/1", "hello", "7", "validation")
    assert first.attributes == {"topic": "n"}
    assert (second.id, second.text) == ("a/2", None)
    assert (third.id, third.text, third.start) == ("a/3", "in json", 0.5)


def test_bad_samples_are_quarantined(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        *[("text.txt", b"only text"), ("two.wav", b"w"), ("two.flac", b"w")],
        *[("json.wav", b"w"), ("json.json", b"{")],
        *[("list.wav", b"w"), ("list.json", b"[]")],
        *[("type.wav", b"w"), ("type.json", b'{"caption": 3}')],
        *[("half.wav", b"w"), ("half.json", b'{"caption": "\\ud800"}')],
        *[("utf.wav", b"w"), ("utf.txt", b"caf\xe9"), ("good.wav", b"w"), ("good.txt", b"t"), ("two.wav", b"w")],
        *[("good.wav", b"w"), ("empty.wav", b"")],
    )
    found = collect(open_source(tmp_path))
    assert summary(found) == [
        ("a/text", "missing_audio"),
        ("a/two", "several_recordings"),
        *((f"a/{name}", "invalid_fields") for name in ("json", "list", "type", "half", "utf")),
        ("a/good", ""),
        ("a/two", "duplicate_id"),
        ("a/good", "duplicate_id"),
        ("a/empty", ""),
    ]
    with pytest.raises(audio.AudioError, match="empty_file"):
        audio.load_audio(records(found)[-1].audio)


MEMBERS = [(f"{i}.{e}", bytes([i]) * (100 * i + 700)) for i in range(3) for e in ("wav", "txt", "json")]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10_240), st.booleans())
def test_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, length: int, long_names: bool) -> None:
    """What is whole before the cut is used, exactly one entry tells of the rest."""
    prefix = "n" * 120 if long_names else "k"
    members = [(prefix + name, b"{}" if name.endswith("json") else b"text" if name.endswith("txt") else content)
               for name, content in MEMBERS]  # fmt: skip
    path = write_tar(tmp_path_factory.mktemp("cut") / "a.tar", *members)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = {info.name: info.offset_data + info.size for info in tar}
        headers = {info.name: info.offset_data for info in tar}
        end_mark = tar.offset
    path.write_bytes(data[:length])
    found = collect(open_source(path))
    whole = [key for key in "012" if ends[f"{prefix}{key}.wav"] <= length]
    good = [o for o in found if isinstance(o, Element)]
    if length >= end_mark + 512:
        assert [o.id[-1] for o in found] == whole == ["0", "1", "2"]
        return
    assert reasons(found) == {"a.tar": "truncated_archive"} and found[-1].id == "a.tar"
    for outcome in good:
        key = f"{prefix}{outcome.id[-1]}"
        assert outcome.id[-1] in whole
        # A sample of which a member is known to be lost would be given out wrongly.
        assert not any(headers[f"{key}.{e}"] <= length < ends[f"{key}.{e}"] for e in ("wav", "txt", "json"))
    assert len(whole) - len(good) in (0, 1)


@pytest.mark.parametrize(
    ("content", "count"), [(b"", 0), (b"no tar at all" * 100, 0), ("header", 1), ("middle of nothing", 1)]
)
def test_damaged_archives(tmp_path: Path, content: bytes | str, count: int) -> None:
    path = write_tar(tmp_path / "a.tar", ("1.wav", b"w" * 600), ("2.wav", b"w" * 600))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        data = bytearray(path.read_bytes())
        place = 512 + 1024
        data[place : place + 512] = b"x" * 512 if content == "header" else bytes(range(256)) * 2
        path.write_bytes(bytes(data))
    found = collect(open_source(path))
    assert len(records(found)) == count and reasons(found) == {"a.tar": "truncated_archive"}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_survived(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    path = write_tar(tmp_path_factory.mktemp("any") / "a.tar", *MEMBERS[:4])
    data = bytearray(path.read_bytes())
    for _ in range(draw.draw(st.integers(1, 5))):
        data[draw.draw(st.integers(0, 6000))] = draw.draw(st.integers(0, 255))
    path.write_bytes(bytes(data))
    collect(open_source(path))


def test_links_and_folders_are_no_recordings(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("1.wav", tarfile.SYMTYPE), ("2.wav", tarfile.DIRTYPE), ("3.wav", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert collect(open_source(tmp_path)) == []


def test_shards_and_their_fingerprints(tmp_path: Path) -> None:
    for name in ("train/a.tar", "dev/a.tar", "train/b c.tar"):
        write_tar(tmp_path / name, ("1.wav", b"w"))
    source = open_source(tmp_path, items_per_shard=5)
    assert {r.id: r.split for r in records(collect(source))} == {
        "dev/a/1": "validation",
        "train/a/1": "train",
        "train/b c/1": "train",
    }
    before = fingerprints(source)
    write_tar(tmp_path / "train" / "a.tar", ("1.wav", b"w"), ("2.wav", b"w" * 20_000))
    after = fingerprints(source)
    assert sum(before[name] != after[name] for name in before) == 1 and before.keys() == after.keys()
    forced = WebDatasetSource(str(tmp_path), split="test_voices")
    assert {r.split for r in records(collect(forced))} == {"test_voices"}


@pytest.mark.parametrize("name", ["a.tar.gz", "b.tgz"])
def test_compressed_tars_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(SourceError, match="unpack"):
            open_source(place)
