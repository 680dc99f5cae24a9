"""The command line of generation: its errors, a run over a manifest with bad records, and resuming it."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from mimo_jax import generate
from mimo_jax.data.audio import write_wav
from mimo_jax.data.manifest import Record, write_manifest
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.interop import hf
from tests.inference.test_tasks import tiny_config


@pytest.fixture(scope="module")
def folders(tokenizer_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tokenizer = train_text_tokenizer(["the cat sat on the mat"] * 3, vocab_size=280)
    config = tiny_config(tokenizer)
    leaves, tree = jax.tree.flatten(hf.lm_shapes(config))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves])
    tokenizer.save(folder / "text")
    hf.save_lm(folder / "lm", config, params, text_tokenizer_dir=folder / "text")
    rng = np.random.default_rng(1)
    for number in range(5):
        write_wav(folder / f"{number}.wav", rng.normal(0, 0.1, 3000 + 400 * number).astype(np.float32))
    (folder / "broken.wav").write_bytes(b"RIFFnothing")
    records = [Record(str(n), f"{n}.wav", "the cat", split="train") for n in range(5)]
    write_manifest(
        folder / "manifest.jsonl", [*records[:2], Record("broken", "broken.wav", split="train"), *records[2:]]
    )
    return folder, folder / "lm", tokenizer_tiny


def run(*flags):
    """`main` in this process, as if from the command line; returns the exit code."""
    generate.flags.FLAGS.unparse_flags()
    generate.flags.FLAGS(["generate", *flags])
    try:
        generate.main(["generate"])
    except SystemExit as stop:
        return stop.code
    finally:
        for name in generate._OWN_FLAGS:
            generate.flags.FLAGS[name].unparse()
    return 0


def model_flags(folders):
    return f"--lm={folders[1]}", f"--tokenizer={folders[2]}"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task=asr"], "--lm is missing"),
        (["--lm=/nowhere", "--tokenizer=/nowhere", "--task=asr"], "--lm=/nowhere: no such folder"),
        (["MODEL", "--task=asr"], "--task=asr needs --audio"),
        (["MODEL", "--task=tts", "--audio=a.wav"], "--task=tts needs --text"),
        (["MODEL", "--task=tts", "--text=x", "--audio=a.wav"], "takes no --audio"),
        (["MODEL", "--task=instruct_tts", "--text=x"], "needs --style"),
        (["MODEL", "--task=asr", "--audio=a.wav", "--manifest=x"], "either --manifest or inputs"),
        (["MODEL", "--task=asr", "--audio=nowhere.wav"], "nowhere.wav: missing"),
        (["MODEL", "--task=asr", "--manifest=/nowhere"], "--manifest: "),
    ],
)
def test_mistakes_are_named(folders, tmp_path, capsys, flags, message):
    expanded = [part for flag in flags for part in (model_flags(folders) if flag == "MODEL" else [flag])]
    assert run(*expanded, f"--out={tmp_path}") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")


def test_manifest_with_resume(folders, tmp_path, capsys):
    flags = [*model_flags(folders), "--task=pretrain_asr", f"--manifest={folders[0]}", "--max_new=4", "--batch=2"]
    assert run(*flags, f"--out={tmp_path / 'whole'}") == 0
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "broken", "2", "3", "4"]
    assert "broken.wav" in lines[2]["error"] and all("text" in line for line in lines if line["id"] != "broken")

    assert run(*flags, f"--out={tmp_path / 'cut'}") == 0
    results = tmp_path / "cut" / "results.jsonl"
    results.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    assert run(*flags, f"--out={tmp_path / 'cut'}") == 0
    assert results.read_bytes() == whole

    capsys.readouterr()
    assert run(*flags, "--max_new=5", f"--out={tmp_path / 'cut'}") == 2
    assert "other settings" in capsys.readouterr().err


def test_speech_is_written(folders, tmp_path, capsys):
    flags = [*model_flags(folders), "--task=continue_speech", f"--audio={folders[0] / '3.wav'}", "--max_new=4"]
    assert run(*flags, f"--out={tmp_path}") == 0
    (line,) = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert line["id"] == "3" and line["seconds"] >= 0
    assert ("audio" in line) == (tmp_path / "3.wav").is_file()


def test_help_explains_the_tasks():
    done = subprocess.run([sys.executable, "-m", "mimo_jax.generate", "--help"], capture_output=True, text=True)
    assert "--dialogue is a JSON list of turns" in done.stdout and "--max_new" in done.stdout
