"""The command: mistakes of the user, start and end."""

import os
import signal
import subprocess
import sys

import httpx
import pytest

from benchmarks.crowd.tiny_model import NAME, start


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--lm is missing"),
        (["--lm=nowhere", "--tokenizer=."], "--lm=nowhere: no such folder, and no repository name (owner/name)"),
        (["--lm=.", "--tokenizer=.", "--max_new=0"], "--max_new = 0: must be above 0"),
        (["--lm=.", "--tokenizer=.", "--voices=nowhere"], "--voices=nowhere: no such folder"),
        (["--lm=.", "--tokenizer=.", "--host=192.0.2.1"], "--host=192.0.2.1 --port=8000"),
        (["--lm=.", "--tokenizer=.", "--port=70000"], "--port: '70000' is no integer from 0 to 65535"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_told_in_a_line(flags, message):
    done = subprocess.run([sys.executable, "-m", "mimo_jax.serve", *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_start_and_end(folder):
    process, url = start(folder, "--max_batch=1", "--no-warm_up", "--host=0.0.0.0")
    try:
        assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"
        assert httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"] == NAME
    finally:
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0


def test_the_demo_beside_the_api(folder):
    pytest.importorskip("gradio", reason="the demo needs gradio (requirements of serving)")
    more = ("--demo", "--api_key=secret", "--max_batch=1", "--no-warm_up", "--stop_seconds=60")
    process, url = start(folder, *more)
    try:
        with httpx.Client(base_url=url, timeout=60, follow_redirects=True) as browser:
            assert browser.get("/v1/models").status_code == 401
            key = {"Authorization": "Bearer secret"}
            assert browser.get("/v1/models", headers=key).json()["data"][0]["id"] == NAME
            assert browser.get("/demo/config").status_code == 401
            assert browser.post("/demo/login", data={"username": "mimo", "password": "no"}).status_code == 400
            assert browser.post("/demo/login", data={"username": "mimo", "password": "secret"}).status_code == 200
            page = browser.get("/demo")
            assert page.status_code == 200 and "MiMo-Audio" in page.text and "Transcribe" in page.text
            # An open page holds this connection for ever; it does not hold up the end.
            with browser.stream("GET", "/demo/gradio_api/heartbeat/session") as beats:
                next(beats.iter_lines())
                os.kill(process.pid, signal.SIGTERM)
                assert process.wait(30) == 0
    finally:
        process.kill()
