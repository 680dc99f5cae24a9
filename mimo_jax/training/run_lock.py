"""One run at a time in a MODEL_DIR: two that train in the same folder would overwrite each other's checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from mimo_jax.cli import TryAgain, UserError

logger = logging.getLogger(__name__)

FILE = ".running"
# A run that was stopped may still be writing its last checkpoint when it is started again.
WAIT_SECONDS = 60.0


class FolderInUse(TryAgain):
    """Another process trains in the folder. Who started a second run will read it; what restarts runs should try again.

    For the file server of a host that was lost keeps its locks for a while: NFS 4 for 90 s by default.
    """


class RunLock:
    """Held from `acquire` to `release`, or to the end of the process, however that ends.

    A POSIX record lock: it works between the hosts of NFS and Lustre, and child processes do not inherit it. A mounted
    bucket (Cloud Storage FUSE, s3fs) knows it on one host only. Where a file system refuses locks, nothing is held, and
    the log says so.
    """

    def __init__(self, file: IO[str] | None):
        self._file = file

    @classmethod
    def acquire(cls, model_dir: str | os.PathLike[str], wait_seconds: float = WAIT_SECONDS) -> RunLock:
        """Takes the lock of a folder that exists, after at most `wait_seconds`.

        Raises:
          FolderInUse: another process holds it; the message says which.
          UserError: the folder is not to be written to.
        """
        path = Path(model_dir) / FILE
        try:
            file = open(path, "a+", encoding="utf-8")
        except PermissionError as error:
            raise UserError(f"{path} cannot be written ({error}): give a MODEL_DIR of your own") from error
        deadline = time.monotonic() + wait_seconds
        told = False
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                holder = _holder(file)
                if time.monotonic() >= deadline:
                    file.close()
                    raise FolderInUse(
                        f"{model_dir}: {holder} trains there. Wait for it or stop it, or give another MODEL_DIR"
                    ) from None
                if not told:
                    logger.info(
                        "%s: %s trains there; waiting up to %.0f s for its end", model_dir, holder, wait_seconds
                    )
                    told = True
                time.sleep(min(0.5, max(wait_seconds / 10, 0.01)))
            except OSError as error:
                logger.warning("%s cannot be locked (%s): see to it that only one run trains there", path, error)
                file.close()
                return cls(None)
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, without a name
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
            file.flush()
        return cls(file)

    def release(self) -> None:
        """Lets others have the folder."""
        if self._file is not None:
            # The run has ended well: a name that stays there (a full disk, a mount that is gone) is no failure.
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        said = json.loads(file.read())
        return f"process {said['process']} on {said['host']}"
    except (ValueError, KeyError):
        return "another process"
