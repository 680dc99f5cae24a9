"""The command: mistakes of the user, start and end."""

import os
import signal
import subprocess
import sys

import httpx
import pytest

from benchmarks import serving as crowd


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--lm is missing"),
        (["--lm=nowhere", "--tokenizer=."], "--lm=nowhere: no such folder"),
        (["--lm=.", "--tokenizer=.", "--max_new=0"], "--max_new = 0: must be above 0"),
        (["--lm=.", "--tokenizer=.", "--voices=nowhere"], "--voices=nowhere: no such folder"),
        (["--lm=.", "--tokenizer=.", "--host=192.0.2.1"], "--host=192.0.2.1 --port=8000"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_told_in_a_line(flags, message):
    done = subprocess.run([sys.executable, "-m", "mimo_jax.serve", *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_help_is_quick_to_come():
    code = "import sys, mimo_jax.serve; assert 'jax' not in sys.modules and 'starlette' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_start_and_end(folder):
    process, url = crowd.start(folder, "--max_batch=1", "--warm_up=false", "--host=0.0.0.0")
    try:
        assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"
        assert httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"] == crowd.NAME
    finally:
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
