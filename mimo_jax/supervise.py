"""Keeps the processes of a run going: when one of them ends badly, stops the others and starts all of them again.

    python -m mimo_jax.supervise --processes=2 --model_dir=DIR -- python -m mimo_jax.train --gin.MODEL_DIR=DIR ...

With several processes on this machine, each is told who it is (`parallel.start`) and every attempt gets a fresh port.
With one, the command finds the others as its environment says: start a supervisor on every host, and a host whose
process is lost goes on when the others have noticed and started again, too.

It starts again until a number of restarts in a row has brought no newer checkpoint, and ends with the exit code of the
run: at once after 0 and after a user's mistake (2). When it is asked to stop itself (SIGTERM, Ctrl-C), so are the
processes, which save; it then ends with 75, start it again. A second Ctrl-C kills them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mimo_jax.cli import EXIT_MISTAKE, EXIT_PREEMPTED, UserError, log_to_stderr
from mimo_jax.processes import die_with_parent

logger = logging.getLogger("mimo_jax.supervise")  # `python -m` would name it __main__

# Seconds that the others get to end by themselves once one has ended: those that save and stop do so together, and the
# first process writes the last files. Those that have lost one of them wait for it in vain.
_PATIENCE: Mapping[int, float] = {0: 600.0, EXIT_PREEMPTED: 600.0}
_PATIENCE_AFTER_CRASH = 5.0
_POLL_SECONDS = 0.1
_LONGEST_DELAY = 60.0
_GONE_SECONDS = 30.0
_CANNOT_START = 126  # as a shell says it


@dataclasses.dataclass(frozen=True)
class Job:
    """What is kept going.

    Attributes:
      command: of each process.
      model_dir: where checkpoints are looked for, in it and in the folders of stages below it.
      processes: on this machine.
      devices: accelerators of this machine, dealt evenly to the processes; 0 = every process sees all.
      restarts: without a newer checkpoint, in a row, until it gives up.
      delay: seconds before the first restart without progress; doubled each time, up to a minute.
      logs: folder that gets what each process prints as `<host>_<number>.log`, beside standard output; None = none.
    """

    command: Sequence[str]
    model_dir: Path
    processes: int = 1
    devices: int = 0
    restarts: int = 5
    delay: float = 1.0
    logs: Path | None = None

    def __post_init__(self) -> None:
        if not self.command:
            raise UserError("no command: write it behind --, as in `-- python -m mimo_jax.train ...`")
        if self.processes < 1 or self.restarts < 0:
            raise UserError(
                f"--processes={self.processes} --max_restarts={self.restarts}: at least one process, no fewer than 0"
            )
        if self.devices % self.processes:
            raise UserError(f"--devices={self.devices} cannot be dealt evenly to --processes={self.processes}")


def run(job: Job) -> int:
    """Starts the processes as often as it takes; the exit code of the run."""
    reached, fruitless, started = _reached(job, {}), 0, False
    with _StopSignals() as stop:
        while True:
            try:
                attempt = _Attempt(job)
            except OSError as error:
                if not started:
                    raise UserError(f"{job.command[0]} cannot be started: {error}") from error
                # What could be started before: no memory for it just now, or a file system that does not answer.
                logger.error("%s cannot be started: %s", job.command[0], error)
                codes = [_CANNOT_START]
            else:
                started = True
                codes = attempt.wait(stop)
            code = _common_code(codes)
            if code == 0:
                return 0
            said = ", ".join(map(str, codes))
            if code == EXIT_MISTAKE:
                logger.error("a mistake in the input (exit codes %s): starting again would not help", said)
                return code
            if stop.count:
                logger.info("stopped as asked; exit codes %s", said)
                # One that was asked before it listened, or crashed while it was, has lost no more than any crash loses:
                # who starts runs again after 75 should do so here, too.
                return EXIT_PREEMPTED if stop.count == 1 else code
            now = _reached(job, reached)
            newer = any(step > reached.get(folder, -1) for folder, step in now.items())
            reached, fruitless = (now, 0) if newer else (reached, fruitless + 1)
            if fruitless > job.restarts:
                logger.error("exit codes %s; %d restarts without a newer checkpoint: giving up", said, job.restarts)
                return code
            seconds = 0.0 if newer else min(job.delay * 2 ** (fruitless - 1), _LONGEST_DELAY)
            logger.warning(
                "exit codes %s; starting again in %.0f s (%s)",
                *(said, seconds, "a newer checkpoint is there" if newer else f"{fruitless} of {job.restarts} in vain"),
            )
            if stop.wait(seconds):
                return EXIT_PREEMPTED


def _reached(job: Job, before: dict[str, int]) -> dict[str, int]:
    """`checkpoints` of the job, or those known before where the file system does not answer."""
    try:
        return checkpoints(job.model_dir)
    except OSError as error:
        logger.warning("%s cannot be looked into: %s", job.model_dir, error)
        return before


def checkpoints(model_dir: Path) -> dict[str, int]:
    """The newest step of each folder with checkpoints: MODEL_DIR itself and, of a chain of stages, those below it."""
    # `training.checkpoints.latest_step` knows it too, but takes jax and orbax to import.
    found: dict[str, int] = {}
    for pattern in ("checkpoints/*", "*/checkpoints/*"):
        for path in model_dir.glob(pattern):
            if path.name.isdigit():
                folder = str(path.parent)
                found[folder] = max(found.get(folder, -1), int(path.name))
    return found


class _Attempt:
    """The processes of one attempt. Raises OSError where not all can be started; none is then."""

    def __init__(self, job: Job):
        if job.logs is not None:
            job.logs.mkdir(parents=True, exist_ok=True)
        told = [_environment(job, number) for number in range(job.processes)]
        if job.processes > 1:
            address = f"127.0.0.1:{_free_port()}"
            for environment in told:
                environment["JAX_COORDINATOR_ADDRESS"] = address
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for environment in told:
                # A session of its own: Ctrl-C reaches the supervisor alone, which asks all of them to save.
                process = subprocess.Popen(  # noqa: PLW1509
                    list(job.command),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
                self._processes.append(process)
        except OSError:
            self._kill()
            for process in self._processes:
                process.wait()
            raise
        self._readers = [self._reader(job, number) for number in range(job.processes)]
        logger.info("started %s", ", ".join(f"process {i} (pid {p.pid})" for i, p in enumerate(self._processes)))

    def _reader(self, job: Job, number: int) -> threading.Thread:
        prefix = f"[{number}] " if job.processes > 1 else ""
        log = None if job.logs is None else job.logs / f"{socket.gethostname()}_{number}.log"
        source = self._processes[number].stdout
        assert source is not None
        reader = threading.Thread(target=_copy, args=(source, prefix, log), daemon=True)
        reader.start()
        return reader

    def wait(self, stop: _StopSignals) -> list[int]:
        """Exit codes once all have ended; -N by signal N."""
        first_end: float | None = None
        forwarded = 0
        while True:
            codes = [process.poll() for process in self._processes]
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                break
            if stop.count > forwarded:
                forwarded = stop.count
                logger.info("asked to stop: %s", "killing the processes" if forwarded > 1 else "so are the processes")
                self._kill() if forwarded > 1 else self._ask()
            if ended:
                first_end = time.monotonic() if first_end is None else first_end
                patience = min(_PATIENCE.get(code, _PATIENCE_AFTER_CRASH) for code in ended)
                if time.monotonic() - first_end > patience:
                    self._kill()
            time.sleep(_POLL_SECONDS)
        self._kill()  # what the processes have started themselves
        self._wait_for_groups()
        for reader in self._readers:
            reader.join(5.0)
        return ended

    def _wait_for_groups(self) -> None:
        """Until what was killed is gone: a stage of `mimo_jax.pretrain` may hold accelerators a little longer."""
        end = time.monotonic() + _GONE_SECONDS
        for process in self._processes:
            while time.monotonic() < end:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-process.pid, os.WNOHANG)  # the first process of a container inherits them
                try:
                    os.killpg(process.pid, 0)
                except (ProcessLookupError, PermissionError):
                    break
                time.sleep(_POLL_SECONDS / 10)

    def _ask(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # ended already (macOS: PermissionError)
                pass


def _environment(job: Job, number: int) -> dict[str, str]:
    """Of a process: who it is, where there are several."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if job.processes > 1:
        environment |= {"JAX_NUM_PROCESSES": str(job.processes), "JAX_PROCESS_ID": str(number)}
        each = job.devices // job.processes
        if each:
            environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(number * each, (number + 1) * each)))
    return environment


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _copy(source: IO[bytes], prefix: str, log: Path | None) -> None:
    """What a process prints, line by line, to standard output and its log.

    What cannot be written (a full disk, a terminal that is gone) is left out: a process whose output nobody takes
    stands still once the pipe is full.
    """
    file = None
    try:
        file = None if log is None else log.open("ab", buffering=0)
    except OSError as error:
        logger.warning("no log of it: %s", error)
    for line in source:
        with contextlib.suppress(OSError):
            _write(sys.stdout.fileno(), prefix.encode() + line)
        if file is not None:
            with contextlib.suppress(OSError):
                _write(file.fileno(), line)
    if file is not None:
        file.close()


def _write(number: int, line: bytes) -> None:
    """To a file descriptor: a buffer would keep what cannot be written, and fail with it at the end."""
    while line:
        line = line[os.write(number, line) :]


def _common_code(codes: Sequence[int]) -> int:
    """One exit code for all: a mistake before anything else, then one that is no signal (which others die of)."""
    positive = [code for code in codes if code > 0]
    if EXIT_MISTAKE in positive:
        return EXIT_MISTAKE
    if all(code in (0, EXIT_PREEMPTED) for code in codes):
        return max(codes)
    others = [code for code in positive if code != EXIT_PREEMPTED]
    return max(others) if others else 128 - min(codes)


class _StopSignals:
    """Counts SIGTERM and Ctrl-C."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        # A scheduler may send SIGTERM more than once; only a person who presses Ctrl-C again has lost patience.
        if number == signal.SIGINT or self.count == 0:
            self.count += 1

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until a signal comes; whether one has."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.count:
            time.sleep(_POLL_SECONDS)
        return self.count > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.supervise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model_dir", type=Path, required=True, help="of the run, or --out of a chain of stages")
    parser.add_argument("--processes", type=int, default=1, help="processes on this machine (%(default)s)")
    parser.add_argument("--devices", type=int, default=0, help="accelerators of this machine, dealt to the processes")
    parser.add_argument(
        "--max_restarts", type=int, default=5, help="without a newer checkpoint, until it gives up (%(default)s)"
    )
    parser.add_argument("--delay", type=float, default=1.0, help="seconds before the first of these (%(default)s)")
    parser.add_argument("--logs", type=Path, help="folder for what each process prints")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="behind --")
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    log_to_stderr()
    try:
        return run(
            Job(
                command=command,
                model_dir=given.model_dir,
                processes=given.processes,
                devices=given.devices,
                restarts=given.max_restarts,
                delay=given.delay,
                logs=given.logs,
            )
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE


if __name__ == "__main__":
    sys.exit(main())
