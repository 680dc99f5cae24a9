"""Recordings behind references give what the plain file gives; what cannot be reached gets its reason."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data import audio, references
from mimo_jax.data.audio import AudioError
from mimo_jax.data.references import byte_range, open_reference, resolve, table_cell

KINDS = ("wav", "flac", "ogg", "mp3", "aiff", "au")


def write(folder: Path, kind: str) -> Path:
    path = folder / f"a.{kind}"
    wave = 0.3 * np.sin(np.arange(16_000) * 0.1) + 0.05 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(path, np.stack([wave, 0.5 * wave], 1), 16_000)
    return path


def put(folder: Path, name: str, data: bytes) -> str:
    """An object that no other test has."""
    name = f"{folder.name}/{name}"
    with fsspec.open(f"memory://{name}", "wb") as file:
        file.write(data)
    return f"memory://{name}"


def audio_struct(cells: list[dict[str, object]]) -> pa.Array:
    return pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def write_parquet(path: Path, cells: list[dict[str, object]], rows_per_group: int = 2) -> Path:
    pq.write_table(pa.table({"audio": audio_struct(cells)}), path, row_group_size=rows_per_group)
    return path


def references_of(folder: Path, plain: Path) -> dict[str, str]:
    """Every way to name the bytes of ``plain``."""
    data = plain.read_bytes()
    (folder / "pack.bin").write_bytes(b"x" * 777 + data + b"RIFF" * 99)
    (folder / "last.bin").write_bytes(b"y" * 33 + data)
    # The row that is asked for is in the second group and has neighbours.
    cells = [{"bytes": b"other", "path": None}] * 3 + [
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(plain)},
    ]
    parquet = write_parquet(folder / "t.parquet", cells)
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink:
        table = pa.table({"audio": audio_struct(cells)})
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    odd = folder / "b#bytes=0-1"
    odd.write_bytes(data)
    return {
        "file url": plain.as_uri(),
        "url": put(folder, "a", data),
        "range": byte_range(str(folder / "pack.bin"), 777, 777 + len(data)),
        "open range": byte_range(str(folder / "last.bin"), 33),
        "range of url": byte_range(put(folder, "pack", b"zz" + data + b"zz"), 2, 2 + len(data)),
        "row": table_cell(str(parquet), 3),
        "row with a path": table_cell(str(parquet), 4),
        "row of url": table_cell(put(folder, "t.parquet", parquet.read_bytes()), 3),
        "row of arrow": table_cell(str(folder / "t.arrow"), 3),
        "row of arrow url": table_cell(put(folder, "t.arrow", (folder / "t.arrow").read_bytes()), 3),
        "name like a reference": str(odd),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_sample_for_sample_what_the_file_gives(tmp_path: Path, kind: str) -> None:
    plain = write(tmp_path, kind)
    whole, rate = audio.read_native(plain)
    part = audio.load_audio(plain, start=0.2, end=0.7)
    for way, reference in references_of(tmp_path, plain).items():
        wave, found_rate = audio.read_native(reference)
        assert found_rate == rate and np.array_equal(wave, whole), way
        assert np.array_equal(audio.load_audio(reference, start=0.2, end=0.7), part), way
        with open_reference(reference) as file:
            assert file.read() == plain.read_bytes(), way


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_seen_through_references(tmp_path: Path, kind: str) -> None:
    plain = write(tmp_path, kind)
    plain.write_bytes(plain.read_bytes()[: plain.stat().st_size * 6 // 10])
    for way, reference in references_of(tmp_path, plain).items():
        with pytest.raises(AudioError) as caught:
            audio.load_audio(reference)
        assert caught.value.reason == "truncated" and caught.value.path == reference, way


def test_bytes_after_the_range_are_not_read(tmp_path: Path) -> None:
    """A WAV of unknown length goes to the end of what it is in: its neighbour must not be heard."""
    data = bytearray(write(tmp_path, "wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = data[4:8] = b"\xff\xff\xff\xff"
    (tmp_path / "two.bin").write_bytes(bytes(data) * 2)
    assert len(audio.read_native(byte_range(str(tmp_path / "two.bin"), 0, len(data)))[0]) == 16_000


@given(st.binary(max_size=60), st.data())
def test_a_range_is_a_file_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, draw: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges"
    path.write_bytes(data)
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, len(data)))
    with open_reference(byte_range(str(path), start, end)) as file:
        for _ in range(draw.draw(st.integers(1, 6))):
            at, count = draw.draw(st.integers(0, 70)), draw.draw(st.integers(-1, 70))
            assert file.seek(at) == at
            assert file.read(count) == data[start:end][at:][: None if count < 0 else count]
        assert file.seek(0, os.SEEK_END) == end - start


def broken(folder: Path, kind: str) -> str:
    (folder / "f").write_bytes(b"0123456789")
    if kind == "fifo":
        os.mkfifo(folder / "fifo")
    if kind == "denied":
        (folder / "f").chmod(0)
    table = write_parquet(
        folder / "t.parquet", [{"bytes": None, "path": None}, {"bytes": None, "path": "t.parquet#row=1"}]
    )
    pq.write_table(pa.table({"n": [1]}), folder / "n.parquet")
    memory = put(folder, "f", b"0123456789")
    return {
        "missing": str(folder / "nothing"),
        "nul": "a\0b#bytes=0-1",
        "folder": f"{folder}#bytes=0-0",
        "fifo": f"{folder}/fifo#bytes=0-5",
        "missing in range": f"{folder}/nothing#bytes=0-5",
        "missing in row": f"{folder}/nothing.parquet#row=0",
        "missing url": "memory://broken/nothing",
        "missing in url range": "memory://broken/nothing#bytes=0-5",
        "missing file url": f"file://{folder}/nothing",
        "past the end": f"{folder}/f#bytes=5-11",
        "starts past the end": f"{folder}/f#bytes=11-",
        "backwards": f"{folder}/f#bytes=5-2",
        "past the end of url": f"{memory}#bytes=5-11",
        "row": f"{table}#row=2",
        "column": f"{table}#row=0&column=sound",
        "no sound": f"{folder}/n.parquet#row=0&column=n",
        "loop": f"{table}#row=1",
        "empty cell": f"{table}#row=0",
        "no table": f"{folder}/f#row=0",
        "scheme": "nosuchscheme://a/b",
        "denied": str(folder / "f") + "#bytes=0-5",
        "empty range": f"{folder}/f#bytes=3-3",
        "no audio": f"{folder}/f#bytes=0-10",
        "odd fragment": f"{folder}/f#seconds=3",
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *((k, "missing") for k in ("missing", "nul", "folder", "fifo", "missing in range", "missing in row")),
        *((k, "missing") for k in ("missing url", "missing in url range", "missing file url", "odd fragment")),
        *((k, "bad_reference") for k in ("past the end", "starts past the end", "backwards", "past the end of url")),
        *((k, "bad_reference") for k in ("row", "column", "no sound", "loop")),
        ("empty cell", "missing"),
        ("no table", "unreadable"),
        ("scheme", "unreadable"),
        ("denied", "unreadable"),
        ("empty range", "empty_file"),
        ("no audio", "not_audio"),
    ],
)
def test_each_broken_kind_gets_its_reason(tmp_path: Path, kind: str, reason: str) -> None:
    if kind == "denied" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    reference = broken(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        audio.load_audio(reference)
    assert caught.value.reason == reason and reason in audio.REASONS
    assert caught.value.path == reference


@given(
    st.text(max_size=40)
    | st.from_regex(r"[a-z./]{0,9}(://)?[a-z.]{0,9}#(bytes|row)=[0-9]{1,25}-?[0-9]{0,25}(&column=.)?")
)
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        open_reference(text).close()
    except AudioError as error:
        assert error.reason in audio.REASONS


@pytest.mark.parametrize(("package", "reference"), [("fsspec", "s3://b/k"), ("pyarrow", "{}/t.parquet#row=0")])
def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, reference: str
) -> None:
    write_parquet(tmp_path / "t.parquet", [{"bytes": b"x", "path": None}])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AudioError, match=r"mimo_jax\[prepare\]") as caught:
        open_reference(reference.format(tmp_path))
    assert caught.value.reason == "unreadable" and package in caught.value.detail


def test_resolve() -> None:
    assert resolve("a/b.wav", "/data") == "/data/a/b.wav"
    assert resolve("../b.wav#bytes=0-1", "/data") == "/data/../b.wav#bytes=0-1"
    assert resolve("/x.wav", "/data") == "/x.wav" and resolve("/x.wav", "gs://b") == "/x.wav"
    assert resolve("s3://b/x.wav", "/data") == "s3://b/x.wav"
    assert resolve("../y/x.wav", "gs://b/a/") == "gs://b/y/x.wav"
    assert resolve("../../../x", "memory://a").startswith("memory://")
    assert resolve("x.wav", "data") == os.path.abspath("data/x.wav")


def test_a_mended_table_is_read_again(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"bytes": b"old", "path": None}])
    assert open_reference(table_cell(str(path), 0)).read() == b"old"
    write_parquet(path, [{"bytes": b"newer", "path": None}])
    assert open_reference(table_cell(str(path), 0)).read() == b"newer"


def test_threads_share_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "t.parquet", [{"bytes": b"%d" % i, "path": None} for i in range(40)], 10)
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, *a, **k: (reads.append(a), read(self, *a, **k))[1]
    )
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: open_reference(table_cell(str(path), i)).read(), range(20)))
    assert found == [b"%d" % i for i in range(20)]
    assert len(reads) <= 4  # two groups; a straggler may ask for the first once more


def test_columns_of_any_name(tmp_path: Path) -> None:
    name = "a&b=c#d é"
    pq.write_table(pa.table({name: [b"sound"]}), tmp_path / "t.parquet")
    assert open_reference(table_cell(str(tmp_path / "t.parquet"), 0, name)).read() == b"sound"


def test_signature_and_container(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    before = references.signature(f"{path}#bytes=0-2")
    assert before == references.signature(str(path)) == references.signature(path.as_uri()) and before[0] == 5
    path.write_bytes(b"123456")
    assert references.signature(f"{path}#bytes=0-2") != before
    assert references.signature("memory://a") is None and references.signature(str(tmp_path / "no")) is None
    assert references.container("s3://b/k.parquet#row=3&column=x") == "s3://b/k.parquet"
