"""Folders with manifests: every line once, what belongs together in one shard, whatever is in the lines."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data import audio
from mimo_jax.data.manifest import Conversation, TextRecord, from_json
from mimo_jax.preparation.elements import Element
from mimo_jax.preparation.sources import SourceError, open_source
from mimo_jax.preparation.sources.grouping import Groups
from mimo_jax.preparation.sources.manifest import ManifestSource
from tests.preparation.sources.helpers import collect, fingerprints, reasons, records, summary, upload, write_wave


def write_lines(path: Path, *lines: Any) -> None:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))


TURNS = [
    {"role": "user", "content": [{"type": "audio", "audio": "q"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
]

# Few names, so that ids repeat and links meet.
NAME = st.sampled_from("abcdefgh")
LINE = st.fixed_dictionaries(
    {"audio": NAME.map("{}.wav".format)},
    optional={
        "id": NAME | st.integers(0, 30).map(str),
        "reply": NAME,
        "clean": NAME,
        "parallel": NAME,
        "part_of": NAME,
        "document": st.fixed_dictionaries({"id": NAME, "index": st.integers(0, 3)}),
    },
)
JUNK = st.sampled_from([b"{", b"[1]", b"\xff\xfe", b'{"text": "x"}', b"", b"  \t", b'{"audio": 3}', b'"\\ud800"'])


@settings(max_examples=60, deadline=None)
@given(st.lists(LINE | JUNK, max_size=30), st.integers(1, 40), st.booleans(), st.booleans())
def test_each_item_once_in_one_order_for_any_size(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any], size: int, two_files: bool, remote: bool
) -> None:
    folder = tmp_path_factory.mktemp("m")
    cut = len(lines) // 2 if two_files else len(lines)
    write_lines(folder / "manifest.jsonl", *lines[:cut])
    write_lines(folder / "manifest-2.jsonl", *lines[cut:])
    root = upload(folder) if remote else str(folder)
    source = ManifestSource(root, items_per_shard=size)
    found = summary(collect(source))
    assert found == summary(collect(ManifestSource(root, items_per_shard=1024)))

    expected: dict[str, str] = {}
    seen: set[str] = set()
    count = 0
    for number, line in enumerate(lines):
        raw = line if isinstance(line, bytes) else json.dumps(line).encode()
        if not raw.strip():
            continue
        count += 1
        try:
            record_id = from_json(raw.decode("utf-8", "surrogateescape")).id
        except ValueError:
            name, at = ("manifest.jsonl", number) if number < cut else ("manifest-2.jsonl", number - cut)
            expected[f"{name}:{at + 1}"] = "invalid_line"
            continue
        if record_id not in seen:
            expected[record_id] = ""
        seen.add(record_id)
    assert len(found) == count
    assert {i: r for i, r in found if r != "duplicate_id"} == expected
    # The part of each item that is good, in the order of its first appearance if nothing is linked.
    _check_partners(source)


def _check_partners(source: ManifestSource) -> None:
    shard_of = {
        outcome.id: (shard.name, outcome.record)
        for shard in source.shards()
        for outcome in source.read(shard)
        if isinstance(outcome, Element)
    }
    together: dict[str, set[str]] = {}
    for name, record in shard_of.values():
        for link in (record.reply, record.clean):
            assert link not in shard_of or shard_of[link][0] == name
        if record.document:
            together.setdefault("document " + record.document["id"], set()).add(name)
        if record.parallel:
            together.setdefault("parallel " + record.parallel, set()).add(name)
        if record.part_of:
            together.setdefault("part_of " + record.part_of, set()).add(name)
    assert all(len(names) == 1 for names in together.values())


def test_unlinked_lines_keep_their_order_and_shards_their_size(tmp_path: Path) -> None:
    write_lines(tmp_path / "manifest.jsonl", *({"audio": f"{i}.wav"} for i in range(25)))
    source = ManifestSource(str(tmp_path), items_per_shard=10)
    assert [len(list(source.read(shard))) for shard in source.shards()] == [10, 10, 5]
    assert [r.id for r in records(collect(source))] == [f"{i}.wav" for i in range(25)]


@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=3), max_size=40), st.integers(1, 50), st.integers(1, 9)
)
def test_groups_are_whole_below_the_limit(keys: list[list[str]], items: int, limit: int) -> None:
    groups = Groups()
    for one in keys:
        groups.add(one)
    parts = list(groups.parts(items, limit))
    flat = [item for part in parts for item in part]
    assert sorted(flat) == list(range(len(keys)))
    assert flat == [item for part in groups.parts(10**6, limit) for item in part]
    assert all(len(part) <= max(items, limit) for part in parts)
    # The groups, found in another way: join whatever shares a key until nothing changes.
    joined: list[tuple[set[int], set[str]]] = []
    for item, one in enumerate(keys):
        members, names = {item}, set(one)
        for other in [j for j in joined if j[1] & names]:
            joined.remove(other)
            members, names = members | other[0], names | other[1]
        joined.append((members, names))
    for members, _ in joined:
        if len(members) <= limit:
            assert any(members <= set(part) for part in parts)


def test_all_three_kinds_of_files(tmp_path: Path) -> None:
    write_lines(tmp_path / "manifest.jsonl", {"id": "q", "audio": "../x/q.wav", "text": "is it?", "part_of": "c"})
    write_lines(tmp_path / "manifest-b.jsonl", {"id": "r", "audio": "s3://b/r.wav", "topic": "n"})
    write_lines(
        tmp_path / "texts.jsonl",
        {"id": "t", "text": "one"},
        {"id": "u"},
        {"id": "v", "text": ""},
        {"text": "x", "topic": "n"},
    )
    write_lines(
        tmp_path / "conversations.jsonl",
        {"id": "c", "turns": TURNS},
        {"id": "d", "turns": [{"role": "bot", "content": [{"type": "text", "text": "x"}]}]},
        {"id": "e", "turns": [{"role": "user", "content": [{"type": "audio", "audio": "nobody"}]}]},
        {"id": "f", "turns": "hello"},
        {"id": "r", "turns": TURNS},
    )
    found = collect(open_source(tmp_path))
    assert summary(found) == [
        ("q", ""),
        ("c", ""),  # stands with its recording
        ("r", ""),
        ("t", ""),
        ("texts.jsonl:2", "missing_text"),
        ("texts.jsonl:3", "missing_text"),
        ("texts.jsonl:4", "invalid_line"),
        ("conversations.jsonl:2", "invalid_conversation"),
        ("e", "missing_recording"),
        ("conversations.jsonl:4", "invalid_line"),
        ("r", "duplicate_id"),
    ]
    first, conversation, other, text = (o.record for o in found if isinstance(o, Element))
    assert first.audio == f"{tmp_path}/../x/q.wav" and first.text == "is it?"
    assert other.audio == "s3://b/r.wav" and other.attributes == {"topic": "n"}
    assert isinstance(conversation, Conversation) and conversation.turns == TURNS
    assert isinstance(text, TextRecord)
    assert "nobody" in next(o.detail for o in found if o.id == "e" and not isinstance(o, Element))
    assert summary(collect(open_source(tmp_path / "texts.jsonl"))) == summary(found)[3:7]
    assert summary(collect(open_source(tmp_path / "manifest-b.jsonl")))[0] == ("r", "")


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["id", "audio", "text", "turns", "role", "content", "qa", "split", "start", "end", "type"]
                )
                | st.sampled_from(
                    ["document", "index", "question", "answer", "choices", "words", "part_of", "attributes"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["manifest", "texts", "conversations"]),
)
def test_no_value_ends_the_run(tmp_path_factory: pytest.TempPathFactory, value: Any, kind: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    filled = {"id": "x", "audio": "a", "text": "t", "turns": [], **value} if isinstance(value, dict) else value
    write_lines(folder / f"{kind}.jsonl", value, filled)
    assert len(collect(ManifestSource(str(folder)))) == 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "x", "audio": "a.wav", "text": "\\ud800"}',
        b'{"id": "x", "audio": "a.wav", "text": "caf\xe9"}',
        b'{"id": "x", "audio": "a.wav", "start": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
        b'{"id": "x", "audio": "a.wav", "qa": [{"question": "q", "answer": "a", "choices": 3}]}',
        b'{"id": "x", "audio": "a.wav", "split": "dev"}',
    ],
)
def test_hostile_lines_are_quarantined(tmp_path: Path, line: bytes) -> None:
    write_lines(tmp_path / "manifest.jsonl", {"audio": "a.wav"}, line)
    assert summary(collect(open_source(tmp_path))) == [("a.wav", ""), ("manifest.jsonl:2", "invalid_line")]


def test_odd_bytes_between_lines(tmp_path: Path) -> None:
    first, second = b'{"audio": "a.wav"}', b'{"audio": "b\xc2\x85.wav"}'
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\r\n  \n" + second)
    assert summary(collect(ManifestSource(str(tmp_path), items_per_shard=1))) == [("a.wav", ""), ("b\x85.wav", "")]


def test_a_fingerprint_changes_with_what_its_shard_reads(tmp_path: Path) -> None:
    lines = [{"audio": f"{i}.wav", "text": "one"} for i in range(6)]
    for i in range(6):
        write_wave(tmp_path / f"{i}.wav", i)
    write_lines(tmp_path / "manifest.jsonl", *lines)

    def now() -> list[str]:
        return list(fingerprints(ManifestSource(str(tmp_path), items_per_shard=2)).values())

    first = now()
    assert len(set(first)) == 3 and now() == first
    os.utime(tmp_path / "3.wav", ns=(1, 1))
    touched = now()
    assert [a == b for a, b in zip(first, touched, strict=True)] == [True, False, True]
    lines[4]["text"] = "two"
    write_lines(tmp_path / "manifest.jsonl", *lines)
    edited = now()
    assert [a == b for a, b in zip(touched, edited, strict=True)] == [True, True, False]
    (tmp_path / "0.wav").unlink()
    assert [a == b for a, b in zip(edited, now(), strict=True)] == [False, True, True]
    # A later line becomes a duplicate when an earlier one takes its id.
    lines[0]["id"] = "5.wav"
    write_lines(tmp_path / "manifest.jsonl", *lines)
    assert now()[2] != edited[2]


def test_a_reference_changes_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "pack.bin").write_bytes(b"0123456789")
    write_lines(tmp_path / "manifest.jsonl", {"audio": "pack.bin#bytes=0-4"})
    before = fingerprints(open_source(tmp_path))
    (tmp_path / "pack.bin").write_bytes(b"0123456789+")
    assert fingerprints(open_source(tmp_path)) != before


def test_a_manifest_that_grew_since_the_plan_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "manifest.jsonl", {"audio": "a.wav"})
    source = open_source(tmp_path)
    [shard] = source.shards()
    write_lines(tmp_path / "manifest.jsonl", {"audio": "a.wav"}, {"audio": "b.wav"})
    with pytest.raises(SourceError, match="start again"):
        list(source.read(shard))


def test_recordings_are_found_from_urls_too(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    plain = write_wave(folder / "clips" / "a.wav")
    write_lines(
        folder / "manifest.jsonl", {"audio": "clips/a.wav"}, {"audio": "none/../clips/a.wav"}, {"audio": "no.wav"}
    )
    expected = audio.load_audio(plain)
    for place in (str(folder), upload(folder)):
        first, second, missing = records(collect(open_source(place)))
        assert np.array_equal(audio.load_audio(first.audio), expected)
        if place.startswith("memory"):  # local folders have real "none" folders to go through
            assert np.array_equal(audio.load_audio(second.audio), expected)
        with pytest.raises(audio.AudioError, match="missing"):
            audio.load_audio(missing.audio)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="manifest.jsonl"):
        ManifestSource(str(tmp_path))
    with pytest.raises(SourceError, match="one line per recording"):
        ManifestSource(str(tmp_path / "m.jsonl"))
    write_lines(tmp_path / "manifest.jsonl")
    assert collect(ManifestSource(str(tmp_path))) == [] and reasons([]) == {}
