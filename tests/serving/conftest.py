"""One endpoint for all tests: a tiny model of random weights behind uvicorn in a thread, on a free loopback port."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

from benchmarks.crowd import cases, tiny_model
from mimo_jax.inference.service import Service
from mimo_jax.inference.tasks import MimoAudio
from mimo_jax.serving import server
from mimo_jax.serving.app import Endpoint
from mimo_jax.serving.limits import Limits
from mimo_jax.serving.voices import load_voices

# Few rows, slots and lengths: every shape is compiled.
BATCH, LONGEST, SECONDS = 2, 14, 1.2
LIMITS = {**tiny_model.LIMITS, "max_batch": BATCH, "max_positions": 128, "header_seconds": 20.0, "stop_seconds": 5.0}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tiny_model.write_model(folder)
    return folder


@pytest.fixture(scope="session")
def alone(folder):
    """The model itself: what it gives alone is what the endpoint must give."""
    limits = {"max_batch": BATCH, "least_rows": BATCH, "max_positions": LIMITS["max_positions"], "chunk": 64}
    model = MimoAudio.load(folder / "lm", folder / "tokenizer", **limits)
    with Service(model.engine, positions=8) as service:
        model = MimoAudio(service, model.tokenizer, model.codec)
        cases.learn_voices(model, folder)
        yield model


@pytest.fixture(scope="session")
def voices(folder):
    return load_voices(folder / "voices", tiny_model.RATE)


@contextlib.contextmanager
def running(alone, voices, api_key="", **limits):
    """An endpoint that runs: url, endpoint, server, thread."""
    limits = Limits(**{**LIMITS, **limits})
    service = Service(alone.engine._engine, max_waiting=limits.max_requests, positions=8)
    model = MimoAudio(service, alone.tokenizer, alone.codec)
    endpoint = Endpoint(model, name=tiny_model.NAME, voices=voices, limits=limits, api_key=api_key)
    listening = server.bound("127.0.0.1", 0)
    runs = server.server(endpoint.app(), limits, log_level="warning")
    thread = threading.Thread(target=lambda: runs.run(sockets=[listening]), daemon=True)
    thread.start()
    while not runs.started and thread.is_alive():
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield SimpleNamespace(url=address, endpoint=endpoint, server=runs, thread=thread)
    finally:
        runs.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(alone, voices):
    with running(alone, voices) as served:
        yield served
