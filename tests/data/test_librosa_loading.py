"""Many processes load librosa in an environment where nothing is compiled yet."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mimo_jax.data import librosa_loading
from mimo_jax.data.librosa_loading import compiling_alone

# Says when it has the lock and when it gives it back; the functions of numba stand for those of librosa.
PROGRAM = """
import time
from mimo_jax.data.librosa_loading import compiling_alone
with compiling_alone():
    print("in", time.monotonic_ns())
    import numba
    @numba.njit(cache=False)
    def f(x):
        return x + 1
    f(1)
    print("out", time.monotonic_ns())
"""


def test_one_process_compiles_at_a_time(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    spans = []
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        spans.append(tuple(int(line.split()[1]) for line in out.splitlines()))
    spans.sort()
    for (_, end), (begin, _) in zip(spans[:-1], spans[1:], strict=True):
        assert end <= begin


def test_a_process_that_fails_gives_the_lock_back(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.raises(RuntimeError, match="fails"), compiling_alone():
        raise RuntimeError("it fails")
    with compiling_alone():
        assert len(list(tmp_path.iterdir())) == 1


def test_nobody_imports_librosa_otherwise():
    package = Path(librosa_loading.__file__).parents[1]
    found = [p.name for p in package.rglob("*.py") if re.search(r"^\s*(import|from) librosa\b", p.read_text(), re.M)]
    assert found == ["librosa_loading.py"]
