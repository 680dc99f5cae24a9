"""The quickstart as a user meets it, at a size that learns nothing: kills in every stage, own data, broken files.

Slow (minutes). Fast siblings: tests/test_chain.py (resume of the chain), tests/training (restart equality of a stage),
tests/test_prepare.py and tests/data (broken files, kills during preparation).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from mimo_jax.chain import STATE_FILE
from mimo_jax.data.audio import write_flac, write_wav
from mimo_jax.quickstart import TRAINED
from tests.xla import xla_flags

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
STAGES = ("corpus", "curate", *TRAINED[:3], "prepare", *TRAINED[3:], "evaluate")
TIMES = ("stage_seconds", "wall_seconds")
SECONDS_INTO = {"corpus": 1.5, "curate": 0.3, "prepare": 5.0, "evaluate": 8.0}


def start(out: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mimo_jax.quickstart", "--preset=smoke", f"--out={out}", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags(1)})


def figures(out: Path) -> dict:
    return {name: value for name, value in json.loads((out / "metrics.json").read_text()).items() if name not in TIMES}


def entry(out: Path, stage: str) -> dict:
    path = out / STATE_FILE
    return json.loads(path.read_text())["stages"].get(stage, {}) if path.is_file() else {}


def kill_in_the_middle(out: Path, stage: str) -> bool:
    """Starts the chain and kills it inside a stage: once a training stage has saved, another after some seconds."""
    process, seen = start(out), None
    while process.poll() is None and not entry(out, stage).get("done"):
        if entry(out, stage):
            seen = seen or time.monotonic()
            begun = time.monotonic() - seen > SECONDS_INTO.get(stage, 0.0)
            if begun and (stage not in TRAINED or any((out / stage / "checkpoints").glob("[0-9]*"))):
                break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return bool(entry(out, stage)) and not entry(out, stage)["done"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert start(out).wait() == 0
    return out


def test_every_figure_and_file_is_there(uninterrupted):
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    for name in ("asr_wer_heldout", "recogniser_wer_original", "recogniser_wer_reconstruction", "recogniser_wer_tts"):
        assert metrics[name] is not None, name
    assert len(metrics["codebook_loss"]) == len(metrics["codebook_unigram_entropy"]) == 8
    assert set(metrics["stage_seconds"]) == set(STAGES)
    # No request leaves the report. With "://", for the players' base64 holds an "http" now and then.
    report = (uninterrupted / "report.html").read_text().replace("http://www.w3.org", "")
    assert "://" not in report and 'src="//' not in report
    for folder in ("tokenizer", "language_model"):
        assert (uninterrupted / "export" / folder / "config.json").is_file()
    assert list((uninterrupted / "evaluation" / "samples").rglob("*.wav"))


@pytest.mark.parametrize("name", ["train_and_listen", "lora"])
def test_notebooks_run_on_what_the_quickstart_made(uninterrupted, tmp_path, monkeypatch, name):
    """Cell by cell, in a kernel of their own; the quickstart that the first one starts finds itself finished."""
    monkeypatch.setenv("MIMO_JAX_PRESET", "smoke")
    monkeypatch.setenv("MIMO_JAX_OUT", str(uninterrupted))
    monkeypatch.setenv("MIMO_JAX_LORA_OUT", str(tmp_path / "lora"))
    monkeypatch.setenv("MIMO_JAX_LORA_TOKENS", "2e4")
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in shown)
    assert "error:" not in printed, printed
    if name == "lora":
        assert "largest difference" in printed or "left out: " in printed
    else:
        sounds = [output for output in shown if "text/html" in output.get("data", {})]
        assert len(sounds) == 3 + 4 + 2 and len([o for o in shown if "image/png" in o.get("data", {})]) == 2


def test_sigkill_in_every_stage_changes_no_figure(uninterrupted, tmp_path):
    killed = [stage for stage in STAGES if kill_in_the_middle(tmp_path, stage)]
    assert start(tmp_path).wait() == 0
    assert set(killed) >= set(TRAINED)  # the others are short: on a fast machine they may be over first
    assert figures(tmp_path) == figures(uninterrupted)


def test_own_data_with_broken_files(tmp_path):
    """Three good files of different formats and rates, six broken ones: runs through and names all six."""
    import soundfile

    data, rng = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    tone = (0.2 * np.sin(2 * np.pi * 220 * np.arange(48000 * 2) / 48000)).astype(np.float32)
    tone += 0.02 * rng.standard_normal(len(tone)).astype(np.float32)
    write_wav(data / "a.wav", tone[:16000], 16000)
    write_flac(data / "b.flac", tone, 48000)
    soundfile.write(data / "c.ogg", np.stack([tone, tone], axis=1)[:66150], 44100)
    write_wav(data / "silent.wav", np.zeros(16000, np.float32), 16000)
    (data / "empty.wav").write_bytes(b"")
    (data / "text.wav").write_text("this is no audio")
    whole = (data / "b.flac").read_bytes()
    (data / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(data / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    names = ["a.wav", "b.flac", "c.ogg", "silent.wav", "empty.wav", "text.wav", "cut.flac", "nan.wav", "missing.wav"]
    records = [{"audio": name, "text": f"words of file {name[0]}"} for name in names]
    (data / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    assert start(out, f"--data={data}").wait() == 0
    quarantine = [json.loads(line) for line in (out / "prepared" / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(entry["id"]).name for entry in quarantine} == set(names[3:])
    report = (out / "report.html").read_text()
    assert all(name in report for name in names[3:])
