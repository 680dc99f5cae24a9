"""Many threads, one engine: nothing lost, nothing mixed up, and who leaves or breaks something disturbs nobody."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mimo_jax.inference.requests import joined
from mimo_jax.inference.service import ClosedError, OverloadedError, Service
from tests.inference.test_engine import CASES, Fixture, same


@pytest.fixture(scope="module")
def tiny(lm_tiny):
    return Fixture(lm_tiny)


def test_threads_get_their_own_answers(tiny):
    requests = [tiny.random_request(seed, max_new=8 + seed) for seed in range(8)] + [*map(tiny.request, CASES)]
    alone = tiny.engine.generate(requests)
    with Service(tiny.engine, max_batch=4) as service, ThreadPoolExecutor(12) as pool:
        for result, expected in zip(pool.map(lambda r: joined(list(service.stream(r))), requests), alone, strict=True):
            same(result, expected)
        together = service.generate(requests[:5])
        assert service.load == (0, 0)
    for result, expected in zip(together, alone, strict=False):
        same(result, expected)
    with pytest.raises(ClosedError):
        service.stream(requests[0])


def test_who_leaves_makes_room(tiny):
    endless = tiny.random_request(0, max_new=4000)
    with Service(tiny.engine, max_batch=2, max_waiting=1) as service:
        streams = [service.stream(endless) for _ in range(3)]
        next(streams[0])
        with pytest.raises(OverloadedError, match="3 requests"):
            service.stream(endless)
        with pytest.raises(ValueError, match="max_new = 0"):
            service.stream(tiny.request("gen_text", max_new=0))
        for stream in streams:
            stream.close()
        assert list(streams[1]) == []
        same(service.generate([tiny.request("gen_text")])[0], tiny.engine.generate([tiny.request("gen_text")])[0])
        deadline = time.monotonic() + 30
        while service.load != (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.load == (0, 0)


def test_a_stream_is_closed_while_its_thread_waits(tiny):
    with Service(tiny.engine, max_batch=1) as service:
        running, waiting = (service.stream(tiny.random_request(n, max_new=4000)) for n in range(2))
        heard = []
        thread = threading.Thread(target=lambda: heard.extend(waiting))
        thread.start()
        waiting.close()
        thread.join(30)
        assert not thread.is_alive() and heard == []
        running.close()


def test_time_is_limited(tiny):
    with Service(tiny.engine, max_seconds=0.2) as service:
        with pytest.raises(TimeoutError):
            service.generate([tiny.random_request(0, max_new=8000)])


def test_a_failed_dispatch_is_told_and_forgotten(tiny, monkeypatch):
    request = tiny.request("gen_text")
    with Service(tiny.engine) as service:
        broken = threading.Event()

        def turn():
            broken.set()
            raise RuntimeError("out of memory")

        monkeypatch.setattr(service._batcher, "turn", turn)
        with pytest.raises(RuntimeError, match="out of memory"):
            service.generate([request])
        assert broken.is_set()
        same(service.generate([request])[0], tiny.engine.generate([request])[0])


def test_an_end_is_told_to_those_who_wait(tiny):
    service = Service(tiny.engine)
    stream = service.stream(tiny.random_request(0, max_new=8000))
    next(stream)
    service.close()
    with pytest.raises(ClosedError):
        list(stream)
