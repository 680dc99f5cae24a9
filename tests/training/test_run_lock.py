"""Two runs in one folder: the second waits, then refuses; whatever ends the first gives the folder back."""

import errno
import logging
import subprocess
import sys
import time

import pytest

from mimo_jax.cli import UserError
from mimo_jax.training import run_lock
from mimo_jax.training.run_lock import RunLock
from mimo_jax.training.watchdog import EXIT_STUCK

HOLD = """
import sys, time
from mimo_jax.training.run_lock import RunLock
lock = RunLock.acquire(sys.argv[1])
print("held", flush=True)
time.sleep(float(sys.argv[2]))
lock.release()
print("released", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the folder for some seconds."""
    started = []

    def start(seconds):
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, str(seconds)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"held\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path, hold):
    process = hold(60)
    with pytest.raises(UserError, match=f"{tmp_path}: process {process.pid} on .* trains there.*MODEL_DIR") as error:
        RunLock.acquire(tmp_path, wait_seconds=0.05)
    # A host that was lost may still have the lock: a supervisor should try again, which it does not after 2.
    assert error.value.exit_code == EXIT_STUCK != UserError.exit_code


def test_it_waits_for_one_that_is_about_to_end(tmp_path, hold):
    hold(0.5)
    RunLock.acquire(tmp_path, wait_seconds=30).release()


def test_a_killed_run_holds_nothing(tmp_path, hold):
    process = hold(60)
    process.kill()
    process.wait()
    begin = time.monotonic()
    RunLock.acquire(tmp_path, wait_seconds=30).release()
    assert time.monotonic() - begin < 5


def test_released_is_free_for_others(tmp_path, hold):
    RunLock.acquire(tmp_path).release()
    hold(60)


def test_a_name_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / run_lock.FILE).symlink_to("/dev/full")
    RunLock.acquire(tmp_path).release()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    monkeypatch.setattr(logging.getLogger("mimo_jax"), "propagate", True)  # a command's `log_to_stderr` ends it
    with caplog.at_level("WARNING", logger="mimo_jax.training.run_lock"):
        RunLock.acquire(tmp_path).release()
    assert "only one run trains there" in caplog.text
