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

from mimo_jax.data.audio import write_wav
from mimo_jax.data.formats import FormatOptions
from mimo_jax.data.manifest import read_manifest
from mimo_jax.data.preparation import CodesStore, Limits, TooManyBadRecords
from mimo_jax.data.text_tokenizer import TextTokenizer
from mimo_jax.prepare import prepare
from tests.data.corpus_fixture import FakeCodec, make_corpus

SETTINGS = {
    "vocab_size": 400,
    "contexts": (128,),
    "chunk": 7,
    "examples_per_shard": 9,
    "options": FormatOptions(shots=1),
}


def tree(folder):
    """Name and hash of every file, hidden ones included."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, count=20)
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    # The same depth as the other outputs: the scanned manifest holds paths relative to its place.
    out = corpus / "whole"
    prepare(corpus, out, FakeCodec(), **SETTINGS)
    return out


def test_everything_is_accounted_for(whole, corpus):
    result = json.loads((whole / "prepare.json").read_text())
    counts = result["counts"]["records"]
    assert counts["in"] == counts["written"] + counts["filtered"] + counts["quarantined"] == 25
    for splits in result["counts"]["examples"].values():
        for c in splits.values():
            assert c["in"] == c["written"] + c["quarantined"]
    for name, digest in result["hashes"].items():
        assert hashlib.sha256((whole / name).read_bytes()).hexdigest() == digest
    assert not [name for name in tree(whole) if name.endswith(".partial") or name.endswith(".tmp")]
    scanned = read_manifest(whole / "scan")
    codes = CodesStore(whole / "codes", scanned, chunk=7)
    for record in scanned:
        assert (whole / "scan" / record.audio).resolve().is_file()
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
    assert codec.calls == 4
    prepare(corpus, out, codec, **{**SETTINGS, "options": FormatOptions(shots=1, seed=1)})
    assert codec.calls == 4
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
    assert {k: v for k, v in tree(out).items() if not k.endswith((".partial", ".tmp"))} == expected


def broken_folder(folder):
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(24000)).astype(np.float32)
    write_wav(folder / "good.wav", wave, 16000)
    write_wav(folder / "silent.wav", 0 * wave, 16000)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no audio")
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:9000])
    lines = [
        {"audio": "good.wav", "text": "hello there", "id": "a", "split": "train"},
        {"audio": "good.wav", "text": "hello again", "id": "a"},
        {"audio": "silent.wav", "text": "x"},
        {"audio": "empty.wav", "text": "x"},
        {"audio": "text.wav", "text": "x"},
        {"audio": "cut.wav", "text": "x"},
        {"audio": "missing.wav", "text": "x"},
        {"audio": "good.wav", "text": "a\u0007b", "id": "b"},
        {"text": "no audio"},
        {"audio": "good.wav", "text": "<|empty|>", "id": "c", "split": "train"},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")


def test_broken_input_is_counted_listed_and_skipped(tmp_path, capsys):
    broken_folder(tmp_path)
    result = prepare(tmp_path, tmp_path / "out", FakeCodec(), vocab_size=300, contexts=(64,))
    counts = result["counts"]["records"]
    assert (counts["in"], counts["written"], counts["quarantined"]) == (11, 2, 9)
    reasons = ["control_characters", "duplicate_id", "empty_file", "invalid_line", "missing", "not_audio", "silent"]
    assert counts["reasons"] == {**dict.fromkeys([*reasons, "truncated"], 1), "invalid_line": 2}
    # The text that spells a special token gives no example of any task that reads it.
    # Of two good recordings one is held out, since the manifest holds none out.
    assert sum(result["examples"]["asr"].values()) == 1
    assert result["examples"]["continuation"] == {"train": 1, "validation": 1}
    listed = (tmp_path / "out" / "quarantine.jsonl").read_text()
    assert all(
        name in listed for name in ("silent.wav", "missing.wav", "manifest.jsonl:9", "manifest.jsonl:11", "bad_example")
    )
    assert "11 in = 2 written + 0 filtered + 9 quarantined" in capsys.readouterr().out
    with pytest.raises(TooManyBadRecords, match="9 of 11 records"):
        prepare(tmp_path, tmp_path / "out2", FakeCodec(), limits=Limits(bad_records=5))


def test_subsets_are_filtered_not_lost(corpus):
    result = prepare(corpus, corpus / "wide", FakeCodec(), subsets=("wide",), only="scan")
    assert result["scan"] == {"in": 25, "written": 0, "filtered": 25, "quarantined": 0, "reasons": {}}


def test_mistakes_are_named(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        prepare(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="--codec"):
        prepare(corpus, tmp_path / "out", vocab_size=400)
    with pytest.raises(ValueError, match="unknown tasks"):
        prepare(corpus, tmp_path / "out", FakeCodec(), vocab_size=400, tasks=("song",))


def test_command_line_trains_the_text_tokenizer_alone(corpus):
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-m", "mimo_jax.prepare", f"--manifest={corpus}", f"--out={corpus / 'cli'}"]
    options = ["--only=text_tokenizer", "--gin.prepare.vocab_size=310"]
    start = time.monotonic()
    done = subprocess.run([*command, *options], cwd=root, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert TextTokenizer.load(corpus / "cli" / "text_tokenizer").vocab_size <= 310
    assert not (corpus / "cli" / "codes").exists() and time.monotonic() - start < 60
    wrong = subprocess.run([*command, "--gin.prepare.vocab=3"], cwd=root, capture_output=True, text=True, timeout=120)
    assert wrong.returncode != 0 and "vocab" in wrong.stderr
