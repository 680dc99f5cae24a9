"""The start of a run of several processes: who is who. Two that train: test_meshes_and_processes.py."""

from __future__ import annotations

import jax
import pytest

from mimo_jax.cli import UserError
from mimo_jax.parallel import start


@pytest.fixture
def joined(monkeypatch):
    """Arguments of jax.distributed.initialize; nothing is started."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    for name in (start.COORDINATOR, start.PROCESS_COUNT, start.PROCESS_ID):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_flags_come_before_the_environment(joined, monkeypatch):
    start.connect("host:1", 4, 2)
    monkeypatch.setenv(start.COORDINATOR, "other:1")
    monkeypatch.setenv(start.PROCESS_COUNT, "8")
    monkeypatch.setenv(start.PROCESS_ID, "3")
    start.connect()
    start.connect(process_id=0)
    assert joined == [("host:1", 4, 2), ("other:1", 8, 3), ("other:1", 8, 0)]


def test_alone(joined, monkeypatch):
    start.connect(process_count=1)
    assert not joined
    start.connect()
    assert joined == [(None, None, None)], "jax looks for a cluster"


def test_half_an_address_is_a_mistake(joined, monkeypatch):
    with pytest.raises(UserError, match="needs --coordinator, --process_count, --process_id; without: --process_id"):
        start.connect("host:1", 4)
    monkeypatch.setenv(start.PROCESS_COUNT, "four")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES=four"):
        start.connect()


def test_processes_that_do_not_come_together(monkeypatch):
    def fail(*_):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"do not come together \(host:1\): DEADLINE_EXCEEDED"):
        start.connect("host:1", 4, 2)
