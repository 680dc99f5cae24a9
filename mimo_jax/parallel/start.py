"""Joins the processes of a run on several hosts. Call it before anything asks jax for its devices.

TPU pods (also on GKE), Slurm and Open MPI tell each process who it is, and jax reads it. Anywhere else say it:

    python -m mimo_jax.train --coordinator=10.0.0.1:8476 --process_count=4 --process_id=0 ...

or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment.
"""

from __future__ import annotations

import logging
import os

import jax

from mimo_jax.cli import TryAgain, UserError

logger = logging.getLogger(__name__)

COORDINATOR, PROCESS_COUNT, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


class NotTogether(TryAgain):
    """The processes of a run do not find one another: one of them may be starting again, so all should."""


def define_flags() -> None:
    """The flags that `connect_by_flags` reads."""
    from absl import flags

    flags.DEFINE_string("coordinator", None, f"host:port of process 0; default: {COORDINATOR}, or what jax finds out.")
    flags.DEFINE_integer(
        "process_count", None, f"processes of the run ({PROCESS_COUNT}); 1 = alone, whatever is found."
    )
    flags.DEFINE_integer("process_id", None, f"number of this process, from 0 ({PROCESS_ID}).")


def connect_by_flags() -> None:
    """`connect` with the command line's values."""
    from absl import flags

    connect(flags.FLAGS.coordinator, flags.FLAGS.process_count, flags.FLAGS.process_id)


def connect(coordinator: str | None = None, process_count: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others; no effect where it is alone. What is None comes from the environment.

    Only the first process logs messages below warnings from then on.

    Raises:
      UserError: a coordinator without count or number.
      NotTogether: the others do not come.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    process_count = _number(PROCESS_COUNT) if process_count is None else process_count
    process_id = _number(PROCESS_ID) if process_id is None else process_id
    if process_count == 1:
        return
    given = {"--coordinator": coordinator, "--process_count": process_count, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(f"a run of several processes needs {', '.join(given)}; without: {', '.join(missing)}")
    try:
        jax.distributed.initialize(coordinator, process_count, process_id)
    except ValueError:  # jax knows no cluster here
        if not missing:
            raise
        return
    except RuntimeError as error:
        raise NotTogether(
            f"the processes of the run do not come together ({coordinator or 'found by jax'}): {error}"
        ) from error
    logger.info("process %d of %d", jax.process_index(), jax.process_count())
    if jax.process_index() != 0:
        logging.getLogger("mimo_jax").setLevel(logging.WARNING)


def process_index() -> int:
    """Number of this process. For gin files: jax 0.12 has an object in its place, which gin cannot bind."""
    return jax.process_index()


def process_count() -> int:
    """Processes of the run. For gin files, like `process_index`."""
    return jax.process_count()


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is not None and not value.isdecimal():
        raise UserError(f"{name}={value}: a whole number is wanted")
    return None if value is None else int(value)
