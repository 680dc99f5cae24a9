"""The command that shows what a mixture gives."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mimo_jax.data.loader import PackedSource
from mimo_jax.data.mixtures import Mixture
from mimo_jax.mixture import measure, table
from tests.data.prepared_fixture import make_prepared

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tasks = ("interleaved", "asr", "captioning", "text")
    return make_prepared(tmp_path_factory.mktemp("mixture"), tasks, (50, 0))


def test_shares_are_those_of_the_batches(folder):
    source = PackedSource(folder, Mixture({"asr": 1, "text": 3}), 4, 128)
    shares = measure(source, 30, start=5)
    positions, seen = np.zeros(2), np.zeros(2)
    for step in range(5, 35):
        positions += [sum(counts) for counts in source.task_counts(step).values()]
        seen += np.bincount(source.places(step).tasks, minlength=2)
    assert [one.task for one in shares] == ["asr", "text"]
    assert [one.declared for one in shares] == [0.25, 0.75]
    assert [one.text + one.audio for one in shares] == positions.tolist()
    assert sum(one.share for one in shares) == pytest.approx(1)
    assert [one.epochs * one.rows for one in shares] == pytest.approx(seen.tolist())


def test_the_requested_share_of_text_is_realised_within_one_percent(folder):
    source = PackedSource(folder, Mixture({"asr": 1, "interleaved": 1, "text": 1}, text_share=0.82), 16, 128)
    shares = measure(source, 1000)
    text, audio = sum(one.text for one in shares), sum(one.audio for one in shares)
    assert abs(text / (text + audio) / source.text_share - 1) < 0.01
    assert "requested 0.8200 : 0.1800" in table(shares, source.text_share)


def command(*arguments):
    line = [sys.executable, "-m", "mimo_jax.mixture", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_command_prints_the_table_of_flags_or_gin(folder, tmp_path):
    sizes = ["--batch_rows", "16", "--context", "128", "--steps", "50"]
    done = command("--prepared", str(folder), "--mixture", "understanding", *sizes)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("task", "interleaved", "asr", "captioning", "text", "all", "text"),
    ]
    assert re.search(r"requested 0\.4615 : 0\.5385  realised 0\.\d+", lines[-1])

    gin_file = tmp_path / "run.gin"
    gin_file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from mimo_jax.data import loader\n"
        "from mimo_jax.data import mixtures\n"
        "loader.PackedSource.mixture = @mixtures.Mixture()\n"
        "mixtures.Mixture.rates = {'asr': 1, 'text': 4}\n"
        f"loader.PackedSource.folder = '{folder}'\n"
        "loader.PackedSource.context = 128\n"
    )
    done = command(f"--gin_file={gin_file}", "--batch_rows=8", "--steps=10")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:3]] == [["asr", "0.2000"], ["text", "0.8000"]]

    for arguments, message in (
        (["--prepared", str(tmp_path), "--mixture", "joint", *sizes], "python -m mimo_jax.prepare"),
        (["--prepared", str(folder), "--mixture", "nothing", *sizes], "no mixture or task 'nothing'"),
    ):
        done = command(*arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
