"""Which source a place is taken for."""

import json
from pathlib import Path

import pytest

from mimo_jax.preparation.sources import KINDS, SourceError, open_source
from mimo_jax.preparation.sources.base import REASONS, shard_name, split_of_path
from tests.preparation.sources.helpers import upload

TURNS = json.dumps([{"role": "user", "content": [{"type": "text", "text": "x"}]}])


def lay(folder: Path, *names: str, content: str = "") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["manifest.jsonl", "stats.json", "clips/a.tar"], "manifest"),
        (["manifest-0.jsonl", "texts.jsonl", "conversations.jsonl"], "manifest"),
        (["texts.jsonl"], "manifest"),
        (["conversations.jsonl", "a.wav"], "conversations"),
        (["a.tar", "sizes.json"], "webdataset"),
        (["data/train/a.tar"], "webdataset"),
        (["wav.scp", "download.tar.gz"], "kaldi"),
        (["data/train-0.parquet", "README.md", "info.json"], "parquet"),
        (["train/data-0.arrow", "train/state.json", "dataset_dict.json"], "parquet"),
        (["wav.scp", "text"], "kaldi"),
        (["a.json"], "conversations"),
        (["x/y/a.jsonl"], "conversations"),
    ],
)
def test_folders(tmp_path: Path, names: list[str], kind: str) -> None:
    folder = lay(tmp_path / "f", *names)
    for place in (folder, str(folder) + "/", upload(folder), folder.as_uri()):
        assert type(open_source(place, items_per_shard=7)) is KINDS[kind]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("manifest.jsonl", TURNS, "manifest"),
        ("any.jsonl", '{"audio": "a.wav"}', "manifest"),
        ("any.jsonl", "", "manifest"),
        ("any.jsonl", "junk\n\n" + TURNS, "conversations"),
        ("any.jsonl", '{"messages": []}', "conversations"),
        ("texts-1.jsonl", "", "manifest"),
        ("any.json", "[]", "conversations"),
        ("any.tar", "", "webdataset"),
        ("any.parquet", "", "parquet"),
        ("any.arrow", "", "parquet"),
        ("wav.scp", "", "kaldi"),
        ("part.scp", "", "kaldi"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, kind: str) -> None:
    lay(tmp_path, name, content=content)
    for place in (tmp_path / name, f"{upload(tmp_path)}/{name}"):
        assert type(open_source(place)) is KINDS[kind]


def test_what_is_unclear_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(SourceError, match=r"looked for manifest.jsonl.*\*.tar.*\*.parquet.*wav.scp.*\*.json"):
        open_source(lay(tmp_path / "wavs", "a.wav", "b/c.wav", ".hidden/manifest.jsonl"))
    with pytest.raises(SourceError, match=r"looked for"):
        open_source(tmp_path / "wavs" / "a.wav")
    both = lay(tmp_path / "both", "manifest.jsonl", "a.tar", "b.parquet")
    with pytest.raises(SourceError, match="manifest, parquet, webdataset; say which"):
        open_source(both)
    assert type(open_source(both, kind="manifest")) is KINDS["manifest"]
    with pytest.raises(SourceError, match="known are manifest"):
        open_source(both, kind="folder")
    with pytest.raises(SourceError, match="columns"):
        open_source(both, kind="manifest", columns={})
    with pytest.raises(SourceError, match="nosuchscheme"):
        open_source("nosuchscheme://x/y")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/dev_1.tar", "validation"),
        ("test/data.arrow", "validation"),
        ("Valid.tar", "validation"),
        ("testimony.tar", None),
        ("a/b.tar", None),
        ("trainer/b.tar", None),
    ],
)
def test_splits_of_names(name: str, split: str | None) -> None:
    assert split_of_path(name) == split


def test_names_of_shards_differ() -> None:
    names = ["a/b.tar", "a-b.tar", "a_b.tar", "ä.tar", "x" * 300, "y" + "x" * 300, "\udce9"]
    assert len({shard_name(name) for name in names}) == len(names)
    assert all(len(shard_name(name)) < 80 for name in names)


def test_links_in_a_circle(tmp_path: Path) -> None:
    lay(tmp_path, "a/b.tar")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(open_source(tmp_path).shards()) == 1


def test_every_reason_is_documented() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    assert [reason for reason in REASONS if f"| `{reason}` |" not in docs] == []
    assert [kind for kind in KINDS if f"| `{kind}` |" not in docs or f"## {kind}" not in docs] == []
