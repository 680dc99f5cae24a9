"""Preparation end to end: accounting, broken input, resuming after a kill, the command line."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mimo_jax.cli import UserError
from mimo_jax.data.audio import write_wav
from mimo_jax.data.formats import FormatOptions
from mimo_jax.data.manifest_files import read_manifest
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.preparation.accounts import Limits, TooManyBadRecords
from mimo_jax.preparation.codes import CodesStore
from mimo_jax.preparation.runner import locked
from mimo_jax.preparation.sources.base import SourceError
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec, make_corpus

SETTINGS = {
    "vocab_size": 400,
    "contexts": (128,),
    "items_per_shard": 7,
    "examples_per_shard": 9,
    "options": FormatOptions(shots=1),
    "workers": 1,
}


def tree(folder):
    """Name and hash of every file, hidden ones included; not what a killed process left, nor how long things took."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith((".partial", ".times.json"))
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, count=20)
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    # The same depth as the other outputs: the curated manifest holds paths relative to its place.
    out = corpus / "whole"
    prepare(corpus, out, FakeCodec(), **SETTINGS)
    return out


def test_everything_is_accounted_for(whole, corpus):
    result = json.loads((whole / "prepare.json").read_text())
    counts = result["counts"]["records"]
    lines = sum(len((corpus / name).read_text().splitlines()) for name in ("manifest.jsonl", "texts.jsonl"))
    assert counts["in"] == counts["written"] + counts["filtered"] + counts["quarantined"] == lines
    assert result["counts"]["encoded"]["written"] == 25
    for splits in result["counts"]["examples"].values():
        for c in splits.values():
            assert c["in"] == c["written"] + c["quarantined"]
    for name, digest in result["hashes"].items():
        assert hashlib.sha256((whole / name).read_bytes()).hexdigest() == digest
    assert not list(whole.rglob("*.partial"))
    curated = read_manifest(whole / "curated")
    codes = CodesStore(whole / "codes", sorted(p.stem for p in (whole / "codes").glob("*.array_record")))
    for record in curated:
        assert (whole / "curated" / record.audio).resolve().is_file()
        assert len(codes(record.id)) == -(-round(record.duration * 24000) // 960)


def test_again_changes_nothing_and_encodes_nothing(whole, corpus):
    before, codec = tree(whole), FakeCodec()
    prepare(corpus, whole, codec, **SETTINGS)
    assert tree(whole) == before and codec.calls == 0


def test_another_codec_or_option_makes_what_depends_on_it_again(corpus, whole):
    out = corpus / "changed"
    prepare(corpus, out, FakeCodec(), **SETTINGS)
    tokenizer = (out / "text_tokenizer" / "tokenizer.json").stat().st_mtime_ns
    codec = FakeCodec()
    codec.fingerprint = "fake-2"
    prepare(corpus, out, codec, **SETTINGS)
    calls = codec.calls
    assert calls > 1
    prepare(corpus, out, codec, **{**SETTINGS, "options": FormatOptions(shots=1, seed=1)})
    assert codec.calls == calls
    assert (out / "text_tokenizer" / "tokenizer.json").stat().st_mtime_ns == tokenizer
    assert (
        json.loads((out / "prepare.json").read_text())["hashes"]
        != json.loads((whole / "prepare.json").read_text())["hashes"]
    )


CHILD = """
import os, sys, time
import tests.data.corpus_fixture as fixture
from tests.test_prepare import SETTINGS
from mimo_jax.prepare import prepare

# Replacing is when files appear: dying around the k-th time covers every state on disk.
left = [int(sys.argv[3])]
replace = os.replace
def counted(a, b):
    left[0] -= 1
    if left[0] == 0:
        print("now", flush=True)
        time.sleep(60)
    replace(a, b)
os.replace = counted
prepare(sys.argv[1], sys.argv[2], fixture.FakeCodec(), **SETTINGS)
"""


def test_killed_anywhere_and_started_again_gives_the_same_bytes(corpus, whole):
    expected = tree(whole)
    root = pathlib.Path(__file__).parents[1]
    out = corpus / "killed"
    for moment in (2, 3, 9, 16, 40, 70):
        command = [sys.executable, "-c", CHILD, str(corpus), str(out), str(moment)]
        child = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for line in child.stdout:
            if line == b"now\n":
                break
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    prepare(corpus, out, FakeCodec(), **SETTINGS)
    assert tree(out) == expected


def test_one_recording_is_held_out_where_the_manifest_holds_none_out(tmp_path):
    wave = (0.1 * np.random.default_rng(0).standard_normal(24000)).astype(np.float32)
    write_wav(tmp_path / "good.wav", wave, 16000)
    lines = [{"audio": "good.wav", "text": f"words {i}", "id": f"{i}", "split": "train"} for i in range(4)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = prepare(tmp_path, tmp_path / "out", FakeCodec(), vocab_size=300, contexts=(64,), items_per_shard=2)
    assert result["examples"]["continuation"] == {"train": 3, "validation": 1}
    assert sorted(r.split for r in read_manifest(tmp_path / "out" / "curated")) == ["train"] * 3 + ["validation"]


def test_recordings_of_a_conversation_are_not_held_out_without_it(tmp_path):
    wave = (0.1 * np.random.default_rng(0).standard_normal(24000)).astype(np.float32)
    write_wav(tmp_path / "good.wav", wave, 16000)
    shared = {"audio": "good.wav", "split": "train"}
    lines = [{**shared, "text": f"words {i}", "id": f"{i}", "part_of": "talk"} for i in range(3)] + [
        {**shared, "id": "3"}
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(tmp_path, tmp_path / "out", FakeCodec(), vocab_size=300, contexts=(64,), items_per_shard=2)
    splits = {r.id: r.split for r in read_manifest(tmp_path / "out" / "curated")}
    assert splits == {"0": "train", "1": "train", "2": "train", "3": "validation"}


def test_too_much_that_is_broken_stops_the_run(tmp_path):
    lines = [{"audio": "missing.wav", "id": f"{i}"} for i in range(9)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TooManyBadRecords, match=r"'missing': 6}; the first: .*/missing.wav: .* \(record 0\)"):
        prepare(tmp_path, tmp_path / "out", limits=Limits(bad_records=5), items_per_shard=3, workers=1)


def test_nothing_usable_is_a_mistake_not_an_empty_result(tmp_path):
    lines = [{"audio": f"wrong/{i}.wav", "text": "words", "id": f"{i}"} for i in range(3)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = r"none of 3 records can be used \({'missing': 3}\); the first: .*/wrong/0.wav: "
    for only in ("curate", "text_tokenizer"):
        with pytest.raises(UserError, match=named):
            prepare(tmp_path, tmp_path / "out", only=only, workers=1)
    assert not (tmp_path / "out" / "text_tokenizer").exists()
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(UserError, match="no records"):
        prepare(tmp_path, tmp_path / "empty", only="curate", workers=1)


def test_a_misnamed_text_is_told_and_nothing_to_make_examples_of_is_a_mistake(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32), 16000)

    def given(**fields):
        lines = [{"audio": "a.wav", "id": f"{i}", **fields} for i in range(3)]
        (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    given(transcript="words", mood="calm")
    prepare(tmp_path, tmp_path / "out", only="curate", workers=1)
    told = "no recording has `text`; fields kept as attributes: transcript (3), mood (3)"
    assert told in capsys.readouterr().out.splitlines()
    with pytest.raises(UserError, match="no examples for asr: the records lack the fields"):
        prepare(tmp_path, tmp_path / "out", FakeCodec(), vocab_size=300, tasks=("asr",), workers=1)
    assert not (tmp_path / "out" / "prepare.json").exists()
    given(text="words", mood="calm")
    prepare(tmp_path, tmp_path / "out", only="curate", workers=1)
    assert "no recording has" not in capsys.readouterr().out.rpartition("records:")[2]


def test_volumes_bound_what_is_combined_and_hold_everything(corpus, whole):
    out = corpus / "volumes"
    result = prepare(corpus, out, FakeCodec(), **{**SETTINGS, "records_per_volume": 10})
    assert len(list((out / "curated").glob("manifest-*.jsonl"))) > 1
    assert {r.id for r in read_manifest(out / "curated")} == {r.id for r in read_manifest(whole / "curated")}
    expected = json.loads((whole / "prepare.json").read_text())["examples"]
    for task in ("asr", "tts", "continuation", "text"):
        assert result["examples"][task] == expected[task]


def test_worker_processes_give_the_same_bytes(corpus, whole):
    out = corpus / "workers"
    prepare(corpus, out, FakeCodec(), **{**SETTINGS, "workers": 2, "codec_workers": 2})
    assert tree(out) == tree(whole)


def test_two_at_once_in_one_folder_are_refused(corpus, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another preparation is busy"):
        prepare(corpus, tmp_path, FakeCodec(), **SETTINGS)


def test_subsets_are_filtered_not_lost(corpus):
    result = prepare(corpus, corpus / "wide", FakeCodec(), subsets=("wide",), only="curate")
    account = result["curate"]
    assert account["filtered"] == account["in"] and account["written"] == account["quarantined"] == 0
    assert account["reasons"] == {"other_subset": account["in"]}


def test_mistakes_are_named(corpus, tmp_path):
    with pytest.raises(SourceError, match="nothing"):
        prepare(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="--codec"):
        prepare(corpus, tmp_path / "out", vocab_size=400)
    with pytest.raises(ValueError, match="unknown tasks"):
        prepare(corpus, tmp_path / "out", FakeCodec(), vocab_size=400, tasks=("song",))


def test_command_line_trains_the_text_tokenizer_alone(corpus):
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-m", "mimo_jax.prepare", f"--source={corpus}", f"--out={corpus / 'cli'}"]
    options = ["--only=text_tokenizer", "--gin.prepare.vocab_size=310"]
    start = time.monotonic()
    done = subprocess.run([*command, *options], cwd=root, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert TextTokenizer.load(corpus / "cli" / "text_tokenizer").vocab_size <= 310
    assert not (corpus / "cli" / "codes").exists() and time.monotonic() - start < 60
    wrong = subprocess.run([*command, "--gin.prepare.vocab=3"], cwd=root, capture_output=True, text=True, timeout=600)
    assert wrong.returncode != 0 and "vocab" in wrong.stderr
