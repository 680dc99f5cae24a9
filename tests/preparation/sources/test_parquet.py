"""Tables: columns are found, recordings sample for sample, rows that cannot be used are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data import audio
from mimo_jax.preparation.sources import SourceError, open_source
from mimo_jax.preparation.sources.parquet import ParquetSource
from tests.preparation.sources.helpers import (
    collect,
    fingerprints,
    reasons,
    records,
    summary,
    upload,
    write_wave,
)

SOUND = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_table(path: Path, columns: dict[str, Any], group: int = 3, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group, **options)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=group)
    return path


def sounds(*cells: bytes | str | None) -> pa.Array:
    """Bytes in the cell, a path, or neither."""
    made = [{"bytes": c if isinstance(c, bytes) else None, "path": c if isinstance(c, str) else None} for c in cells]
    return pa.array(made, SOUND)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("statistics", [True, False])
def test_audio_in_a_table_is_the_plain_file(tmp_path: Path, ending: str, statistics: bool) -> None:
    folder = tmp_path / "data"
    plain = [write_wave(folder / "clips" / f"{i}.{e}", i) for i, e in enumerate(("wav", "flac", "ogg", "mp3", "wav"))]
    cells = [p.read_bytes() for p in plain[:4]] + ["clips/4.wav"]
    options = {"write_statistics": statistics} if ending == "parquet" else {}
    write_table(folder / f"t.{ending}", {"audio": sounds(*cells), "text": [str(i) for i in range(5)]}, 2, **options)
    for place in (str(folder), upload(folder)):
        found = records(collect(open_source(place, items_per_shard=1)))
        assert [(r.id, r.text) for r in found] == [(f"t.{ending}:{i}", str(i)) for i in range(5)]
        for record, path in zip(found, plain, strict=True):
            assert np.array_equal(audio.load_audio(record.audio), audio.load_audio(path))


def test_bytes_are_not_read_where_statistics_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "t.parquet", {"audio": sounds(b"a", b"b"), "text": ["x", "y"]})
    read: list[str] = []
    iterate = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.extend(kwargs["columns"])
        return iterate(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert len(records(collect(open_source(path)))) == 2 and set(read) == {"text"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["bytes", "path", "none"]), st.sampled_from("abcdef") | st.none()), max_size=20),
    st.integers(1, 7),
    st.integers(1, 30),
    st.sampled_from(["parquet", "arrow"]),
)
def test_each_row_once_in_order_for_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], group: int, size: int, ending: str
) -> None:
    folder = tmp_path_factory.mktemp("t")
    cells = [{"bytes": b"x", "path": "p", "none": None}[kind] for kind, _ in rows]
    columns = {"audio": sounds(*cells), "id": pa.array([i for _, i in rows], pa.string())}
    write_table(folder / f"0.{ending}", {k: v[: len(rows) // 2] for k, v in columns.items()}, group)
    write_table(folder / f"1.{ending}", {k: v[len(rows) // 2 :] for k, v in columns.items()}, group)
    found = summary(collect(ParquetSource(str(folder), items_per_shard=size)))
    assert found == summary(collect(ParquetSource(str(folder), items_per_shard=100)))
    expected, seen = [], set()
    for number, (kind, given_id) in enumerate(rows):
        file, row = (0, number) if number < len(rows) // 2 else (1, number - len(rows) // 2)
        place = f"{file}.{ending}:{row}"
        if kind == "none":
            expected.append((place, "missing_audio"))
        else:
            expected.append((given_id or place, "duplicate_id" if given_id in seen else ""))
        seen.add(given_id or place)
    assert found == expected


def test_columns_are_guessed_or_named(tmp_path: Path) -> None:
    columns = {
        "image": pa.array([b"png"]),
        "speech": sounds(b"x"),
        "sentence": ["hello"],
        "client_id": [12],
        "start": [3.5],
        "gender": pa.array(["f"]).dictionary_encode(),
        "when": pa.array([0], pa.timestamp("s")),
        "nan": [float("nan")],
        "nothing": pa.nulls(1, pa.string()),
        "begin": [0.25],
        "stop": [0.5],
        "split": ["test"],
        "quote": ["other text"],
    }
    path = write_table(tmp_path / "t.parquet", columns)
    [guessed] = records(collect(open_source(path)))
    assert guessed.audio == f"{path}#row=0&column=image"
    assert (guessed.text, guessed.speaker, guessed.start, guessed.split) == ("hello", "12", None, "validation")
    assert guessed.attributes == {"start": 3.5, "gender": "f", "begin": 0.25, "stop": 0.5, "quote": "other text"}
    named = {"audio": "speech", "start": "begin", "end": "stop", "text": "quote"}
    [record] = records(collect(open_source(path, columns=named)))
    assert record.audio == f"{path}#row=0&column=speech"
    assert (record.start, record.end, record.text) == (0.25, 0.5, "other text")
    assert "begin" not in record.attributes and record.attributes["sentence"] == "hello"


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", {"n": [1], "text": ["a"]})
    with pytest.raises(SourceError, match="no column of recordings among n, text"):
        open_source(path).shards()
    with pytest.raises(SourceError, match="no column 'sound'; there are n, text"):
        open_source(path, columns={"audio": "sound"}).shards()
    write_table(tmp_path / "u.parquet", {"audio": sounds(b"x")})
    assert summary(collect(open_source(tmp_path))) == [("t.parquet", "missing_column"), ("u.parquet:0", "")]


def test_folders_of_datasets(tmp_path: Path) -> None:
    """The layout of `save_to_disk`: Arrow files by split, with JSON and caches beside them."""
    for split in ("train", "test"):
        write_table(tmp_path / split / "data-00000-of-00001.arrow", {"audio": sounds(b"x"), "text": [split]})
        write_table(tmp_path / split / "cache-0123.arrow", {"indices": [0]})
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    found = records(collect(open_source(tmp_path)))
    assert [(r.text, r.split) for r in found] == [("test", "validation"), ("train", "train")]


def test_bad_rows_are_quarantined(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"caf\xe9", b"ok", b"ok"]).view(pa.string())
    columns = {"audio": sounds(b"x", b"x", b"x", "p"), "text": broken, "w": pa.array([[], [], [["a", "b"]], []])}
    path = write_table(tmp_path / "t.parquet", columns)
    found = collect(open_source(path, columns={"words": "w"}))
    assert summary(found) == [
        ("t.parquet:0", ""),
        ("t.parquet:1", "invalid_fields"),
        ("t.parquet:2", "invalid_fields"),
        ("t.parquet:3", ""),
    ]


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.sampled_from(["parquet", "arrow"]), st.booleans())
def test_damaged_files_are_quarantined(
    tmp_path_factory: pytest.TempPathFactory, share: float, ending: str, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("d")
    write_table(folder / f"a.{ending}", {"audio": sounds(b"x" * 50, b"y" * 50), "text": ["a" * 50, "b" * 50]}, 1)
    write_table(folder / f"b.{ending}", {"audio": sounds(b"x"), "text": ["whole"]})
    data = bytearray((folder / f"a.{ending}").read_bytes())
    place = int(share * (len(data) - 1))
    if cut:
        data = data[:place]
    else:
        data[place : place + 20] = bytes(len(data[place : place + 20]))
    (folder / f"a.{ending}").write_bytes(bytes(data))
    found = collect(open_source(folder))
    assert [r.text for r in records(found)][-1] == "whole"
    if cut and ending == "parquet":
        assert reasons(found) == {"a.parquet": "damaged_file"}


def test_a_damaged_page_costs_its_row_group_only(tmp_path: Path) -> None:
    texts = [f"text number {i}" for i in range(6)]
    columns = {"audio": sounds(*[b"x"] * 6), "text": texts}
    path = write_table(tmp_path / "t.parquet", columns, 2, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(2)
    assert column.path_in_schema == "text"
    data[column.data_page_offset : column.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))
    found = collect(open_source(path))
    assert summary(found) == [
        *((f"t.parquet:{i}", "") for i in (0, 1)),
        ("t.parquet:2", "damaged_file"),
        *((f"t.parquet:{i}", "") for i in (4, 5)),
    ]


def test_fingerprints(tmp_path: Path) -> None:
    for name in "ab":
        write_table(tmp_path / f"{name}.parquet", {"audio": sounds(b"x", b"y"), "text": ["a", "b"]}, 1)
    before = fingerprints(open_source(tmp_path, items_per_shard=1))
    assert len(before) == len(set(before.values())) == 4
    assert fingerprints(open_source(tmp_path, items_per_shard=1)) == before
    write_table(tmp_path / "a.parquet", {"audio": sounds(b"x", b"z"), "text": ["a", "longer"]}, 1)
    after = fingerprints(open_source(tmp_path, items_per_shard=1))
    assert [before[n] == after[n] for n in before] == [False, False, True, True]
    named = fingerprints(open_source(tmp_path, items_per_shard=1, columns={"caption": "text"}))
    assert not set(named.values()) & set(after.values())
