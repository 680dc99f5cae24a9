"""What the supervisor does about processes that end: small programs in place of training."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimo_jax import supervise
from mimo_jax.cli import UserError
from mimo_jax.parallel.start import NotTogether
from mimo_jax.supervise import Job
from mimo_jax.training.watchdog import EXIT_STUCK

# Each process appends a line to its own file in FOLDER and goes on as BODY says; `starts` is how often it was started.
PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
number = os.environ.get("JAX_PROCESS_ID", "0")
told = [os.environ.get(n) for n in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_LOCAL_DEVICE_IDS")]
with (folder / f"process_{number}").open("a") as file:
    print(*told, sep="|", file=file)
starts = (folder / f"process_{number}").read_text().count(chr(10))
(folder / f"started_{number}_{starts}").touch()
def wait_for(count):
    while len(list(folder.glob(f"started_*_{starts}"))) < count:
        time.sleep(0.01)
def save(step):
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
def serve():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"ready_{number}").touch()
    time.sleep(60)
    sys.exit(9)
"""


@pytest.fixture
def job(tmp_path):
    """Makes a job of a program's last lines."""

    def make(body: str, **options) -> Job:
        command = [sys.executable, "-S", "-c", PROGRAM + body, str(tmp_path)]
        return Job(**({"command": command, "model_dir": tmp_path, "delay": 0.0} | options))

    return make


def starts(folder: Path, number: int = 0) -> list[list[str]]:
    return [line.split("|") for line in (folder / f"process_{number}").read_text().splitlines()]


def test_starts_again_until_the_run_ends_well(job, tmp_path):
    assert supervise.run(job("sys.exit(0 if starts == 3 else 76)", restarts=2)) == 0
    assert len(starts(tmp_path)) == 3


def test_gives_up_without_a_newer_checkpoint(job, tmp_path):
    # Starts 1, 2 and 3 save; from the fourth on there is no progress. An unfinished checkpoint is none.
    body = """
if starts < 4: save(10 * starts)
else: (folder / "checkpoints" / f"{starts}.orbax-checkpoint-tmp").mkdir()
sys.exit(1)
"""
    assert supervise.run(job(body, restarts=2)) == 1
    assert len(starts(tmp_path)) == 6


def test_a_checkpoint_of_any_stage_is_progress(tmp_path):
    for folder in ("checkpoints/5", "checkpoints/12", "one/checkpoints/7", "two/logs/9"):
        (tmp_path / folder).mkdir(parents=True)
    found = supervise.checkpoints(tmp_path)
    assert found == {str(tmp_path / "checkpoints"): 12, str(tmp_path / "one/checkpoints"): 7}
    assert supervise.checkpoints(tmp_path / "missing") == {}


def test_a_mistake_in_the_input_ends_it_at_once(job, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "_PATIENCE_AFTER_CRASH", 0.2)
    body = "wait_for(2)\ntime.sleep(60 if number == '0' else 0)\nsys.exit(2)"
    assert supervise.run(job(body, processes=2)) == 2
    assert len(starts(tmp_path)) == 1


def test_one_lost_process_takes_the_others_with_it(job, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "_PATIENCE_AFTER_CRASH", 0.2)
    # The others wait in vain and do not listen to SIGTERM, as in a collective operation.
    body = """
wait_for(3)
if starts == 2: sys.exit(0)
if number == "1": os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""
    begin = time.monotonic()
    assert supervise.run(job(body, processes=3, devices=6)) == 0
    assert time.monotonic() - begin < 30
    told = [starts(tmp_path, number) for number in range(3)]
    addresses = [{process[attempt][0] for process in told} for attempt in range(2)]
    assert all(len(address) == 1 for address in addresses) and addresses[0] != addresses[1], "a fresh port each time"
    assert [process[0][1:] for process in told] == [["3", "0,1"], ["3", "2,3"], ["3", "4,5"]]


def test_what_a_process_has_started_is_gone_before_the_next_start(job, monkeypatch):
    """A stage of a chain that is killed keeps its accelerator until it has ended."""
    kill, asked = supervise.os.killpg, []

    def dying(group, number):
        if number:
            return kill(group, number)
        asked.append(group)
        if len(asked) == 4:
            raise ProcessLookupError

    monkeypatch.setattr(supervise.os, "killpg", dying)
    assert supervise.run(job("")) == 0
    assert len(asked) == 4


def test_one_process_keeps_what_its_platform_says(job, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert supervise.run(job("", devices=8)) == 0
    assert starts(tmp_path) == [["10.0.0.1:8476", "4", "None"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(job, tmp_path, number):
    command = job("serve()").command
    arguments = ["-m", "mimo_jax.supervise", "--processes=2", f"--model_dir={tmp_path}", f"--logs={tmp_path / 'logs'}"]
    process = subprocess.Popen([sys.executable, *arguments, "--", *command], stdout=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(tmp_path.glob("ready_*"))) < 2:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(starts(tmp_path)) == 1 and len(list((tmp_path / "logs").glob("*_[01].log"))) == 2


def send_when(tmp_path, job, number, ready: str) -> int:
    """Exit code of a supervisor that gets a signal once a file is there."""
    arguments = ["-m", "mimo_jax.supervise", "--delay=60", f"--model_dir={tmp_path}", "--", *job.command]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / ready).exists():
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(60)


def test_asked_to_stop_before_it_listens(job, tmp_path):
    """Slurm and tpu_vm.sh go on after 75 alone."""
    assert send_when(tmp_path, job("(folder / 'ready').touch()\ntime.sleep(60)"), signal.SIGTERM, "ready") == 75


def test_asked_to_stop_between_two_starts(job, tmp_path):
    body = "(folder / 'ready').touch()\nos._exit(1)"
    assert send_when(tmp_path, job(body), signal.SIGTERM, "ready") == 75


def test_a_second_ctrl_c_kills(job, tmp_path):
    body = "signal.signal(signal.SIGTERM, lambda *_: (folder / 'asked').touch())\n(folder / 'ready').touch()\n"
    body += "while True: time.sleep(0.1)"
    arguments = ["-m", "mimo_jax.supervise", f"--model_dir={tmp_path}", "--", *job(body).command]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    for name in ("ready", "asked"):
        while process.poll() is None and not (tmp_path / name).exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGKILL


def test_a_process_does_not_stand_still_when_its_output_cannot_be_written(job, tmp_path):
    """Nobody reads, the disk is full: more than a pipe holds."""
    command = job("for _ in range(3000): print('x' * 100)").command
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{socket.gethostname()}_0.log").symlink_to("/dev/full")
    arguments = ["-m", "mimo_jax.supervise", f"--model_dir={tmp_path}", f"--logs={tmp_path / 'logs'}", "--", *command]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 0
    assert len(starts(tmp_path)) == 1


def test_what_could_be_started_once_is_tried_again(tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nmv {program} {program}.away\nexit 76\n")
    program.chmod(0o755)
    assert supervise.run(Job(command=[str(program)], model_dir=tmp_path, delay=0.0, restarts=2)) == 126


def test_a_file_system_that_does_not_answer(job, tmp_path, monkeypatch):
    def fail(model_dir):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(supervise, "checkpoints", fail)
    assert supervise.run(job("sys.exit(0 if starts == 2 else 76)")) == 0


def test_output_is_told_apart_and_kept(job, tmp_path, capfdbinary):
    assert supervise.run(job("print('here is', number)", processes=2, logs=tmp_path / "logs")) == 0
    said = capfdbinary.readouterr().out
    assert b"[0] here is 0\n" in said and b"[1] here is 1\n" in said
    assert sorted(path.read_text() for path in (tmp_path / "logs").iterdir()) == ["here is 0\n", "here is 1\n"]


def test_mistakes_are_named(tmp_path, capfd):
    with pytest.raises(UserError, match="no command"):
        Job(command=[], model_dir=tmp_path)
    with pytest.raises(UserError, match="--devices=8 cannot be dealt evenly to --processes=3"):
        Job(command=["x"], model_dir=tmp_path, processes=3, devices=8)
    missing = str(tmp_path / "missing")
    assert supervise.main([f"--model_dir={tmp_path}", "--", missing]) == 2
    assert f"error: {missing} cannot be started" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([75, 0], 75), ([2, -9], 2), ([76, -9], 76), ([-9, -6], 137), ([75, -9], 137)]
)
def test_exit_code_of_all(codes, code):
    assert supervise._common_code(codes) == code


def test_processes_that_do_not_come_together_start_again():
    """One that starts again may find the others not there yet: that is no mistake in the input."""
    assert issubclass(NotTogether, UserError)
    assert NotTogether.exit_code == EXIT_STUCK != UserError.exit_code == 2
