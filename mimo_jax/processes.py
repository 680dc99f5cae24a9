"""Child processes that do not outlive their parent."""

import multiprocessing
import os
import signal
import sys
import threading


def die_with_parent() -> None:
    """In a child started by the main thread: be killed when the parent is, so that a restart never meets it (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def exit_with_parent() -> None:
    """In a worker of a process pool: exit when the parent does; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("exit_with_parent is for processes that multiprocessing started")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
