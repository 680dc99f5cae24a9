"""Conversations of the fine-tuning format: recordings get ids, turns name them, bad ones are told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.data import audio
from mimo_jax.data.conversations import conversation_segments
from mimo_jax.data.manifest import Conversation, Record
from mimo_jax.preparation.elements import Dropped, Element
from mimo_jax.preparation.sources import SourceError, open_source
from mimo_jax.preparation.sources.conversations import ConversationsSource
from tests.preparation.sources.helpers import collect, fingerprints, reasons, records, summary, upload, write_wave


def turns(*names: str, answer: str = "a") -> list[dict[str, Any]]:
    heard = [{"type": "audio", "audio": name} for name in names]
    return [
        {"role": "user", "content": [*heard, {"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "thinking": False, "content": [{"type": "text", "text": answer}]},
    ]


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def test_recordings_come_first_and_are_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "c.json", turns("x.wav", "/abs/y.wav", "x.wav", "s3://b/z.wav"))
    *heard, conversation = (o.record for o in collect(open_source(path)) if isinstance(o, Element))
    assert isinstance(conversation, Conversation) and conversation.id == "c.json:1"
    assert [(r.id, r.audio) for r in heard] == [
        ("c.json:1/0", f"{tmp_path}/x.wav"),
        ("c.json:1/1", "/abs/y.wav"),
        ("c.json:1/2", "s3://b/z.wav"),
    ]
    assert all(r.part_of == "c.json:1" and r.text is None and r.split == conversation.split for r in heard)
    named = [item["audio"] for item in conversation.turns[0]["content"] if item["type"] == "audio"]
    assert named == ["c.json:1/0", "c.json:1/1", "c.json:1/0", "c.json:1/2"]
    # The rest of the turns is as it was.
    assert conversation.turns[1] == turns()[1]
    segments = conversation_segments(conversation.turns, lambda _: np.zeros((4, 8), int))
    assert len(segments) == len(conversation_segments(turns("a", "b", "a", "c"), lambda _: np.zeros((4, 8), int)))


def test_every_form_of_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "one.json", turns("1.wav"))
    write_json(tmp_path / "a" / "object.json", {"id": "named", "turns": turns(), "split": "test", "extra": 1})
    write_json(tmp_path / "b" / "list.json", [turns("2.wav"), {"messages": turns("3.wav")}, turns()])
    write_json(tmp_path / "b" / "none.json", [])
    write_lines(tmp_path / "dev.jsonl", turns("4.wav"), b"  ", {"id": 7, "turns": turns("5.wav", "6.wav")})
    for place in (str(tmp_path), upload(tmp_path)):
        for size in (1, 2, 100):
            found = collect(open_source(place, items_per_shard=size))
            kept = [o.record for o in found if isinstance(o, Element) and isinstance(o.record, Conversation)]
            assert [c.id for c in kept] == [
                *("named", "a/one.json:1", "b/list.json:1", "b/list.json:2", "b/list.json:3", "dev.jsonl:1", "7")
            ]
            assert [c.split for c in kept if c.id in ("named", "dev.jsonl:1", "7")] == ["validation"] * 3
            assert [r.id for r in records(found)] == [
                *("a/one.json:1/0", "b/list.json:1/0", "b/list.json:2/0", "dev.jsonl:1/0", "7/0", "7/1")
            ]
    assert records(collect(open_source(tmp_path)))[0].audio == f"{tmp_path}/a/1.wav"
    elsewhere = ConversationsSource(str(tmp_path), root="/audio", split="test_voices")
    assert {r.audio for r in records(collect(elsewhere))} == {f"/audio/{i}.wav" for i in range(1, 7)}
    assert {r.split for r in records(collect(elsewhere))} == {"test_voices"}


BAD: list[Any] = [
    b"{",
    b'"caf\xe9"',
    3,
    {},
    {"turns": []},
    {"turns": [3]},
    {"turns": [{"role": "user"}]},
    {"turns": [{"role": "user", "content": []}]},
    {"turns": [{"role": "user", "content": ["hello"]}]},
    {"turns": [{"role": "user", "content": [{"type": "audio", "audio": 3}]}]},
    {"turns": [{"role": "user", "content": [{"type": "audio", "audio": ""}]}]},
    {"turns": [{"role": "bot", "content": [{"type": "text", "text": "x"}]}]},
    {"turns": [{"role": ["user"], "content": [{"type": "text", "text": "x"}]}]},
    {"turns": [{"role": "assistant", "content": [{"type": "audio", "audio": "x"}]}]},
    {"turns": [{"role": "assistant", "thinking": True, "content": [{"type": "text", "text": "x"}]}]},
    {"turns": turns(answer="\ud800")},
    {"turns": turns(), "split": "none"},
    {"turns": turns(), "id": ["x"]},
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_conversations_are_quarantined(tmp_path: Path, number: int) -> None:
    path = write_lines(tmp_path / "c.jsonl", turns(), BAD[number], turns())
    found = collect(open_source(path, "conversations"))
    assert summary(found) == [("c.jsonl:1", ""), ("c.jsonl:2", "invalid_conversation"), ("c.jsonl:3", "")]
    if isinstance(BAD[number], bytes):
        (tmp_path / "c.json").write_bytes(BAD[number])
    else:
        write_json(tmp_path / "c.json", [BAD[number]])
    assert reasons(collect(open_source(tmp_path / "c.json"))) == {"c.json:1": "invalid_conversation"}


def test_ids_that_were_there(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "c.jsonl",
        {"id": "a", "turns": turns("1.wav")},
        {"id": "a", "turns": turns("2.wav", "3.wav")},
        {"id": "a/0", "turns": turns()},
        {"id": "bad", "turns": []},
        {"id": "bad", "turns": turns()},
    )
    for size in (1, 10):
        assert summary(collect(open_source(path, items_per_shard=size))) == [
            ("a/0", ""),
            ("a", ""),
            ("a", "duplicate_id"),
            ("a/0", "duplicate_id"),
            ("bad", "invalid_conversation"),
            ("bad", ""),
        ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["user", "assistant", "audio"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "audio", "text", "turns", "id", "thinking", "split", "subset"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON, JSON, JSON)
def test_no_value_ends_the_run(tmp_path_factory: pytest.TempPathFactory, one: Any, content: Any, item: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_json(folder / "c.json", one)
    nested = [[{"role": "user", "content": content}], {"turns": [{"role": "user", "content": [item]}], "id": one}]
    write_lines(folder / "d.jsonl", one, *nested)
    found = collect(open_source(folder))
    several = isinstance(one, list) and not (one and isinstance(one[0], dict) and "role" in one[0])
    kept = [o for o in found if isinstance(o, Dropped) or isinstance(o.record, Conversation)]
    assert len(kept) == 3 + (len(one) if several else 1)


def test_audio_is_the_plain_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    plain = write_wave(folder / "sub" / "x.wav")
    write_json(folder / "sub" / "c.json", turns("x.wav"))
    for place in (str(folder), upload(folder)):
        [record] = records(collect(open_source(place)))
        assert isinstance(record, Record)
        assert np.array_equal(audio.load_audio(record.audio), audio.load_audio(plain))


def test_fingerprints(tmp_path: Path) -> None:
    write_wave(tmp_path / "x.wav")
    lines = [turns("x.wav"), turns("y.wav"), turns()]
    write_lines(tmp_path / "c.jsonl", *lines)
    write_json(tmp_path / "d.json", lines[:2])

    def now() -> list[str]:
        return list(fingerprints(open_source(tmp_path, items_per_shard=1)).values())

    first = now()
    assert now() == first and len(set(first)) == 5
    (tmp_path / "x.wav").write_bytes(b"new")
    second = now()
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True, False, True]
    write_lines(tmp_path / "c.jsonl", *lines[:2], turns(answer="other"))
    assert [a == b for a, b in zip(second, now(), strict=True)] == [True, True, False, True, True]


def test_a_file_that_grew_since_the_plan_is_refused(tmp_path: Path) -> None:
    source = open_source(write_json(tmp_path / "c.json", turns()))
    [shard] = source.shards()
    write_json(tmp_path / "c.json", [turns(), turns()])
    with pytest.raises(SourceError, match="start again"):
        list(source.read(shard))
