"""The plain runner: jobs in this process, or spread over worker processes of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from mimo_jax.preparation.accounts import Account
from mimo_jax.preparation.shards import Pass, read_side
from mimo_jax.preparation.sources.base import Shard
from mimo_jax.processes import exit_with_parent

Job = TypeVar("Job")
# Each worker is one thread of work: libraries that start threads of their own would only get in each other's way.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_work: Work | None = None


class Work(Protocol):
    """What is done to jobs; picklable."""

    def setup(self) -> None:
        """Called once per process."""
        ...

    def run(self, job: Any) -> Any:
        """One job; leaves its result on disk, or returns something small."""
        ...


class Runner(Protocol):
    """Runs passes."""

    def run(self, one: Pass, pending: Sequence[Shard], workers: int | None, check: Callable[[Account], None]) -> None:
        """Finishes the pending shards of a pass.

        Args:
            one: the pass.
            pending: its shards that are not finished.
            workers: processes, where the runner has a say in it; None = one per core.
            check: called with the account of what is finished so far; raises where that is enough.
        """
        ...


class LocalRunner:
    """Shards one by one, spread over worker processes of this machine."""

    def run(self, one: Pass, pending: Sequence[Shard], workers: int | None, check: Callable[[Account], None]) -> None:
        """See `Runner`."""
        account = Account()
        with progress_bar(one.name, len(pending), "shard") as bar:
            for shard, _ in run_jobs(one, pending, workers):
                account = Account.total([account, Account.from_json(read_side(one.sink.folder, shard.name)["account"])])
                bar.update(1)
                check(account)


class WorkerDied(Exception):
    """A worker process was killed, most often for want of memory."""


def run_jobs(work: Work, jobs: Sequence[Job], workers: int | None = None) -> Iterator[tuple[Job, Any]]:
    """(job, result) as jobs finish.

    Args:
        work: what to do.
        jobs: picklable.
        workers: processes; None = one per core. With one worker, or one job, everything runs in this process.

    Raises:
        WorkerDied: see there; what the workers finished is on disk.
    """
    count = min(workers or cores(), len(jobs))
    if count <= 1:
        if jobs:
            work.setup()
        for job in jobs:
            yield job, work.run(job)
        return
    context = multiprocessing.get_context("spawn")
    given = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update({name: "1" for name in _ONE_THREAD if given[name] is None})
    pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(work, context.Value("i", 0), count))
    try:
        futures = {pool.submit(_run, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            f"one of {count} worker processes died, most often for want of memory; what is finished is kept: start "
            "again with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in given.items():
            if value is None:
                os.environ.pop(name, None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(work: Work, started: Any, count: int) -> None:
    """In a new worker: it dies with its parent, and has its share of the cores for itself."""
    global _work
    exit_with_parent()
    with started.get_lock():
        number = started.value
        started.value += 1
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[number % count :: count]
        if mine:
            os.sched_setaffinity(0, mine)
    _work = work
    work.setup()


def _run(job: Any) -> Any:
    if _work is None:
        raise RuntimeError("a worker has no work: it was not started by run_jobs")
    return _work.run(job)


def progress_bar(name: str, total: int, unit: str) -> Any:
    """A tqdm bar on stderr, to be used in a ``with``."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit=unit, file=sys.stderr, disable=total == 0)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """The folder for this process alone.

    Raises:
        ValueError: another process has it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{folder}: another preparation is busy in it; wait for it, or choose another folder"
            ) from error
        yield
