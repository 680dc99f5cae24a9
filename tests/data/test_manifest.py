import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data import manifest, manifest_files
from mimo_jax.data.manifest import ManifestError, Record, TextRecord, text_record_of
from mimo_jax.data.manifest_files import read_manifest, write_manifest


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_only_audio_is_needed(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "manifest.jsonl", {"audio": "a.wav", "text": "hello", "topic": "greeting"}, "", {"audio": "b.wav"}
    )
    first, second = read_manifest(tmp_path)
    assert (first.id, first.text, first.subset) == ("a.wav", "hello", "user")
    assert first.attributes == {"topic": "greeting"}  # kept, not dropped
    assert second.text is None
    assert read_manifest(tmp_path / "manifest.jsonl") == [first, second]


def test_parts_of_one_file_are_different_records(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", {"audio": "a.wav", "end": 1.5}, {"audio": "a.wav", "start": 1.5})
    assert len({record.id for record in read_manifest(path)}) == 2


def test_default_split_is_stable_and_small() -> None:
    splits = [manifest.default_split(f"clip-{i}") for i in range(5000)]
    assert set(splits) == {"train", "validation"}
    assert 0.01 < splits.count("validation") / len(splits) < 0.03
    assert splits[:5] == [manifest.default_split(f"clip-{i}") for i in range(5)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "JSON object"),
        ({"text": "a"}, "`audio`"),
        ({"audio": 3}, "`audio` must be str"),
        ({"audio": "a.wav", "start": 2.0, "end": 1.0}, "must be after"),
        ({"audio": "a.wav", "start": -1}, ">= 0"),
        ('{"audio": "a.wav", "end": NaN}', ">= 0"),
        ({"audio": "a.wav", "split": "test"}, "`split` is 'test'"),
        ({"audio": "a.wav", "subset": "x"}, "`subset`"),
        ({"audio": "a.wav", "sample_rate": True}, "`sample_rate`"),
        ({"audio": "a.wav", "qa": [{"question": "q"}]}, "`answer`"),
        ({"audio": "a.wav", "qa": [{"question": "q", "answer": "a", "choices": ["b"]}]}, "`choices`"),
        ({"audio": "a.wav", "qa": [{"question": "q", "answer": "a", "thought": ["t"]}]}, "`thought`"),
        ({"audio": "a.wav", "qa": [{"question": "q", "answer": "a", "thought": "so </think> a"}]}, "`thought`"),
        ({"audio": "a.wav", "qa": [{"question": "q", "answer": "a", "kind": 1}]}, "`kind`"),
        ({"audio": "a.wav", "document": {"id": "x"}}, "`document`"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    path = write_lines(tmp_path / "m.jsonl", {"audio": "a.wav"}, line)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert f"{path}:2:" in str(caught.value) and message in str(caught.value)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"audio": "a.wav", "text": "caf\xe9"}\n')
    with pytest.raises(ManifestError, match="m.jsonl:1: not UTF-8"):
        read_manifest(path)


def test_single_lines_are_read_where_they_are(tmp_path: Path) -> None:
    first = json.dumps({"audio": "ä.wav", "text": "größe"}, ensure_ascii=False)
    (tmp_path / "manifest.jsonl").write_text("\ufeff" + first + "\r\n\n" + '{"audio": "b.wav"}', encoding="utf-8")
    write_lines(tmp_path / "manifest-000001.jsonl", {"audio": "c.wav"}, {"audio": "d.wav", "text": "d"})
    found = list(manifest_files.iterate_manifest(tmp_path))
    lines = manifest_files.ManifestLines(tmp_path)
    assert [record.audio for _, record in found] == ["ä.wav", "b.wav", "c.wav", "d.wav"]
    assert [lines.record(*place) for place, _ in reversed(found)] == [record for _, record in reversed(found)]


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="one line per recording"):
        read_manifest(tmp_path)
    assert manifest_files.read_texts(tmp_path) == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RECORDS = st.builds(
    Record,
    id=TEXT.filter(bool),
    audio=TEXT.filter(bool),
    text=st.none() | TEXT,
    split=st.sampled_from(manifest.SPLITS),
    subset=st.sampled_from(manifest.SUBSETS),
    attributes=st.dictionaries(st.sampled_from(["gender", "rate"]), TEXT),
    qa=st.lists(st.fixed_dictionaries({"question": TEXT, "answer": TEXT}, optional={"kind": TEXT}), max_size=2),
    document=st.none() | st.fixed_dictionaries({"id": TEXT, "index": st.integers(0, 9)}),
    start=st.none() | st.floats(0, 10),
    duration=st.none() | st.floats(0, 10),
)


@given(RECORDS)
def test_json_round_trip(record: Record) -> None:
    line = manifest.to_json(record)
    assert "\n" not in line and manifest.from_json(line) == record


def test_files_round_trip(tmp_path: Path) -> None:
    records = [Record(id=f"r{i}", audio=f"{i}.wav", text="ä b", split="train") for i in range(3)]
    write_manifest(tmp_path / "manifest.jsonl", records)
    assert read_manifest(tmp_path) == records
    written = [TextRecord("t0", "one"), TextRecord("t1", "two", "validation", "wide", "three")]
    manifest_files.write_texts(tmp_path / "texts.jsonl", written)
    assert manifest_files.read_texts(tmp_path) == written
    with pytest.raises(ValueError, match="more than once"):
        write_manifest(tmp_path / "manifest.jsonl", [records[0], records[0]])
    assert read_manifest(tmp_path) == records  # the old file is untouched


def test_texts_need_no_id():
    """Named after what they say: the same in every run, another for another reply."""
    first, again = (text_record_of({"text": "a bridge"}) for _ in range(2))
    assert first == again and first.id.startswith("text-") and first.split in ("train", "validation")
    assert text_record_of({"text": "a bridge", "reply": "of stone"}).id != first.id
    assert text_record_of({"text": "a bridge", "id": "b"}).id == "b"
    for wrong in ({"text": ""}, {"id": "b"}, {"text": "a", "id": ""}):
        with pytest.raises(ManifestError, match="`text` is missing, or the `id` is empty"):
            text_record_of(wrong)
