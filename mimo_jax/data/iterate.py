"""Batches ahead of their use: made in threads or worker processes, put where they are needed, always in order.

As ``batch(step)`` is a pure function, nothing here has a state to keep: an iteration begins at any step, and depth,
threads and workers change the time at which a batch is made, never its content.
"""

import functools
import importlib.util
import itertools
import logging
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

from mimo_jax import processes

logger = logging.getLogger(__name__)

# Grain wants to know the number of elements; no run has as many steps.
_STEPS = 1 << 50


def _numbered(batch: Callable[[int], Any], step: int) -> tuple[int, Any]:
    return step, batch(step)


def _placed(place: Callable[[Any], Any], numbered: tuple[int, Any]) -> tuple[int, Any]:
    step, batch = numbered
    return step, place(batch)


def _in_worker(index: int, count: int) -> None:
    """Set up a worker process: a stop that is asked for is the parent's to handle, whose end is the worker's end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    processes.exit_with_parent()


def prefetch(
    batch: Callable[[int], Any],
    start: int,
    depth: int,
    workers: int = 0,
    place: Callable[[Any], Any] | None = None,
    threads: int = 1,
) -> Generator[tuple[int, Any], None, None]:
    """(step, batch(step)) from ``start`` on, in order, without an end. Close it to end its threads and processes.

    Args:
        batch: gives the batch of a step; with ``workers`` it must be picklable, like a `PackedSource`'s.
        start: first step.
        depth: batches that are ready ahead of use; 0 makes every batch when it is asked for.
        workers: processes that make batches; 0 makes them in threads of this one, which is enough until the work of
            the Python interpreter fills a core. Each worker has its own cache of records.
        place: applied to every batch in a thread, ``depth`` batches ahead: the transfer to the device.
        threads: that make batches, in this process or in each worker. One is fastest where files are near: more of them
            wait for each other. More of them wait together for storage that is far.
    """
    if (depth <= 0 and workers <= 0) or importlib.util.find_spec("grain") is None:
        if depth > 0 or workers > 0:
            logger.warning("grain is not installed: every batch is made when it is needed; pip install grain")
        for step in itertools.count(start):
            yield step, place(batch(step)) if place else batch(step)
    batches = _pipeline(batch, start, max(depth, 1), workers, place, threads)
    try:
        yield from batches
    finally:
        batches.close()  # type: ignore[attr-defined]


def _pipeline(
    batch: Callable[[int], Any],
    start: int,
    depth: int,
    workers: int,
    place: Callable[[Any], Any] | None,
    threads: int,
) -> Iterator[tuple[int, Any]]:
    import grain
    from absl import flags

    # A worker is ahead by its own buffer; its only thread need not hand batches to itself.
    reading = threads if threads > 1 or not workers else 0
    dataset = grain.MapDataset.range(start, start + _STEPS).map(functools.partial(_numbered, batch))
    iterated = dataset.to_iter_dataset(
        grain.ReadOptions(reading, max(reading, depth if place is None and not workers else 0))
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain hands its flags on to its workers
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-depth // workers))
        iterated = iterated.mp_prefetch(options, worker_init_fn=_in_worker)
    if place is not None:
        iterated = iterated.map(functools.partial(_placed, place))
        iterated = grain.experimental.ThreadPrefetchIterDataset(iterated, prefetch_buffer_size=depth)
    return iter(iterated)
