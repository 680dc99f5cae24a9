"""A chain of commands that survives interruption: each stage is a process, done once, timed over all its attempts."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.cli import EXIT_PREEMPTED, UserError
from mimo_jax.files import write_text
from mimo_jax.preparation.sources.base import SourceError
from mimo_jax.processes import die_with_parent

logger = logging.getLogger(__name__)
STATE_FILE = "stages.json"
_BEAT_SECONDS = 2.0


def compiling_environment() -> dict[str, str]:
    """What stages that train run with: compiled programs are kept, memory comes in huge pages, TensorFlow is quiet."""
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "mimo_jax" / "jax")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        # A training step on a CPU allocates its arrays anew each time: without huge pages it takes about 1.4 times as
        # long, for page faults. (glibc 2.35 and later; others ignore it.)
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


@contextlib.contextmanager
def ends_with_a_message() -> Iterator[None]:
    """Around a chain's main file: what the user can mend ends it with a message (2), an interrupt with how to go on."""
    try:
        yield
    except (UserError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a chain.

    Attributes:
      name: name in logs and figures.
      arguments: gives the arguments of the Python interpreter; called when the stage's turn comes, so that it may look
        at what earlier stages wrote.
    """

    name: str
    arguments: Callable[[], Sequence[str]]


class Chain:
    """Runs stages in order inside a folder that remembers which are done.

    A stage whose command changed since it was done runs again, and so do all after it.

    Raises:
      UserError: another chain is running in the folder, or a stage failed.
    """

    def __init__(self, folder: str | os.PathLike[str], environment: dict[str, str] | None = None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **(environment or {})}
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{self.folder}: another run is busy in it; wait for it, or choose another folder"
            ) from error
        path = self.folder / STATE_FILE
        self.state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"stages": {}}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, attempts that were cut short included."""
        return {name: round(entry["seconds"], 1) for name, entry in self.state["stages"].items()}

    def run(self, stages: Sequence[Stage], independent: bool = False) -> None:
        """Runs what is not done yet; with `independent`, no stage needs another: one that changed runs again alone."""
        fresh = False
        for number, stage in enumerate(stages, start=1):
            arguments = list(stage.arguments())
            entry = self.state["stages"].setdefault(stage.name, {"seconds": 0.0, "done": False, "arguments": arguments})
            if entry["done"] and entry["arguments"] == arguments and (independent or not fresh):
                logger.info("[%d/%d] %s: done (%.0f s)", number, len(stages), stage.name, entry["seconds"])
                continue
            if entry["done"] or entry["arguments"] != arguments:
                entry |= {"seconds": 0.0, "done": False, "arguments": arguments}
            fresh = True
            logger.info("[%d/%d] %s: python %s", number, len(stages), stage.name, " ".join(arguments))
            self._execute(stage.name, arguments, entry)
            entry["done"] = True
            self._save()

    def _execute(self, name: str, arguments: Sequence[str], entry: dict[str, Any]) -> None:
        before, start = entry["seconds"], time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        try:
            while True:
                entry["seconds"] = before + time.monotonic() - start
                self._save()
                try:
                    code = process.wait(timeout=_BEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except KeyboardInterrupt:  # the terminal sent it to the stage too, which saves its state first
            process.wait()
            raise
        entry["seconds"] = before + time.monotonic() - start
        self._save()
        if code == EXIT_PREEMPTED:
            raise KeyboardInterrupt
        if code:
            raise UserError(
                f"stage {name} failed (exit code {code}); its message is above. Mend the cause and start again with "
                f"the same flags: finished stages are kept. Alone it is: python {' '.join(arguments)}"
            )

    def _save(self) -> None:
        write_text(self.folder / STATE_FILE, json.dumps(self.state, indent=1))
